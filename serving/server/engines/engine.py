"""The interface between the server and what runs a model, and the choice of the engine for a version."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bookserve.serving.server.errors import failed_precondition
from bookserve.serving.server.signatures import Signature
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array


class Engine(Protocol):
    """One loaded version. `run` is called from worker threads, one call at a time a version."""

    name: str  # for logs and metrics, such as "onnx"
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, tensorflow_pb2.SignatureDef]  # what GetModelMetadata answers

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Runs inputs that the signature has checked; answers the named outputs, in that order.

        Raises ServingError when the model refuses the values, any other exception when it breaks.
        """
        ...


def load(version_path: Path, threads: int) -> Engine:
    """Loads the version in that folder with the engine that fits its files; one run uses `threads`, 0 means all cores.

    Raises ServingError (FAILED_PRECONDITION) when no engine can serve the folder.
    """
    for candidate in (version_path / "assets.extra" / "model.onnx", version_path / "model.onnx"):
        if candidate.is_file():
            from bookserve.serving.server.engines.onnx_engine import OnnxEngine

            return OnnxEngine(candidate, version_path / "saved_model.pb", threads)
    if (version_path / "saved_model.pb").is_file():
        from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine(version_path, threads)
    raise failed_precondition(
        f"{version_path} holds no model: expected assets.extra/model.onnx, model.onnx or saved_model.pb in it"
    )

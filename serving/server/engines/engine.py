"""The interface between the server and what runs a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array


@dataclass(frozen=True)
class EngineOptions:
    """How versions are run. ONNX Runtime takes the first alone; the rest is for TensorFlow and LiteRT."""

    intra_op_threads: int = 1  # that one operation may use; 0 leaves it to the engine
    inter_op_threads: int = 1  # operations of one run at a time
    parallel_runs: int = 1  # of one version
    saved_model_tags: tuple[str, ...] = ("serve",)
    session_config_file: str = ""  # text ConfigProto
    gpu_memory_fraction: float = 0.0  # of each GPU; 0 leaves it to TensorFlow
    bfloat16: bool = False  # lets TensorFlow compute in it where it thinks fit
    allow_unsafe_ops: bool = False
    custom_op_libraries: tuple[str, ...] = ()  # of operations for ONNX graphs; they run as code of the server
    prefer_tflite: bool = False
    tflite_interpreters: int = 1  # a version; more runs than these wait
    trial_seconds: float = 0.0  # that a version may take for each step of its trial; 0: it is not tried


class Engine(Protocol):
    """One loaded version. `run` is called from run threads, maybe several at a time, and from the event loop."""

    name: str  # for logs and metrics, such as "onnx"
    computes_alone: bool  # whether `run` computes in the thread that calls it alone, as long as the inputs' sizes say
    keeps_state: bool  # whether a run may change what the next one answers
    doubts: Mapping[str, str]  # signature -> why its rows are not proved to be independent; the proved are not in it
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, tensorflow_pb2.SignatureDef]  # what GetModelMetadata answers

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Runs inputs that the signature has checked; answers the named outputs, in that order.

        Raises ServingError when the model refuses the values, any other exception when it breaks.
        """
        ...

    def close(self) -> None:
        """Gives back what the version holds; after it nothing runs."""
        ...

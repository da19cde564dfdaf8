"""TensorFlow as the engine of any SavedModel without an ONNX graph, from TensorFlow 1 or 2.

TensorFlow is imported when the first such version loads, and never otherwise. A version runs as TensorFlow Serving runs
it: its graph in a session, feeds by tensor name. Like there, feeds are not compared with the declared shapes: a model
that declares [?, 1] takes [3].
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bookserve.serving.server.errors import ServingError, failed_precondition, invalid_argument
from bookserve.serving.server.signatures import Signature, from_proto, read_saved_model
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array

# SavedModels of TensorFlow 2 carry their initialiser as a signature.
_INIT_SIGNATURE = "__saved_model_init_op"


class TensorFlowEngine:
    """A version run by TensorFlow in this process."""

    name = "tensorflow"

    def __init__(self, version_path: Path, threads: int) -> None:
        """Loads the graph tagged "serve" of the SavedModel in `version_path`.

        Raises ServingError (FAILED_PRECONDITION) when TensorFlow is not installed or refuses the SavedModel.
        """
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = read_saved_model(
            version_path / "saved_model.pb"
        )
        self.signatures: Mapping[str, Signature] = {
            name: from_proto(name, definition, check_shapes=False)
            for name, definition in self.signature_defs.items()
            if name != _INIT_SIGNATURE
        }
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on the processor are not the server's
        try:
            import tensorflow as tf
        except ModuleNotFoundError:
            raise failed_precondition(
                f"{version_path} holds no ONNX graph, and a SavedModel alone needs TensorFlow:"
                " pip install 'bookserve[tensorflow]'"
            ) from None
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        tf.get_logger().setLevel("ERROR")  # the session API is deprecated for building models, not for running them
        self._op_error = tf.errors.OpError
        self._call_options = CallableOptions
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads, allow_soft_placement=True
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Callable[..., list[Array]]] = {}
        try:
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(version_path))
        except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
            self._session.close()
            raise failed_precondition(f"{version_path} does not load: {error}") from error

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run."""
        feed = tuple(spec.tensor for spec in signature.inputs.values())
        fetch = tuple(signature.outputs[alias].tensor for alias in outputs)
        call = self._calls.get((feed, fetch))
        if call is None:
            # A compiled call: unlike Session.run it does not compare feeds with the declared shapes.
            options = self._call_options(feed=feed, fetch=fetch)
            call = self._calls[feed, fetch] = self._session._make_callable_from_options(options)
        try:
            return call(*(inputs[alias] for alias in signature.inputs))
        except self._op_error as error:
            raise ServingError(error.error_code, error.message) from error
        except UnicodeDecodeError as error:  # TensorFlow's message quotes bytes of the request that are not UTF-8
            raise invalid_argument(error.object.decode("utf-8", "replace")) from error

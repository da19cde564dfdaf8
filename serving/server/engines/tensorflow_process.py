"""The processes in which TensorFlow runs: a template that imports it once, and a fork of the template for each version.

A kernel whose check fails aborts its process, and TensorFlow never gives memory back; so neither happens in the server.
The template reads requests to fork from the socket whose number is its argument. Each comes with sockets for the child:
the first tells how loading went, and ends the child when the server closes it; on the second the child tells the port
of TensorFlow's profiler, which it starts when it is first asked; on each other one a thread of the child answers
PredictRequests whose names are tensors of the graph. Nothing is unpickled. This module is the program of these
processes: the server never imports it.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from bookserve.serving.server.engines import frames, refusals
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import (
    ServingError,
    failed_precondition,
    invalid_argument,
    unavailable,
)
from bookserve.serving.wire import lean_keras, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, TensorError, to_array, to_proto

log = logging.getLogger(__name__)

_MAX_SOCKETS = 253  # that Linux passes in one message
_IMPORTED = b"\0imported"


class Session:
    """A SavedModel in a TensorFlow session, run as TensorFlow Serving runs it: feeds by tensor name."""

    def __init__(self, version_path: Path, options: EngineOptions) -> None:
        """Loads the graph with the options' tags, its variables, tables and assets.

        Raises ServingError: FAILED_PRECONDITION when TensorFlow refuses the SavedModel, INVALID_ARGUMENT for a session
        config file that cannot be read.
        """
        import tensorflow as tf
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        self._op_error = tf.errors.OpError
        self._call_options = CallableOptions
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_session_config(tf, options))
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Callable[..., list[Array]]] = {}
        try:
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, list(options.saved_model_tags), str(version_path))
        except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
            raise failed_precondition(f"{version_path} does not load: {refusals.of_loading(str(error))}") from error

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The output tensors for these input tensors, all by their names in the graph.

        Raises ServingError with TensorFlow's code and words when it refuses the values.
        """
        feed, fetch = tuple(sorted(inputs)), tuple(outputs)
        call = self._calls.get((feed, fetch))
        if call is None:
            # A compiled call: unlike Session.run it does not compare feeds with the declared shapes.
            options = self._call_options(feed=feed, fetch=fetch)
            call = self._calls[feed, fetch] = self._session._make_callable_from_options(options)  # noqa: SLF001 - no public name
        try:
            answers = call(*(inputs[name] for name in feed))
        except self._op_error as error:
            refusal = refusals.of_tensorflow(error.error_code, error.message)
            if refusal is None:
                raise
            raise refusal from error
        except UnicodeDecodeError as error:  # TensorFlow's message quotes bytes of the request that are not UTF-8
            raise invalid_argument(error.object.decode("utf-8", "replace")) from error
        # TensorFlow answers a scalar of a string as bytes, of a number as numpy's scalar.
        return [np.asarray(array, np.object_) if isinstance(array, bytes) else np.asarray(array) for array in answers]


def _session_config(tf: Any, options: EngineOptions) -> Any:
    """TensorFlow's ConfigProto: the file, and the flags for what it leaves open."""
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True  # a version has a process of its own and may not take the whole GPU
    if options.session_config_file:
        text_protos.read(Path(options.session_config_file), config)
    if not config.intra_op_parallelism_threads:
        config.intra_op_parallelism_threads = options.intra_op_threads
    if not config.inter_op_parallelism_threads:
        config.inter_op_parallelism_threads = options.inter_op_threads
    if options.gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
    if options.bfloat16:
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = 1  # RewriterConfig.ON
    return config


def _answer(session: Session, channel: socket.socket) -> None:
    """Answers the requests of one channel until the server closes it."""
    while (frame := frames.receive(channel)) is not None:
        try:
            request = messages.PredictRequest.FromString(frame[1])
            inputs = {name: to_array(proto) for name, proto in request.inputs.items()}
            names = list(request.output_filter)
            response = messages.PredictResponse()
            for name, array in zip(names, session.run(inputs, names), strict=True):
                response.outputs[name].CopyFrom(to_proto(array))
            frames.send(channel, frames.ANSWER, response.SerializeToString())
        except ServingError as error:
            frames.send_error(channel, error)
        except TensorError as error:  # of an output, such as one of bfloat16
            code = tensorflow_error_pb2.UNIMPLEMENTED
            frames.send_error(channel, ServingError(code, f"an output of the model cannot be answered: {error}"))
        except Exception:
            log.exception("fault while running a signature")
            frames.send_error(channel, refusals.fault())


def _tell_profiler_port(channel: socket.socket) -> None:
    """Answers questions for the port of TensorFlow's profiler until the server closes the channel."""
    port: int | None = None
    while frames.receive(channel) is not None:
        try:
            port = port or _start_profiler()
        except Exception:
            log.exception("fault while starting the profiler")
            frames.send_error(channel, unavailable("TensorFlow's profiler does not start: see the server's log"))
        else:
            frames.send(channel, frames.ANSWER, str(port).encode())


def _start_profiler() -> int:
    """Starts TensorFlow's profiler server, which nothing but the end of the process stops; answers its port."""
    import tensorflow as tf

    with socket.socket() as probe:  # as TensorFlow does not tell which port it has been given
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    tf.profiler.experimental.server.start(port)
    return port


def _serve(wish: dict[str, Any], sockets: list[socket.socket]) -> None:
    """The life of a version's process."""
    life, profiler, *channels = sockets
    watching = threading.Thread(target=_end_with, args=(life,), daemon=True)
    watching.start()
    options = EngineOptions(**wish["options"] | {"saved_model_tags": tuple(wish["options"]["saved_model_tags"])})
    try:
        session = Session(Path(wish["path"]), options)
    except ServingError as error:
        frames.send_error(life, error)
        return
    for channel in channels:
        threading.Thread(target=_answer, args=(session, channel), daemon=True).start()
    frames.send(life, frames.ANSWER, b"")
    _tell_profiler_port(profiler)
    watching.join()


def _end_with(life: socket.socket) -> None:
    """Ends the process, whatever it is at, when the server closes the socket or is gone."""
    frames.receive(life)
    os._exit(0)


def _reap(number: int, frame: FrameType | None) -> None:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not child:
            return
        if os.WIFSIGNALED(status):
            log.error("TensorFlow's process %d died of %s", child, signal.Signals(os.WTERMSIG(status)).name)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Around the import: what it writes to standard error is shown only if it fails, or ends the process.

    TensorFlow's libraries write their first lines before any setting of theirs is read, and abort with a line that
    tells why, such as a CPU without AVX. So a small process keeps the lines, and learns from the end of the pipe.
    """
    reading, writing = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read()
        if not lines.endswith(_IMPORTED):
            os.write(2, lines)
        os._exit(0)
    os.close(reading)
    stderr = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
        os.write(2, _IMPORTED)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(keeper, 0)


def main() -> None:
    """The life of the template."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    control = socket.socket(fileno=int(sys.argv[1]))
    if sys.platform == "linux":  # a thread of the server that keeps to one core may have started this
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    lean_keras.expect()
    gc.disable()  # of what is imported, nothing is garbage
    with _quiet_stderr():
        import tensorflow as tf

        if importlib.util.find_spec("tensorflow_text") is not None:
            importlib.import_module("tensorflow_text")  # which registers its operations
    tf.get_logger().setLevel("ERROR")  # the session API is deprecated for building models, not for running them
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, _MAX_SOCKETS)
        if not message:
            with contextlib.suppress(ChildProcessError):  # until none is left
                while True:
                    os.wait()
            os._exit(0)  # without TensorFlow's own tidying up, which may wait for a kernel
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            try:
                _serve(json.loads(message), sockets)
            except BaseException:
                log.exception("fault in TensorFlow's process")
            os._exit(0)
        for one in sockets:
            one.close()
        control.sendall(b"1")


if __name__ == "__main__":
    main()

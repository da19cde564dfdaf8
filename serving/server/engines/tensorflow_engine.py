"""TensorFlow as the engine of any SavedModel without an ONNX graph, from TensorFlow 1 or 2.

TensorFlow runs in processes of its own (tensorflow_process.py), one a version. When one dies, the requests in it fail,
the server goes on and the process is replaced; when a version is unloaded, its memory is free. As in TensorFlow
Serving, a model that declares [?, 1] takes [3].
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bookserve.serving.server.engines import frames, saved_model_safety
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.question import made_up
from bookserve.serving.server.types.errors import (
    ServingError,
    failed_precondition,
    internal,
    invalid_argument,
    unavailable,
)
from bookserve.serving.server.types.signatures import ShapeRule, Signature, copies, from_proto, read_meta_graph
from bookserve.serving.wire import tensorflow_error_pb2, tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, TensorError, to_array, to_proto
from bookserve.serving.wire.version_folder import SAVED_MODELS

log = logging.getLogger(__name__)

_OPAQUE = frozenset((tensorflow_pb2.DT_VARIANT, tensorflow_pb2.DT_RESOURCE))
_STABLE_SECONDS = 60.0  # a process that lived that long is replaced at once
_MAX_PAUSE_SECONDS = 60.0
# The process that has imported TensorFlow stays that long without a version: to start it takes many seconds.
_TEMPLATE_SECONDS = 600.0
_BYTES_A_SECOND = 16 << 20  # that a process loads at the least, beyond --trial_seconds
_PROFILER_SECONDS = 30.0  # for a process to start its profiler and tell where it is


class TensorFlowEngine:
    """A version run by TensorFlow in a process of its own."""

    name = "tensorflow"
    computes_alone = False
    keeps_state = True  # variables and tables, which a signature may write

    def __init__(self, version_path: Path, options: EngineOptions) -> None:
        """Loads the graph with the options' tags of the SavedModel in `version_path`.

        Raises ServingError: FAILED_PRECONDITION when TensorFlow is not installed or refuses the SavedModel, or when the
        graph runs code or touches files; NOT_FOUND without such a graph; INTERNAL when TensorFlow dies over it.
        """
        files = [version_path / name for name in SAVED_MODELS]
        graph = read_meta_graph(next(filter(Path.is_file, files), files[0]), options.saved_model_tags)
        if not options.allow_unsafe_ops:
            saved_model_safety.check(graph, version_path)
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = copies(graph.signature_def)
        self.signatures: Mapping[str, Signature] = {
            name: from_proto(name, definition, shape_rule=ShapeRule.RANK_OF_ONES_IS_FREE)
            for name, definition in self.signature_defs.items()
            if name != saved_model_safety.INIT_SIGNATURE
        }
        self.doubts: Mapping[str, str] = dict.fromkeys(
            self.signatures, "a SavedModel without an ONNX graph is not proved"
        )
        if not hasattr(os, "fork"):
            raise failed_precondition(f"{version_path} holds no ONNX graph, and TensorFlow is served on Unix alone")
        if importlib.util.find_spec("tensorflow") is None:
            raise failed_precondition(
                f"{version_path} holds no ONNX graph, and a SavedModel alone needs TensorFlow:"
                " pip install 'bookserve[tensorflow]'"
            )
        self._path = version_path
        self._options = options
        self._closing = threading.Event()
        self._child: _Child | None = _Child(version_path, options)
        if options.trial_seconds:
            try:
                self._try(answers_from_state=saved_model_safety.answers_from_state(graph))
            except ServingError:
                self._child.close()
                raise
        threading.Thread(target=self._supervise, name="tensorflow-supervisor", daemon=True).start()

    def _try(self, *, answers_from_state: bool) -> None:
        """Asks every signature once; a process of its own where that could change what clients are answered.

        Raises ServingError (FAILED_PRECONDITION) when TensorFlow dies or hangs over a request.
        """
        assert self._child is not None
        child = _Child(self._path, self._options) if answers_from_state else self._child
        try:
            for signature in self.signatures.values():
                inputs = made_up(signature)
                if inputs is not None:
                    _ask(child, signature, inputs, self._options.trial_seconds, self._path)
        finally:
            if child is not self._child:
                child.close()

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run. Raises ServingError (UNAVAILABLE) while the process is replaced."""
        _check_dense(signature, inputs, outputs)
        return self._living().run(signature, inputs, outputs)

    def profiler_port(self) -> int:
        """The port of TensorFlow's profiler server for this version, which is started by the first call.

        For one thread at a time. Raises ServingError (UNAVAILABLE) where the process does not tell.
        """
        return self._living().profiler_port()

    def close(self) -> None:
        """See Engine.close."""
        self._closing.set()
        child = self._child
        if child is not None:
            child.close()

    def _living(self) -> "_Child":
        child = self._child
        if child is None:
            raise unavailable(f"TensorFlow died over an earlier request to {self._path.parent.name}: it is restarting")
        return child

    def _supervise(self) -> None:
        """Replaces the process whenever it dies; a quick death makes the next one wait, for longer each time."""
        pause = 0.0
        while True:
            child, started = self._child, time.monotonic()
            assert child is not None
            child.wait()
            self._child = None
            while True:
                pause = 0.0 if time.monotonic() - started >= _STABLE_SECONDS else pause
                if self._closing.wait(pause):
                    child.close()
                    return
                pause = min(_MAX_PAUSE_SECONDS, 2 * pause or 1.0)
                log.error("TensorFlow's process of %s died and is replaced", self._path)
                try:
                    self._child = _Child(self._path, self._options)
                    break
                except ServingError as error:
                    log.error("%s is not back: %s", self._path, error)
            child.close()
            if self._closing.is_set():  # while it started
                self._child.close()
                return


def _ask(
    child: "_Child", signature: Signature, inputs: Mapping[str, Array], seconds: float, version_path: Path
) -> None:
    """Runs a made-up request, which may be refused. Raises ServingError when the process dies or hangs over it."""
    hung = threading.Event()

    def end() -> None:
        hung.set()
        child.close()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        _check_dense(signature, inputs, signature.outputs)
        child.run(signature, inputs, tuple(signature.outputs))
    except ServingError as error:
        if error.code == tensorflow_error_pb2.UNAVAILABLE:
            how = f"hung: --trial_seconds allows {seconds:.0f} seconds" if hung.is_set() else "died: see the log"
            raise failed_precondition(
                f"{version_path} is refused: TensorFlow's process {how}, while it ran the signature '{signature.name}'"
            ) from None
    except (TensorError, ValueError) as error:
        log.debug("the answer of %s cannot be read: %s", version_path, error)
    finally:
        timer.cancel()


class _Child:
    """One process that has loaded the version."""

    def __init__(self, version_path: Path, options: EngineOptions) -> None:
        """Raises ServingError when TensorFlow does not load the version, or dies over it."""
        self._life, self._profiler, *self._channels = _TEMPLATE.fork(version_path, options)
        self._profiler.settimeout(_PROFILER_SECONDS)
        self._idle: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        for channel in self._channels:
            self._idle.put(channel)
        self._lock = threading.Lock()
        self._closed = False
        seconds = options.trial_seconds and options.trial_seconds + _bytes_of(version_path) / _BYTES_A_SECOND
        self._life.settimeout(seconds or None)
        began = time.monotonic()
        frame = frames.receive(self._life)
        self._life.settimeout(None)
        try:
            if frame is None:
                if seconds and time.monotonic() - began >= seconds:
                    raise failed_precondition(
                        f"{version_path} is refused: TensorFlow's process hung while it loaded it:"
                        f" --trial_seconds allows {seconds:.0f} seconds"
                    )
                raise internal(
                    f"TensorFlow died while it loaded {version_path}: see the server's log",
                )
            _content(frame)
        except ServingError:
            self.close()
            raise

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run. Raises ServingError (UNAVAILABLE) when the process dies."""
        fetch = [signature.outputs[alias].tensor for alias in outputs]
        request = messages.PredictRequest(output_filter=fetch)
        for alias, array in inputs.items():
            request.inputs[signature.inputs[alias].tensor].CopyFrom(to_proto(array))
        channel = self._idle.get()
        try:
            frames.send(channel, frames.ANSWER, request.SerializeToString())
            frame = frames.receive(channel)
        except OSError:
            frame = None
        finally:
            self._idle.put(channel)
        if frame is None:
            raise unavailable("TensorFlow died while it ran this request: see the server's log")
        response = messages.PredictResponse.FromString(_content(frame))
        try:
            return [to_array(response.outputs[tensor]) for tensor in fetch]
        except TensorError as error:  # such as [0, 2147483647], which a request may ask for
            raise invalid_argument(f"an output of the model cannot be answered: {error}") from error

    def profiler_port(self) -> int:
        """See TensorFlowEngine.profiler_port."""
        try:
            frames.send(self._profiler, frames.ANSWER, b"")
            frame = frames.receive(self._profiler)
        except OSError:
            frame = None
        if frame is None:
            raise unavailable("TensorFlow's process does not tell where its profiler is: see the server's log")
        return int(_content(frame))

    def wait(self) -> None:
        """Returns when the process is gone, or closed."""
        frames.receive(self._life)

    def close(self) -> None:
        """Ends the process, also one that runs a request."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for one in (self._life, self._profiler, *self._channels):
            with contextlib.suppress(OSError):  # the other side may be gone
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it; closing alone does not
            one.close()
        _TEMPLATE.leave()


def _check_dense(signature: Signature, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises ServingError (INVALID_ARGUMENT) for a tensor that the protocols cannot carry, such as a ragged one."""
    for word, specs, aliases in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
        for alias in aliases:
            spec = specs[alias]
            if not spec.tensor or spec.data_type in _OPAQUE:
                mend = "ask for the others by name" if word == "output" else "it cannot be sent"
                raise invalid_argument(
                    f"{word} '{alias}' is not one dense tensor (it is sparse, ragged or a handle), and only dense"
                    f" tensors can be served: {mend}, or export a signature with its parts as tensors"
                )


def _bytes_of(version_path: Path) -> int:
    return sum(path.stat().st_size for path in version_path.rglob("*") if path.is_file())


def _content(frame: tuple[int, bytes]) -> bytes:
    kind, data = frame
    if kind == frames.ERROR:
        status = messages.StatusProto.FromString(data)
        raise ServingError(status.error_code, status.error_message)
    return data


class _Template:
    """The process that has imported TensorFlow, and forks; it lives as long as there are children, and a while longer.

    So a model that is unloaded before its successor appears comes back as fast as beside another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._children = 0
        self._ending: threading.Timer | None = None  # while there are no children

    def fork(self, version_path: Path, options: EngineOptions) -> list[socket.socket]:
        """The sockets of a child that loads the version: for its life, its profiler, and one for each parallel run.

        Raises ServingError (INTERNAL) when TensorFlow does not start.
        """
        wish = json.dumps({"path": str(version_path), "options": dataclasses.asdict(options)}).encode()
        ours, theirs = zip(*(socket.socketpair() for _ in range(2 + options.parallel_runs)), strict=True)
        try:
            with self._lock:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._control is not None
                socket.send_fds(self._control, [wish], [one.fileno() for one in theirs])
                if not self._control.recv(1):
                    raise ConnectionError
                self._children += 1
                self._stay()
        except ConnectionError:
            for one in ours:
                one.close()
            raise internal("TensorFlow does not start: see the server's log") from None
        finally:
            for one in theirs:
                one.close()
        return list(ours)

    def leave(self) -> None:
        """Ends the template some time after its last child, unless there is another by then."""
        with self._lock:
            self._children -= 1
            if not self._children:
                self._stay()
                self._ending = threading.Timer(_TEMPLATE_SECONDS, self.end)
                self._ending.daemon = True
                self._ending.start()

    def end(self) -> None:
        """Ends the template where it has no children."""
        with self._lock:
            self._stay()
            if self._children or self._process is None or self._control is None:
                return
            self._control.close()
            self._process.wait()
            self._process = self._control = None

    def _stay(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1"} | os.environ
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bookserve.serving.server.engines.tensorflow_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which then ends its children
            )


_TEMPLATE = _Template()


def end() -> None:
    """Ends what no engine needs any more, at once: at the end of the server."""
    _TEMPLATE.end()

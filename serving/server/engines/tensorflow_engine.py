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
from collections.abc import Mapping, Sequence
from pathlib import Path

from bookserve.serving.server.engines import frames, saved_model_safety
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.types.errors import ServingError, failed_precondition, internal, unavailable
from bookserve.serving.server.types.signatures import Signature, copies, from_proto, read_meta_graph
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, to_array, to_proto

log = logging.getLogger(__name__)

_STABLE_SECONDS = 60.0  # a process that lived that long is replaced at once
_MAX_PAUSE_SECONDS = 60.0
_PROFILER_SECONDS = 30.0  # for a process to start its profiler and tell where it is


class TensorFlowEngine:
    """A version run by TensorFlow in a process of its own."""

    name = "tensorflow"
    computes_alone = False

    def __init__(self, version_path: Path, options: EngineOptions) -> None:
        """Loads the graph with the options' tags of the SavedModel in `version_path`.

        Raises ServingError: FAILED_PRECONDITION when TensorFlow is not installed or refuses the SavedModel, or when the
        graph runs code or touches files; NOT_FOUND without such a graph; INTERNAL when TensorFlow dies over it.
        """
        graph = read_meta_graph(version_path / "saved_model.pb", options.saved_model_tags)
        if not options.allow_unsafe_ops:
            saved_model_safety.check(graph, version_path)
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = copies(graph.signature_def)
        self.signatures: Mapping[str, Signature] = {
            name: from_proto(name, definition, any_rank_of_ones=True)
            for name, definition in self.signature_defs.items()
            if name != saved_model_safety.INIT_SIGNATURE
        }
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
        threading.Thread(target=self._supervise, name="tensorflow-supervisor", daemon=True).start()

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run. Raises ServingError (UNAVAILABLE) while the process is replaced."""
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
            child.close()  # now, as the template lives as long as there are children
            if self._closing.is_set():  # while it started
                self._child.close()
                return


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
        frame = frames.receive(self._life)
        try:
            if frame is None:
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
        return [to_array(response.outputs[tensor]) for tensor in fetch]

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


def _content(frame: tuple[int, bytes]) -> bytes:
    kind, data = frame
    if kind == frames.ERROR:
        status = messages.StatusProto.FromString(data)
        raise ServingError(status.error_code, status.error_message)
    return data


class _Template:
    """The process that has imported TensorFlow, and forks; it lives as long as there are children."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._children = 0

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
        except ConnectionError:
            for one in ours:
                one.close()
            raise internal("TensorFlow does not start: see the server's log") from None
        finally:
            for one in theirs:
                one.close()
        return list(ours)

    def leave(self) -> None:
        """Ends the template after its last child."""
        with self._lock:
            self._children -= 1
            if self._children or self._process is None or self._control is None:
                return
            self._control.close()
            self._process.wait()
            self._process = self._control = None

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

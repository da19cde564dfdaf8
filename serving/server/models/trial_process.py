"""The processes in which versions are tried before the server loads them: a template, and forks of it.

The template is a fork of the server, made before that has an engine or listens. It forks a child for each socket that
it is sent, and tells how children ended. A child tries the versions that its socket names one after another: it loads,
asks and unloads each, and tells every step before it takes it, so that the server knows the last one of a child that
died or hangs. A child takes no more memory than there is, and is the first that the system ends for memory.
"""

import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bookserve.serving.server.engines import choose, frames
from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.engines.question import made_up
from bookserve.serving.server.models import warmup
from bookserve.serving.server.types.errors import ServingError, exhausted
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array

FORK, STATUS = b"f", b"s"  # what the template is asked: a child for the socket that comes along, how a child ended
DONE = b""  # in place of a step
_IDLE_SECONDS = 5.0  # after which a child ends
_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory")  # in words of the engines


def serve_template(control: socket.socket) -> None:
    """The life of the template, which ends with the server, and its children with it."""
    os.setsid()  # Ctrl-C is for the server
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.disable()
    logging.disable()  # what there is to say the server says itself
    gc.freeze()
    children: set[int] = set()
    ended: dict[int, int] = {}  # child -> wait status
    while True:
        control.settimeout(_IDLE_SECONDS if children else None)
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        except TimeoutError:
            _reap(children, ended, os.WNOHANG)
            continue
        if not message:
            for child in children:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        if message == FORK:
            channel = socket.socket(fileno=descriptors[0])
            child = os.fork()
            if child == 0:
                control.close()
                try:
                    _serve_child(channel)
                finally:
                    os._exit(0)
            channel.close()
            children.add(child)
            control.sendall(b"%d" % child)
        else:
            child = int(message.removeprefix(STATUS))
            _reap(children & {child}, ended, 0)
            children.discard(child)
            control.sendall(b"%d" % ended.pop(child))


def _reap(children: set[int], ended: dict[int, int], options: int) -> None:
    """Notes how children ended, and takes them off the set."""
    for child in list(children):
        pid, status = os.waitpid(child, options)
        if pid:
            children.discard(child)
            ended[child] = status


def _serve_child(channel: socket.socket) -> None:
    with suppress(OSError):  # where it may not
        Path("/proc/self/oom_score_adj").write_text("1000")
    while True:
        channel.settimeout(_IDLE_SECONDS)
        frame = frames.receive(channel)
        channel.settimeout(None)
        if frame is None:
            return
        wish = json.loads(frame[1])
        options = EngineOptions(**wish["options"] | {"saved_model_tags": tuple(wish["options"]["saved_model_tags"])})

        def step(name: str) -> None:
            frames.send(channel, frames.ANSWER, name.encode())

        try:
            _limit_memory()
            _try(Path(wish["path"]), replace(options, tflite_interpreters=1), wish["warm_up"], step)
        except ServingError as error:
            frames.send_error(channel, error)
        except MemoryError:
            frames.send_error(channel, _too_large())
        except Exception as error:  # the server's own attempt tells it in full
            logging.getLogger(__name__).debug("%s", error)
            frames.send(channel, frames.ANSWER, DONE)
        else:
            frames.send(channel, frames.ANSWER, DONE)


def _try(path: Path, options: EngineOptions, warm_up: bool, step: Callable[[str], None]) -> None:
    step("loaded it")
    try:
        engine = choose.load(path, options)
    except ServingError as error:
        raise _too_large() if _lacks_memory(error) else error from None
    if warm_up and (path / warmup.LOCATION).is_file():
        warmup.warm_up(_Asked(engine, step), path, 1)
    else:
        _ask(engine, step)
    step("unloaded it")
    engine.close()
    del engine
    gc.collect()


def _ask(engine: Engine, step: Callable[[str], None]) -> None:
    """Asks every signature once. A refusal is no fault, as the values are made up."""
    for signature in engine.signatures.values():
        inputs = made_up(signature)
        if inputs is None:
            continue
        step(f"ran the signature '{signature.name}'")
        try:
            engine.run(signature, inputs, tuple(signature.outputs))
        except Exception as error:
            if _lacks_memory(error):
                raise _too_large() from error


class _Asked:
    """An engine that tells of each run."""

    def __init__(self, engine: Engine, step: Callable[[str], None]) -> None:
        self.name = engine.name
        self.computes_alone = engine.computes_alone
        self.keeps_state = engine.keeps_state
        self.doubts: Mapping[str, str] = engine.doubts
        self.signatures: Mapping[str, Signature] = engine.signatures
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = engine.signature_defs
        self._engine = engine
        self._step = step

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run."""
        self._step("ran a warm-up record")
        return self._engine.run(signature, inputs, outputs)

    def close(self) -> None:
        """See Engine.close."""


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _too_large() -> ServingError:
    return exhausted("it needs more memory than there is")


def _limit_memory() -> None:
    """Lets the process have what is free now, where the system tells it (Linux)."""
    free = _free_bytes()
    if free is not None:
        used = _kilobytes(Path("/proc/self/status"), "VmData") << 10
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + free
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _free_bytes() -> int | None:
    """The memory that the machine, or this container, has left."""
    try:
        free = _kilobytes(Path("/proc/meminfo"), "MemAvailable") << 10
    except (OSError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such limit
        cached = next(
            int(line.split()[1]) for line in (group / "memory.stat").open() if line.startswith("inactive_file ")
        )
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used + cached))
    return free


def _kilobytes(path: Path, name: str) -> int:
    """A value such as "VmData:  1234 kB". Raises ValueError where there is none."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(name)

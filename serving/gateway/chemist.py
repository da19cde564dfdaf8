"""RDKit for the gateway, in processes that can be killed: a hostile molecule costs two seconds and no memory.

The processes start with the first molecule, so a gateway that is never asked for one has none.
"""

import base64
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from bookserve.clients.inputs import molecules
from bookserve.serving.gateway.problems import Problem

_MODULE = "bookserve.serving.gateway.molecule_process"
_START_SECONDS = 30.0
_WAIT_SECONDS = 5.0  # for a process that is free
_CHUNK = 1 << 16


@dataclass(frozen=True)
class ChemistryLimits:
    """What one call may cost. A SIGKILL ends what goes beyond."""

    processes: int = 2
    seconds: float = 2.0
    memory: int = 2 << 30  # bytes of address space a process


class Chemist:
    """A few RDKit processes, shared by the gateway's threads. Use it as a context manager, or call `close`."""

    def __init__(self, limits: ChemistryLimits | None = None) -> None:
        self._limits = limits or ChemistryLimits()
        self._lock = threading.Lock()
        self._closed = False
        self._running: set[subprocess.Popen[bytes]] = set()
        # None stands for a process that is yet to be started.
        self._free: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(self._limits.processes):
            self._free.put(None)

    def fingerprints(self, smiles: Sequence[str]) -> list[npt.NDArray[np.uint8] | molecules.MoleculeError]:
        """The fingerprint of each molecule, uint8 [1024], or why there is none.

        Raises MoleculeError when the molecules together take more than the limit, Problem 503 when all processes are
        busy.
        """
        return [
            value
            if isinstance(value, molecules.MoleculeError)
            else np.unpackbits(np.frombuffer(base64.b64decode(value), np.uint8))
            for value in self._ask("fingerprint", smiles)
        ]

    def drawing(self, smiles: str) -> bytes:
        """A molecule as an SVG document. Raises MoleculeError, and Problem 503 when all processes are busy."""
        (value,) = self._ask("drawing", [smiles])
        if isinstance(value, molecules.MoleculeError):
            raise value
        return value.encode()

    def close(self) -> None:
        """Ends the processes."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()
        for process in list(self._running):
            self._end(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, job: str, smiles: Sequence[str]) -> list[str | molecules.MoleculeError]:
        try:
            process = self._free.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            raise Problem(503, "too many molecules at once: try again", headers={"Retry-After": "2"}) from None
        usable = False
        try:
            if process is not None and process.poll() is not None:
                self._end(process)
                process = None
            process = process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"job": job, "smiles": list(smiles)}).encode() + b"\n")
            process.stdin.flush()
            answers = json.loads(_line(process, self._limits.seconds))
            usable = True
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            most = f"{self._limits.seconds:g} s or {self._limits.memory >> 20} MiB"
            raise molecules.MoleculeError(f"RDKit needs more than {most} for it: give a simpler molecule") from error
        finally:
            if process is not None and not usable:
                process.kill()
                self._end(process)
            self._free.put(process if usable else None)
        return [_outcome(answer) for answer in answers]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", _MODULE, str(self._limits.memory), str(2 * self._limits.seconds)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with self._lock:
            if self._closed:
                raise Problem(503, "the gateway is stopping")
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._running.add(process)
        try:
            _line(process, _START_SECONDS)
        except (EOFError, TimeoutError) as error:
            process.kill()
            self._end(process)
            raise RuntimeError(f"{_MODULE} does not start: is RDKit installed?") from error
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        self._running.discard(process)


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line that a process writes. TimeoutError when it is late, EOFError when the process is gone."""
    assert process.stdout is not None
    number = process.stdout.fileno()
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(number, select.POLLIN)
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError
        piece = os.read(number, _CHUNK)
        if not piece:
            raise EOFError
        pieces.append(piece)
    return b"".join(pieces)


def _outcome(answer: dict[str, str]) -> str | molecules.MoleculeError:
    if "too_large" in answer:
        return molecules.MoleculeTooLarge(answer["too_large"])
    return molecules.MoleculeError(answer["error"]) if "error" in answer else answer["value"]

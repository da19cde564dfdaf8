"""RDKit for the gateway, in processes that can be killed: a hostile molecule costs two seconds and no memory.

The processes start with the first molecule, so a gateway that is never asked for one has none. Messages are JSON and
never pickles: a process that a molecule has taken over cannot make the gateway run anything.
"""

import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bookserve.clients.inputs import molecules
from bookserve.export.contracts import Descriptors, Preprocessing
from bookserve.serving.gateway.problems import Problem

_MODULE = "bookserve.serving.gateway.molecule_process"
_START_SECONDS = 30.0
_WAIT_SECONDS = 5.0  # for a process that is free
_MAX_ANSWER_BYTES = 16 << 20


class MoleculePool:
    """A few RDKit processes, shared by the gateway's threads.

    A call may take `seconds`, a process `memory` bytes of address space. A SIGKILL ends what goes beyond.
    """

    def __init__(self, processes: int = 2, seconds: float = 2.0, memory: int = 2 << 30) -> None:
        self._seconds = seconds
        self._memory = memory
        self._differences: dict[Descriptors, str] = {}
        # None stands for a process that is yet to be started.
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)

    def features(
        self, smiles: Sequence[str], means: Preprocessing
    ) -> list[dict[str, npt.NDArray[Any]] | molecules.MoleculeError]:
        """The tensors of each molecule that a contract's preprocessing names, or why there are none.

        Raises MoleculeError when the molecules together take more than the limit, Problem 503 when all processes are
        busy.
        """
        answers = self._ask(_describe("describe", means), smiles)
        return [value if isinstance(value, molecules.MoleculeError) else _tensors(value, means) for value in answers]

    def without_each(self, smiles: str, means: Preprocessing) -> list[tuple[str, dict[str, npt.NDArray[Any]]]]:
        """The tensors of the whole molecule, under "", then the symbol of each atom with those without its share.

        Raises MoleculeError, and Problem 503 when all processes are busy.
        """
        (value,) = self._ask(_describe("without", means), [smiles])
        if isinstance(value, molecules.MoleculeError):
            raise value
        lines = (line.split(" ", 1) for line in value.split("\n"))
        return [(symbol, _tensors(text, means)) for symbol, text in lines]

    def difference(self, descriptors: Descriptors) -> str:
        """What to tell where RDKit does not describe molecules as that of the training did; else "".

        RDKit is asked once for the descriptors of a contract. Raises MoleculeError and Problem as `drawing`.
        """
        if descriptors not in self._differences:
            (value,) = self._ask({"job": "digest", "names": descriptors.names}, [molecules.EXAMPLE])
            if isinstance(value, molecules.MoleculeError):
                raise value
            here, _, said = value.partition(" ")
            self._differences[descriptors] = molecules.difference(descriptors, here, said)
        return self._differences[descriptors]

    def drawing(self, smiles: str, weights: Sequence[float] = ()) -> bytes:
        """A molecule as an SVG document, its atoms marked by `weights` from -1 to 1.

        Raises MoleculeError, and Problem 503 when all processes are busy.
        """
        (value,) = self._ask({"job": "drawing", "weights": list(weights)}, [smiles])
        if isinstance(value, molecules.MoleculeError):
            raise value
        return value.encode()

    def close(self) -> None:
        """Ends the processes that are free. One that is busy ends with its limit, or with the gateway."""
        with suppress(queue.Empty):
            while True:
                worker = self._free.get_nowait()
                if worker is not None:
                    worker.end()

    def _ask(self, job: dict[str, Any], smiles: Sequence[str]) -> list[str | molecules.MoleculeError]:
        try:
            worker = self._free.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            raise Problem(503, "too many molecules at once: try again", headers={"Retry-After": "2"}) from None
        usable = False
        try:
            if worker is None or worker.process.poll() is not None:
                worker = _Worker(self._memory, self._seconds)
            answers = worker.ask(job, smiles, self._seconds)
            usable = True
        except (EOFError, ConnectionError, TimeoutError) as error:
            most = f"{self._seconds:g} s or {self._memory >> 20} MiB"
            raise molecules.MoleculeError(f"RDKit needs more than {most} for it: give a simpler molecule") from error
        finally:
            if worker is not None and not usable:
                worker.end()
            self._free.put(worker if usable else None)
        errors = {"error": molecules.MoleculeError, "too_large": molecules.MoleculeTooLarge}
        return [errors[kind](text, place) if kind in errors else text for kind, text, place in answers]


def _describe(job: str, means: Preprocessing) -> dict[str, Any]:
    kind = means.fingerprint
    assert kind is not None
    names = () if means.descriptors is None else means.descriptors.names
    return {"job": job, "radius": kind.radius, "bits": kind.bits, "names": names}


def _tensors(text: str, means: Preprocessing) -> dict[str, npt.NDArray[Any]]:
    parts = [bytes.fromhex(part) for part in text.split(" ")]
    arrays = [np.frombuffer(part, dtype) for part, dtype in zip(parts, (np.uint8, np.uint8, np.float32), strict=True)]
    return molecules.tensors(molecules.Description(*arrays), means)


class _Worker:
    """One RDKit process and the connection to it, which is the process's standard input."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(memory), str(2 * seconds)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        try:
            self.ask({"job": "drawing"}, [], _START_SECONDS)
        except (EOFError, OSError) as error:
            self.end()
            raise RuntimeError(f"{_MODULE} does not start: is RDKit installed?") from error

    def ask(self, job: dict[str, Any], smiles: Sequence[str], seconds: float) -> list[tuple[str, str, int | None]]:
        """The kind, text and place of each molecule's answer. A process that is late is killed, whatever it does."""
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            self._connection.send_bytes(orjson.dumps({**job, "smiles": list(smiles)}))
            answers: list[tuple[str, str, int | None]] = orjson.loads(self._connection.recv_bytes(_MAX_ANSWER_BYTES))
        finally:
            timer.cancel()
        if time.monotonic() >= end:
            raise TimeoutError  # the timer may have killed it after its answer
        return answers

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self._connection.close()

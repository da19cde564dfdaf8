"""A version on the nodes of a Ray cluster, one copy a processor.

INPUT is read and OUTPUT written here; the rows of a run go to a copy that is free. The version's files go to the nodes
through Ray, so they need no store, only bookserve. A copy whose node dies is lost: its rows go to another one, and a
new copy begins as soon as the cluster has a free processor for it. Not built on ray.data, whose pipelines begin anew
when the program that reads them was killed.
"""

import logging
import queue
import signal
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract
from bookserve.serving.batch.local_model import LocalModel
from bookserve.serving.batch.model import ModelLost, Pace, RowsRefused

_POLL_SECONDS = 0.5  # between two looks whether the run has ended
Files = dict[str, bytes]  # path inside the version folder -> content


class Copy:
    """The version in a process of a node. Methods answer plain values, as errors of Ray's tasks carry tracebacks."""

    def __init__(self, files: Files, contract: Contract, version: int, rows: int, rows_independent: bool) -> None:
        self._files = files
        self._contract = contract
        self._version = version
        self._pace = Pace(rows, 1)
        self._rows_independent = rows_independent
        self._model: LocalModel | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="bookserve-")

    def load(self) -> str:
        """Loads the version. Answers why it does not load, or nothing."""
        folder = Path(self._scratch.name) / self._contract.model / str(self._version)
        try:
            for name, content in self._files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            self._model = LocalModel(folder, self._contract, self._pace, self._rows_independent, 0.0, None)
        except (ModelLost, OSError) as error:
            return str(error) or type(error).__name__
        self._files = {}
        return ""

    def run(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], str]:
        """The outputs, and nothing; or nothing, and why the rows are refused."""
        assert self._model is not None
        try:
            return self._model.run(inputs), ""
        except RowsRefused as error:
            return {}, str(error)


class RayModel:
    """See Model."""

    def __init__(
        self, address: str, folder: Path, tried: LocalModel, runs: int | None, rows_independent: bool, wait: float
    ) -> None:
        """`tried` is the version as it was tried here; `runs` are by default as many as the cluster has processors.

        `wait` are the seconds for which a run waits while no copy is there. Raises ModelLost where there is no cluster.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModelLost(
                "--ray needs the package 'ray', which is not installed: pip install 'bookserve[ray]'"
            ) from error
        self._ray: Any = ray
        on_stop = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelLost(f"no Ray cluster answers at {address} (--ray): {lines[0][:300]}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_stop)  # for which Ray has put its own handler
        self.contract = tried.contract
        self.version = tried.version
        self.identity = tried.identity
        processors = int(ray.cluster_resources().get("CPU", 1))
        self.pace = Pace(tried.pace.rows, (runs or processors) if tried.can_run_beside_itself else 1)
        self._wait = wait
        self._closed = threading.Event()
        self._loaders = ThreadPoolExecutor(self.pace.runs, thread_name_prefix="ray copy")
        self._free: queue.Queue[Any] = queue.Queue()  # copies, and the reason, as a text, where one did not load
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self._arguments = (ray.put(files), self.contract, self.version, self.pace.rows, rows_independent)
        for _ in range(self.pace.runs):
            self._begin_copy()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Model.run."""
        while not self._closed.is_set():
            try:
                copy = self._free.get(timeout=self._wait)
            except queue.Empty:
                raise ModelLost(
                    f"the Ray cluster has had no processor for the model for {self._wait:g} s (--retry-seconds)"
                ) from None
            if isinstance(copy, str):
                self._free.put(copy)
                raise ModelLost(f"a node of the Ray cluster does not load the version: {copy}")
            try:
                found, refusal = self._ray.get(copy.run.remote(dict(inputs)))
            except self._ray.exceptions.RayError:  # its process or its node is gone
                if not self._closed.is_set():
                    self._begin_copy()
                continue
            self._free.put(copy)
            if refusal:
                raise RowsRefused(refusal)
            outputs: dict[str, Array] = found
            return outputs
        raise ModelLost("the run was stopped")

    def close(self) -> None:
        """See Model.close: the copies end, the cluster goes on.

        Ray ends the whole process where a thread still waits for it.
        """
        self._closed.set()
        self._loaders.shutdown()
        self._ray.shutdown()

    def _begin_copy(self) -> None:
        """Asks the cluster for a copy, which is free once it has loaded the version."""
        self._loaders.submit(self._until_loaded)

    def _until_loaded(self) -> None:
        ray = self._ray
        while not self._closed.is_set():
            try:
                copy = ray.remote(num_cpus=1)(Copy).remote(*self._arguments)
                loading = copy.load.remote()
                while not ray.wait([loading], timeout=_POLL_SECONDS)[0]:
                    if self._closed.is_set():
                        return
                refusal = ray.get(loading)
            except ray.exceptions.RayTaskError as error:
                self._free.put(str(error).strip().splitlines()[-1][:300])
                return
            except ray.exceptions.RayError:  # it was lost before it had loaded
                self._closed.wait(1.0)
                continue
            self._free.put(refusal or copy)
            return

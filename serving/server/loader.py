"""Loads versions into this process: folder -> engine -> batcher, on threads beside the event loop."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bookserve.serving.server.batching import Batcher, Workers
from bookserve.serving.server.engines import engine as engines
from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.servable import Servable
from bookserve.serving.server.signatures import TensorSpec
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOptions:
    """How a version is loaded and run."""

    load_threads: int = 4
    worker_threads: int = 2  # that run batches
    threads_per_run: int = 1  # that one batch may use
    max_queued: int = 2000  # requests a model


class InProcessLoader:
    """The `Loader` whose versions answer in this process."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._workers = Workers(options.worker_threads)
        self._threads = ThreadPoolExecutor(options.load_threads, thread_name_prefix="loader")

    async def load(self, name: str, version: int, path: Path) -> Servable:
        """See Loader.load."""
        options = self._options
        engine = await self._loop.run_in_executor(self._threads, _load_and_warm_up, path, options.threads_per_run)
        batcher = Batcher(engine, self._workers, self._loop, options.max_queued)
        return Servable(name, version, engine, batcher)

    async def unload(self, servable: Servable) -> None:
        """See Loader.unload."""
        await servable.until_idle()

    async def close(self) -> None:
        """See Loader.close."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._loop.run_in_executor(None, self._workers.stop)


def _load_and_warm_up(path: Path, threads: int) -> Engine:
    """Loads a version and runs one row of zeros through it, so that the first request does not pay for set-up."""
    engine = engines.load(path, threads)
    for signature in engine.signatures.values():
        if all(_has_known_rows(spec) for spec in signature.inputs.values()):
            inputs = {name: _one_row(spec) for name, spec in signature.inputs.items()}
            try:
                engine.run(signature, inputs, tuple(signature.outputs))
            except Exception as error:  # a model may well refuse zeros
                log.info("the warm-up of %s with zeros was refused: %s", path, error)
    return engine


def _has_known_rows(spec: TensorSpec) -> bool:
    return spec.shape is not None and None not in spec.shape[1:] and spec.dtype.kind != "O"


def _one_row(spec: TensorSpec) -> Array:
    return np.zeros([1 if size is None else size for size in spec.shape or ()], dtype=spec.dtype)

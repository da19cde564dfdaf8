"""One version that is loaded, and the interface behind which versions are loaded and unloaded."""

import asyncio
from pathlib import Path
from typing import Protocol, TypeVar

from bookserve.serving.server.batching.batcher import Batcher
from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.models.picture_input import PictureInput
from bookserve.serving.server.models.version_counts import VersionCounts


class LoadedVersion:
    """One version that is loaded, here or in other processes, as the manager knows it."""

    __slots__ = ("in_flight", "key", "last_used", "model", "version")

    def __init__(self, model: str, version: int, key: int = 0) -> None:
        """`key` is what several processes know the version by."""
        self.model = model
        self.version = version
        self.key = key
        self.in_flight = 0  # requests that have been accepted here and not yet answered
        self.last_used = 0  # by the manager's count of uses; only with --lazy_loading

    @property
    def queued(self) -> int:
        """How many of them wait for a batch."""
        return 0


class Servable(LoadedVersion):
    """One version that is loaded here and may be asked."""

    __slots__ = ("batcher", "check_method_names", "counts", "engine", "on_idle", "pictures")

    def __init__(
        self,
        model: str,
        version: int,
        engine: Engine,
        batcher: Batcher,
        check_method_names: bool = False,
        counts: VersionCounts | None = None,
        pictures: PictureInput | None = None,
    ) -> None:
        """`pictures` is the input that takes them, where the manifest says so."""
        super().__init__(model, version)
        self.engine = engine
        self.batcher = batcher
        self.check_method_names = check_method_names
        self.counts = counts or VersionCounts()
        self.pictures = pictures
        self.on_idle: asyncio.Event | None = None  # set once the version is to be unloaded

    @property
    def queued(self) -> int:
        """See LoadedVersion.queued."""
        return self.batcher.queued

    def release(self) -> None:
        """Ends one use of the version."""
        self.in_flight -= 1
        if not self.in_flight and self.on_idle is not None:
            self.on_idle.set()

    async def until_idle(self) -> None:
        """Waits for the requests under way; new ones must no longer find the version."""
        if self.in_flight:
            self.on_idle = asyncio.Event()
            await self.on_idle.wait()


Loaded = TypeVar("Loaded", bound=LoadedVersion)


class Loader(Protocol[Loaded]):
    """Turns a version folder into something that answers requests, and back. Called on the event loop."""

    async def load(self, name: str, version: int, path: Path) -> Loaded:
        """Loads a version; when this returns, everything that answers requests can answer for it.

        Raises ServingError when the folder cannot be served; any other exception is a fault that is logged in full.
        """
        ...

    async def unload(self, servable: Loaded) -> None:
        """Waits until the requests under way are answered, then gives back what the version holds."""
        ...

    async def close(self) -> None:
        """Waits for batches under way and ends the threads; what is still loading is abandoned."""
        ...

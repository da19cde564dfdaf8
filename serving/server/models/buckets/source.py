"""The versions in buckets: which there are, and each of them held in the cache on this machine while it is loaded."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Generic

from bookserve.serving.server.models import version_policy
from bookserve.serving.server.models.buckets.cache import Cache, Entry, Hold
from bookserve.serving.server.models.buckets.download import Download, listed
from bookserve.serving.server.models.buckets.listing import Listing
from bookserve.serving.server.models.own_thread import on_own_thread
from bookserve.serving.server.models.servable import Loaded, Loader
from bookserve.serving.server.types.errors import ServingError, failed_precondition, unavailable
from bookserve.serving.wire.bucket import (
    BucketAddress,
    BucketDenied,
    BucketError,
    BucketFolder,
    BucketNotFound,
    BucketRefused,
    Object,
)

log = logging.getLogger(__name__)

_FOR_GOOD = (BucketDenied, BucketNotFound, BucketRefused)  # what waiting does not mend


class Buckets:
    """All buckets that the server reads. Used on its event loop, but for `obtain`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._listings: dict[BucketAddress, Listing] = {}
        self._versions: dict[Path, tuple[BucketFolder, str]] = {}  # path in the cache -> where it comes from
        self._told: set[BucketAddress] = set()  # whose versions of the cache the log has

    def listing(self, address: BucketAddress) -> Listing:
        """What is at an address. Raises BucketError where it cannot be asked at all."""
        if address not in self._listings:
            self._listings[address] = Listing(address)
        return self._listings[address]

    async def versions(self, address: BucketAddress) -> dict[int, Path]:
        """The versions below a base path by number, each with its place in the cache, where it need not be yet.

        Of a bucket that has not answered since the start, those that the cache holds.
        Raises BucketError: the bucket does not answer, or there is nothing.
        """
        listing = self.listing(address)
        try:
            names, objects = await listing.names()
        except _FOR_GOOD:
            raise
        except BucketError as error:
            return self._cached(listing.folder, error)
        if not names and not objects:
            raise BucketNotFound(f"{address} is not there")
        self._told.discard(address)
        numbered = version_policy.numbered(address, [name for name in names if not name.startswith(".")])
        return self._places(listing.folder, numbered)

    def _cached(self, folder: BucketFolder, error: BucketError) -> dict[int, Path]:
        address = folder.address
        found = {} if self._known(address) else {number: str(number) for number in self._cache.versions(address)}
        if not found:
            raise error
        if address not in self._told:
            self._told.add(address)
            log.warning("%s: what the cache holds of it is served, versions %s", error, ", ".join(map(str, found)))
        return self._places(folder, found)

    def _known(self, address: BucketAddress) -> bool:
        return address not in self._told and any(folder.address == address for folder, _ in self._versions.values())

    def _places(self, folder: BucketFolder, versions: dict[int, str]) -> dict[int, Path]:
        places = {number: self._cache.entry(folder.address, number).path for number in versions}
        gone = [path for path, (other, _) in self._versions.items() if other.address == folder.address]
        for path in gone:
            if path not in places.values():
                del self._versions[path]
        self._versions |= {path: (folder, versions[number]) for number, path in places.items()}
        return places

    def obtain(self, path: Path) -> Hold | None:
        """Has a version that `versions` named in the cache, whole, until what is answered is closed.

        None for a local version. Blocks until it is there. Raises ServingError where it cannot be.
        """
        source = self._versions.get(path)
        if source is None:
            return None
        folder, name = source
        objects: Sequence[Object] | None
        try:
            objects = listed(folder, name)
        except _FOR_GOOD as error:
            raise failed_precondition(str(error)) from error
        except BucketError as error:
            log.info("%s: version %s is looked for in the cache", error, name)
            objects = None
        download = Download(folder, name, objects)
        try:
            return self._cache.obtain(Entry(path), objects, download.fetch)
        except BucketError as error:
            raise unavailable(str(error)) from error
        except OSError as error:
            raise unavailable(f"{path} cannot be written: {error.strerror or error} (--model_cache_dir)") from error
        except ServingError as error:
            raise ServingError(error.code, f"{folder.address / name}: {error.message}") from error


class FetchingLoader(Generic[Loaded]):
    """The `Loader` that has a version in the cache before another loader loads it, and as long as it is loaded."""

    def __init__(self, loader: Loader[Loaded], buckets: Buckets) -> None:
        self._loader = loader
        self._buckets = buckets
        self._holds: dict[Loaded, Hold] = {}

    async def load(self, name: str, version: int, path: Path) -> Loaded:
        """See Loader.load."""
        fetch = partial(self._buckets.obtain, path)
        hold = await on_own_thread(asyncio.get_running_loop(), f"load {name} {version}", fetch)
        try:
            loaded = await self._loader.load(name, version, path)
        except BaseException:
            if hold is not None:
                hold.close()
            raise
        if hold is not None:
            self._holds[loaded] = hold
        return loaded

    async def unload(self, servable: Loaded) -> None:
        """See Loader.unload."""
        await self._loader.unload(servable)
        hold = self._holds.pop(servable, None)
        if hold is not None:
            hold.close()

    async def close(self) -> None:
        """See Loader.close."""
        await self._loader.close()

"""Fetches one version from its bucket into an empty folder, and checks it there.

Each object has the size and the tag of the listing, and the SHA-256 of the version's manifest where that names it. A
bucket shows a version while it is being written, object by object. So it counts only when what its manifest lists is
there, or without a manifest a graph, and when nothing in it has changed meanwhile.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bookserve.serving.server.models import integrity
from bookserve.serving.server.types.errors import failed_precondition, unavailable
from bookserve.serving.wire.bucket import BucketDenied, BucketError, BucketFolder, BucketRefused, Object
from bookserve.serving.wire.version_folder import GRAPHS, MANIFEST, is_inside

log = logging.getLogger(__name__)

_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between two attempts


def listed(folder: BucketFolder, name: str) -> list[Object]:
    """The objects of a version, sorted. Raises BucketError, ServingError (FAILED_PRECONDITION) for hostile names."""
    objects = sorted(folder.objects(name), key=lambda item: item.name)
    names = {item.name for item in objects}
    for item in objects:
        if not is_inside(item.name):
            raise failed_precondition(f"{folder.address / name} is refused: {item.name!r} is no path inside a version")
        parts = item.name.split("/")
        if any("/".join(parts[:count]) in names for count in range(1, len(parts))):
            raise failed_precondition(f"{folder.address / name} is refused: {item.name} lies below another object")
    return objects


class Download:
    """One version on its way."""

    def __init__(self, folder: BucketFolder, name: str, objects: Sequence[Object] | None) -> None:
        """`objects` are what the version had a moment ago, where that is known."""
        self._folder = folder
        self._name = name
        self._objects = None if objects is None else list(objects)
        self._fetched: dict[str, Object] = {}

    def fetch(self, target: Path, reserve: Callable[[int], None]) -> list[Object]:
        """Writes the version into `target`, and answers its objects. Blocks, and tries several times.

        `reserve` is told before how many bytes it has. While objects come to it in the bucket it is tried on.
        Raises ServingError: UNAVAILABLE where the bucket does not answer, or the version is not whole in it;
        FAILED_PRECONDITION where it is not what its manifest says, and what `reserve` raises. OSError where `target`
        cannot be written to.
        """
        place, began, attempts = self._folder.address / self._name, time.monotonic(), 0
        log.info("fetching %s", place)
        while True:
            try:
                if self._objects is None:
                    self._objects = listed(self._folder, self._name)
                size = sum(item.size for item in self._objects)
                reserve(size)
                self._fetch(target, self._objects)
                break
            except (BucketRefused, BucketDenied) as error:
                raise failed_precondition(str(error)) from error
            except BucketError as error:
                if attempts == len(_PAUSES_SECONDS):
                    raise unavailable(str(error)) from error
                log.info("fetching %s again in %g s: %s", place, _PAUSES_SECONDS[attempts], error)
                time.sleep(_PAUSES_SECONDS[attempts])
                attempts = 0 if self._look_again() else attempts + 1
        seconds = time.monotonic() - began
        log.info("fetched %s: %d objects, %d bytes in %.1f s", place, len(self._objects), size, seconds)
        return self._objects

    def _look_again(self) -> bool:
        """Lists the version anew, where the bucket answers; whether it is another now."""
        before = self._objects
        with suppress(BucketError):
            self._objects = listed(self._folder, self._name)
        return before != self._objects

    def _fetch(self, target: Path, objects: Sequence[Object]) -> None:
        """One attempt; what an earlier one has fetched is kept."""
        place = self._folder.address / self._name
        names = {item.name for item in objects}
        if not names & {*GRAPHS}:
            raise BucketError(f"{place} holds no model yet ({', '.join(GRAPHS)})")
        for name in self._fetched.keys() - names:
            (target / name).unlink()
            del self._fetched[name]
        sums: dict[str, Any] = {}
        for item in sorted(objects, key=lambda item: item.name != MANIFEST):  # it comes first
            if self._fetched.get(item.name) != item:
                self._fetch_object(target, item, sums)
            if item.name == MANIFEST:
                sums = integrity.listed_files(target) or {}
                if missing := sorted(sums.keys() - names):
                    raise BucketError(f"{place} lacks {missing[0]} yet, which its manifest lists")
        if listed(self._folder, self._name) != objects:
            raise BucketError(f"{place} has changed while it was fetched")

    def _fetch_object(self, target: Path, item: Object, sums: dict[str, Any]) -> None:
        path = target / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with path.open("wb") as file:
                for chunk in self._folder.chunks(item, self._name):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if item.name in sums and digest.hexdigest() != sums[item.name]:
            raise failed_precondition(
                f"{self._folder.address / self._name} is refused: {item.name} is not the file"
                f" that its manifest tells of (SHA-256 {digest.hexdigest()})"
            )
        self._fetched[item.name] = item

"""A model store in a bucket, for the gateway: its small files, copied into a local folder that looks like a store.

What the page and the API tell is read from manifests, reports, vocabularies, graphs of moderate size and
`models.config`; weights stay where they are. A thread lists the bucket again and again. A version appears by one
rename, with the files of its manifest by their SHA-256, and goes when it is gone there. A bucket that does not answer
changes nothing that was copied.
"""

import asyncio
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog

from bookserve.clients import store_contracts
from bookserve.serving.gateway import graph_outline
from bookserve.serving.wire.bucket import BucketAddress, BucketError, BucketFolder, BucketRefused, Object
from bookserve.serving.wire.version_folder import MANIFEST, is_inside

_CONFIG = "models.config"
_MAX_CONFIG_BYTES = 4 << 20
_MAX_FILE_BYTES = 16 << 20  # a larger file is left out
_MAX_VERSION_BYTES = 64 << 20  # of a version; what comes after it is left out
_FOLDERS = ("assets.extra/report/", "assets/")
_VERSION = re.compile(r"[1-9][0-9]{0,18}")
_STAGING = ".copying"  # in the folder of the copy, and no name of a model
_FIRST_SECONDS = 20.0  # that the start waits for the first copy
_MAX_PAUSE_SECONDS = 60.0  # between two questions to a bucket that does not answer

_log = structlog.get_logger()


class BucketStore:
    """Follows the store at an address, from `start` on until `close`."""

    def __init__(self, address: BucketAddress, folder: Path, seconds: float) -> None:
        """`folder` gets the copy, and is empty; `seconds` lie between two listings.

        Raises BucketError where the bucket cannot be asked at all: without the library, or a configuration.
        """
        self._folder = folder
        self._seconds = seconds
        self._root = BucketFolder(address)
        self._models: dict[str, BucketFolder] = {}
        self._config: Object | None = None  # as it was read last
        self._told: set[str] = set()  # what is wrong, as the log has it already
        self._copied = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="bucket-store", daemon=True)

    def start(self) -> None:
        """Follows the bucket on a thread; comes back when all was copied once, or after a while."""
        self._thread.start()
        self._copied.wait(_FIRST_SECONDS)

    def close(self) -> None:
        """Follows it no more."""
        self._closed.set()
        self._thread.join(1)

    def copy(self) -> None:
        """Makes the folder what the bucket is now. Raises BucketError; what was copied before it is there."""
        names, objects = asyncio.run(self._root.names())
        models = {name for name in names if store_contracts.is_name(name)}
        faults = set()
        for name in sorted(models):
            try:
                faults |= self._copy_model(name)
            except OSError as error:  # a BucketError, or a disk that is full
                faults.add(str(error))
        self._remove(self._folder, models | {_CONFIG, _STAGING})
        self._copy_config(next((item for item in objects if item.name == _CONFIG), None))
        if faults:
            raise BucketError("; ".join(sorted(faults)[:5]))

    def _copy_model(self, model: str) -> set[str]:
        """Copies the versions that are new; what is wrong with those that could not be."""
        source = self._models.setdefault(model, BucketFolder(self._root.address / model))
        names, _ = asyncio.run(source.names())
        versions = {name for name in names if _VERSION.fullmatch(name)}
        faults = set()
        for version in sorted(versions, key=int, reverse=True):
            target = self._folder / model / version
            if (target / MANIFEST).exists():
                continue
            try:
                if not self._copy_version(source, version, target):
                    target.mkdir(parents=True, exist_ok=True)  # without a manifest there is nothing to tell of it
            except OSError as error:
                faults.add(str(error))
        self._remove(self._folder / model, versions)
        return faults

    def _copy_version(self, source: BucketFolder, version: str, target: Path) -> bool:
        """Copies what is wanted of a version; false where it has no manifest, or not yet. Raises BucketError."""
        objects = {item.name: item for item in source.objects(version)}
        manifest = objects.get(MANIFEST)
        if manifest is None:
            return False
        staging = self._folder / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        if manifest.size > store_contracts.MAX_MANIFEST_BYTES:
            raise BucketRefused(f"{source.address}/{version} has a manifest of {manifest.size} bytes")
        sums = _sums(_fetch(source, version, manifest, staging).read_bytes())
        for item in _wanted(objects):
            written = _fetch(source, version, item, staging)
            if item.name in sums and hashlib.sha256(written.read_bytes()).hexdigest() != sums[item.name]:
                raise BucketRefused(f"{source.address}/{version}/{item.name} is not the file that the manifest lists")
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.rmdir()
        staging.rename(target)
        return True

    def _copy_config(self, item: Object | None) -> None:
        if item == self._config:
            return
        text = self._root.read(_CONFIG, _MAX_CONFIG_BYTES) if item is not None else None
        new = self._folder / f"{_STAGING}.config"
        new.write_bytes(text or b"")
        new.replace(self._folder / _CONFIG)
        self._config = item

    @staticmethod
    def _remove(folder: Path, but: set[str]) -> None:
        """Removes what is no longer in the bucket."""
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in but and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self) -> None:
        pause = self._seconds
        while not self._closed.is_set():
            try:
                self.copy()
            except Exception as error:  # the thread goes on, whatever a bucket brings
                self._tell({str(error) if isinstance(error, OSError) else repr(error)})
                pause = min(max(1.0, 2 * pause), _MAX_PAUSE_SECONDS)
            else:
                self._tell(set())
                pause = self._seconds
            self._copied.set()
            self._closed.wait(pause)

    def _tell(self, faults: set[str]) -> None:
        """Logs what is wrong, once, and that it is no more."""
        for fault in sorted(faults - self._told):
            _log.warning("bucket", store=str(self._root.address), fault=fault)
        if self._told and not faults:
            _log.info("bucket answers again", store=str(self._root.address))
        self._told = faults


def _wanted(objects: dict[str, Object]) -> Iterator[Object]:
    """Which objects of a version are copied beside its manifest."""
    left = _MAX_VERSION_BYTES
    graphs = [name for name in graph_outline.FILES if name in objects][:1]
    told = sorted(name for name in objects if name.startswith(_FOLDERS) and is_inside(name))
    for name in (*told, *graphs):
        item = objects[name]
        if item.size <= min(left, _MAX_FILE_BYTES):
            left -= item.size
            yield item


def _fetch(source: BucketFolder, version: str, item: Object, folder: Path) -> Path:
    path = folder / item.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for chunk in source.chunks(item, version):
            file.write(chunk)
    return path


def _sums(manifest: bytes) -> dict[str, str]:
    """The SHA-256 of each file that a manifest lists; none where it cannot be read."""
    try:
        files = json.loads(manifest)["files"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}

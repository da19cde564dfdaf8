"""`bookserve models pack` and `unpack`: a version as one file, with the same bytes for the same version everywhere.

A tar file in the POSIX form (ustar), compressed by gzip: plain files alone, the manifest first, then by name, all with
the time 0, the owner 0 and the mode 0644. What was put beside the manifest's files by hand is left out, but for the
signature. The same version gives the same bytes wherever zlib is the same.

Unpacking reads the archive twice: all of it is checked before anything is written.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from bookserve.export import durable, manifest
from bookserve.export.errors import StoreError
from bookserve.export.life import arrival
from bookserve.export.life.arrival import Arrived
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire import version_folder

MAX_BYTES = 10 << 30  # that an archive may hold, unless said otherwise
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LEVEL = 6  # of gzip, its default
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


def pack(store: ModelStore, model: str, version: int | None, path: Path) -> list[str]:
    """Write a version into the file `path`, whole or not at all; returns what was left out.

    Raises:
        StoreError: no such version, it has no manifest, its files are not those of the manifest, or `path` cannot be
            written.
    """
    folder, found, names = contents(store, model, version)
    try:
        with durable.new_file(path) as file, gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as stream:
            for name in names:
                _write(stream, f"{found.model}/{found.version}/{name}", folder / name)
            stream.write(b"\0" * (2 * _BLOCK))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    return sorted(manifest.digests(folder).keys() - {*names})


def contents(store: ModelStore, model: str, version: int | None) -> tuple[Path, Manifest, list[str]]:
    """What of a version travels: its folder, its manifest, and the names of its files, the manifest first.

    Raises:
        StoreError: no such version, it has no manifest, or its files are not those of the manifest.
    """
    folder = store.path(model, version)
    found = manifest.read(folder)
    if any(entry.is_symlink() for entry in folder.rglob("*")):
        raise StoreError(f"{folder} has links, which no archive holds: copy the files")
    wrong = manifest.changed_files(folder, found)
    if wrong:
        raise StoreError(f"{folder} is not as published ({', '.join(wrong)}): see 'bookserve models verify {model}'")
    signed = {version_folder.SIGNATURE} if (folder / version_folder.SIGNATURE).is_file() else set()
    return folder, found, [manifest.LOCATION, *sorted({*found.files, *signed})]


def _write(stream: gzip.GzipFile, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    try:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    except ValueError as error:
        raise StoreError(f"{path} does not fit into a tar file of the POSIX form: {error}") from error
    with path.open("rb") as source:
        left = info.size
        while left and (chunk := source.read(min(_CHUNK, left))):
            stream.write(chunk)
            left -= len(chunk)
    if left:
        raise StoreError(f"{path} became shorter while it was packed")
    stream.write(b"\0" * (-info.size % _BLOCK))


def unpack(
    store: ModelStore,
    path: Path,
    model: str | None = None,
    max_bytes: int = MAX_BYTES,
    public_key: Path | None = None,
) -> Arrived:
    """Publish the version in the archive `path` as a version of `model`, by default of the model that it names.

    See arrival.py for its number. With `public_key` it must be signed with that.

    Raises:
        StoreError: the archive is none, is damaged, too large or not signed, or holds what no version does; or the
            store cannot be written. Nothing is published.
    """
    try:
        found, text = _check(path, max_bytes)

        def write(folder: Path) -> None:
            for name, _, stream in _members(path, max_bytes):
                _extract(_inside(name, found, path), stream, found, path, folder)

        return arrival.take_in(store, found, text, write, model, public_key)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise StoreError(f"{path} is damaged, or no archive of a version: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be unpacked to {store.root}: {error.strerror or error}") from error


def _check(path: Path, max_bytes: int) -> tuple[Manifest, bytes]:
    """The manifest of an archive, and its text, after a look at everything in it."""
    found, text, seen = None, b"", set()
    for name, size, stream in _members(path, max_bytes):
        if found is None:
            if not name.endswith(f"/{manifest.LOCATION}") or size > version_folder.MAX_MANIFEST_BYTES:
                raise StoreError(f"{path} is no archive of a version: its first file is {name}, not a manifest")
            text = stream.read(size)
            found = arrival.read_manifest(text, path)
        inside = _inside(name, found, path)
        if inside in seen:
            raise StoreError(f"{path} holds {inside} twice")
        seen.add(inside)
        if inside in found.files:
            arrival.check_sum(inside, _sha256(stream), found, path)
    if found is None:
        raise StoreError(f"{path} is empty")
    missing = sorted(found.files.keys() - seen)
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}, which its manifest lists")
    return found, text


def _members(path: Path, max_bytes: int) -> Iterator[tuple[str, int, "_Part"]]:
    """Name, size and content of each file in an archive, in order; what is not read of one is passed over."""
    total = 0
    with gzip.open(path) as stream:
        while (header := _exactly(stream, _BLOCK)) != b"\0" * _BLOCK:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            if info.type not in _FILES:
                raise StoreError(f"{path}: {info.name} is no plain file, but a link, folder, device or extension")
            total += info.size
            if total > max_bytes:
                raise StoreError(f"{path} holds more than {max_bytes} bytes: --max-bytes allows more")
            part = _Part(stream, info.size)
            yield info.name, info.size, part
            part.skip()
            _exactly(stream, -info.size % _BLOCK)
        # The end is filled with zeros, and after them stands gzip's sum of all that was read.
        if len(stream.read(tarfile.RECORDSIZE + 1)) > tarfile.RECORDSIZE:
            raise StoreError(f"{path} has more in it after its end")


class _Part:
    """The content of one file of an archive."""

    def __init__(self, stream: gzip.GzipFile, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, most: int) -> bytes:
        """The next bytes, "" at the end. Raises EOFError where the archive ends before."""
        data = _exactly(self._stream, min(most, self._left))
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Pass over what was not read."""
        while self.read(_CHUNK):
            pass


def _exactly(stream: gzip.GzipFile, size: int) -> bytes:
    whole = io.BytesIO()
    while whole.tell() < size:
        data = stream.read(size - whole.tell())
        if not data:
            raise EOFError("it is cut short")
        whole.write(data)
    return whole.getvalue()


def _inside(name: str, found: Manifest, path: Path) -> str:
    """The name inside the version of a file that the archive holds."""
    prefix = f"{found.model}/{found.version}/"
    inside = name.removeprefix(prefix)
    if inside == name:
        raise StoreError(f"{path}: {name} is not below {prefix}")
    arrival.check_name(inside, path)
    if inside not in found.files and inside not in (manifest.LOCATION, version_folder.SIGNATURE):
        raise StoreError(f"{path}: {inside} is not in the manifest")
    return inside


def _sha256(stream: _Part) -> str:
    digest = hashlib.sha256()
    while data := stream.read(_CHUNK):
        digest.update(data)
    return digest.hexdigest()


def _extract(name: str, stream: _Part, found: Manifest, path: Path, folder: Path) -> None:
    target, digest = folder / name, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while data := stream.read(_CHUNK):
            digest.update(data)
            file.write(data)
    arrival.check_sum(name, digest.hexdigest(), found, path)

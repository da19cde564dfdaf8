"""`bookserve models push` and `pull` of a bucket: a version as the folder `ADDRESS/NAME/VERSION/`, which servers read.

The manifest is written last and only where there is none, so a version counts when it is whole, and no other version is
replaced. What a bucket answers is checked like an archive: names, sizes, and each SHA-256 of the manifest.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from bookserve.export import manifest
from bookserve.export.errors import StoreError
from bookserve.export.life import archive, arrival
from bookserve.export.life.arrival import Arrived
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire.bucket import BucketAddress, BucketError, BucketFolder, Object, ObjectTaken
from bookserve.serving.wire.version_folder import MAX_MANIFEST_BYTES, SIGNATURE

Tell = Callable[[str], None]  # shows a line


def push(store: ModelStore, model: str, version: int | None, address: BucketAddress, tell: Tell) -> bool:
    """Copy a version, by default the newest, to `ADDRESS/NAME/VERSION/`; False where the same is there already.

    Raises:
        StoreError: no such version, or it is not as published; another one is there; or the bucket does not take it.
    """
    folder, found, (first, *names) = archive.contents(store, model, version)
    place = address / found.model / str(found.version)
    text = (folder / first).read_bytes()
    try:
        target = BucketFolder(place)
        if _is_there(target, text):
            return False
        sizes = {name: (folder / name).stat().st_size for name in names}
        left = {item.name for item in target.objects() if sizes.get(item.name) == item.size}  # by a killed push
        foreign = sorted({item.name for item in target.objects()} - left)
        if foreign:
            raise StoreError(f"{place} has another version, without a manifest: {foreign[0]}")
        for number, name in enumerate(names, 1):
            tell(f"{number} of {len(names) + 1}: {name}, {sizes[name]} bytes")
            target.write(name, folder / name)
        tell(f"{len(names) + 1} of {len(names) + 1}: {first}")
        target.write(first, text, new=True)
    except ObjectTaken:
        if not _is_there(target, text):
            raise
    except BucketError as error:
        raise StoreError(str(error)) from error
    return True


def _is_there(target: BucketFolder, text: bytes) -> bool:
    """Whether that version is there. Raises StoreError where another one is, BucketError."""
    there = target.read(manifest.LOCATION, MAX_MANIFEST_BYTES)
    if there is not None and there != text:
        raise StoreError(f"{target.address} is another version: nothing is replaced. Push elsewhere")
    return there is not None


def pull(
    store: ModelStore,
    address: BucketAddress,
    tell: Tell,
    model: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    public_key: Path | None = None,
) -> Arrived:
    """Publish the version at `address`, or the newest in the folder of a model there, as a version of `model`.

    Raises:
        StoreError: there is none, it is larger than `max_bytes`, is not what its manifest says or not signed; or the
            bucket or the store does not do. Nothing is published.
    """
    try:
        source = BucketFolder(address if address.name.isdigit() else _newest(address))
        place = source.address
        text = source.read(manifest.LOCATION, MAX_MANIFEST_BYTES)
        if text is None:
            raise StoreError(f"{place} has no manifest ({manifest.LOCATION}): is it NAME or NAME/VERSION of a store?")
        found = arrival.read_manifest(text, place)
        objects = {item.name: item for item in source.objects() if item.name in found.files or item.name == SIGNATURE}
        missing = sorted(found.files.keys() - objects.keys())
        if missing:
            raise StoreError(f"{place} lacks {', '.join(missing)}, which its manifest lists")
        if (size := sum(item.size for item in objects.values())) > max_bytes:
            raise StoreError(f"{place} holds {size} bytes: --max-bytes allows {max_bytes}")

        def write(folder: Path) -> None:
            for number, item in enumerate(objects.values(), 1):
                tell(f"{number} of {len(objects)}: {item.name}, {item.size} bytes")
                _fetch(source, item, found, folder)
            target = folder / manifest.LOCATION
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)

        return arrival.take_in(store, found, text, write, model, public_key)
    except BucketError as error:
        raise StoreError(str(error)) from error
    except OSError as error:
        raise StoreError(f"{store.root} cannot be written: {error.strerror or error}") from error


def _newest(address: BucketAddress) -> BucketAddress:
    names, _ = asyncio.run(BucketFolder(address).names())
    versions = [name for name in names if name.isascii() and name.isdigit() and len(name) < 20]
    if not versions:
        raise StoreError(f"{address} holds no version of a model: give the address of NAME or NAME/VERSION")
    return address / max(versions, key=int)


def _fetch(source: BucketFolder, item: Object, found: Manifest, folder: Path) -> None:
    target, digest = folder / item.name, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for chunk in source.chunks(item):
            digest.update(chunk)
            file.write(chunk)
    arrival.check_sum(item.name, digest.hexdigest(), found, source.address)

"""A version that comes from elsewhere, as an archive, from a bucket or a registry: which number it gets here.

It keeps its number where that is free, and becomes the next version of the model where another has it. It is written
into a folder that nobody looks for, checked, and appears in one rename.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bookserve.export import manifest
from bookserve.export.errors import StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire import version_folder, version_signature
from bookserve.serving.wire.version_signature import SignatureError


@dataclass(frozen=True)
class Arrived:
    """The version, whether it was there before, and whether it lost a signature by a new name or number."""

    model: str
    version: int
    was_there: bool = False
    signature_lost: bool = False


def read_manifest(text: bytes, source: object) -> Manifest:
    """The manifest with which a version comes, whose version and names of files are checked.

    Raises:
        StoreError: it is none, or tells of files that no version has; `source` is named in the message.
    """
    found = manifest.parse(text, f"{source}: {manifest.LOCATION}")
    if found.version < 1:
        raise StoreError(f"{source} is of version {found.version}, which is no version: 1 is the first")
    for name in found.files:
        check_name(name, source)
    return found


def check_name(name: str, source: object) -> None:
    """Raises StoreError where this is no path of a file inside a version."""
    if not version_folder.is_inside(name):
        raise StoreError(f"{source}: {name!r} is no path inside a version")


def check_sum(name: str, digest: str, found: Manifest, source: object) -> None:
    """Raises StoreError where a file that the manifest lists has another SHA-256."""
    if name in found.files and digest != found.files[name]:
        raise StoreError(f"{source}: {name} is not the file that the manifest lists (SHA-256 {digest})")


def take_in(
    store: ModelStore,
    found: Manifest,
    text: bytes,
    write: Callable[[Path], None],
    model: str | None = None,
    public_key: Path | None = None,
) -> Arrived:
    """Publish the version that `write` writes into a folder, as a version of `model`, by default of its own.

    `text` is its manifest, as it came. `write` checks what it writes. Where the store has the same version already,
    nothing is done. With `public_key` it must be signed with that.

    Raises:
        StoreError: it is not signed, or the store cannot be written. Nothing is published.
    """
    model = model or found.model
    there = store.root / model / str(found.version) / manifest.LOCATION
    if model == found.model and there.is_file() and there.read_bytes() == text:
        return Arrived(model, found.version, was_there=True)
    with store.staging(model) as folder:
        write(folder)
        if public_key is not None:
            try:
                version_signature.verify(folder, public_key, found.version, [found.model])
            except SignatureError as error:
                raise StoreError(str(error)) from error
        taken = (store.root / model / str(found.version)).exists()
        if model == found.model and not taken:
            store.take_in(model, folder, found.version)
            return Arrived(model, found.version)
        signed = folder / version_folder.SIGNATURE
        lost = signed.exists()
        signed.unlink(missing_ok=True)
        name, number = model, None if taken else found.version
        made = store.publish(name, folder, lambda version: replace(found, model=name, version=version), number)
        return Arrived(model, made.version, signature_lost=lost)

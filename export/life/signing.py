"""`bookserve models sign`: who has the private key vouches for a version, offline."""

from pathlib import Path

from bookserve.export import manifest
from bookserve.export.durable import fsync
from bookserve.export.errors import StoreError
from bookserve.export.store import ModelStore
from bookserve.serving.wire import missing_package, version_folder, version_signature


def is_encrypted(key: Path) -> bool:
    """Whether a private key in PEM form needs a password."""
    return b"ENCRYPTED" in key.read_bytes()


def sign(store: ModelStore, model: str, version: int | None, key: Path, password: bytes | None) -> Path:
    """Sign a version with a private key; returns the signature's file, which takes the place of one of before.

    Raises:
        StoreError: no such version, it is not as published, the key is none, or the library is missing.
    """
    folder = store.path(model, version)
    found = manifest.read(folder)
    if (found.model, found.version) != (model, int(folder.name)):
        raise StoreError(f"{folder} is {found.model} version {found.version} by its manifest: it was copied by hand")
    changed = manifest.changed_files(folder, found)
    if changed:
        raise StoreError(f"{folder} is not as published ({', '.join(changed)}): see 'bookserve models verify {model}'")
    try:
        from model_signing import signing
    except ModuleNotFoundError as error:
        raise StoreError(f"signing needs {missing_package.told(error, 'signing')}") from error
    with store.staging(model) as scratch:
        written = scratch / Path(version_folder.SIGNATURE).name
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
            config.set_hashing_config(version_signature.what_is_signed()).sign(folder, written)
        except Exception as error:  # whatever the libraries raise on a key or folder that they do not take
            raise StoreError(f"{folder} cannot be signed with {key}: {error}") from error
        target = folder / version_folder.SIGNATURE
        try:
            fsync(written)
            written.replace(target)
            fsync(target.parent)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    return target

"""`bookserve models push` and `pull` of a registry: a version as a ModelPack artifact of one layer, the packed archive.

The media types are those of ModelPack's specification (modelpack/model-spec, docs/spec.md), so other tools can pull it.
The archive has the same bytes for the same version, and with it the artifact the same digest. What is pulled is checked
by the digests of the artifact, and then as each archive is.
"""

import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bookserve.export.errors import StoreError
from bookserve.export.life import archive
from bookserve.export.life.arrival import Arrived
from bookserve.export.life.registry import MANIFEST_TYPE, Reference, Registry
from bookserve.export.store import ModelStore

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
LAYER = "application/vnd.cncf.model.weight.v1.tar+gzip"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK = 1 << 20
Tell = Callable[[str], None]  # shows a line


def push(
    store: ModelStore,
    model: str,
    version: int | None,
    reference: Reference,
    tell: Tell,
    labels: Sequence[str] = (),
) -> bool:
    """Copy a version, by default the newest, to a registry; False where the same is there already.

    Each of `labels` becomes a tag of the same artifact, and leaves the one that it named before.

    Raises:
        StoreError: no such version, or it is not as published; the tag names another artifact; or the registry does
            not take it.
    """
    with tempfile.TemporaryDirectory(prefix="bookserve-") as folder:
        packed, config = Path(folder) / "version.tar.gz", Path(folder) / "config.json"
        archive.pack(store, model, version, packed)
        found = store.manifest(model, version)
        layer = _descriptor(packed, LAYER)
        content = {
            "descriptor": {"name": found.model, "version": str(found.version), "createdAt": found.created},
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{_unpacked_sum(packed)}"]},
            "config": {"precision": found.precision},
        }
        config.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
        described = _descriptor(config, CONFIG)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT,
            "config": described,
            "layers": [{**layer, "annotations": {"org.cncf.model.filepath": f"{found.model}/{found.version}"}}],
        }
        text = json.dumps(manifest, sort_keys=True).encode()
        with Registry(reference, push=True) as registry:
            there = registry.manifest()
            if there not in (None, text):
                raise StoreError(f"{reference} is another artifact: nothing is replaced. Push with another tag")
            if there is None:
                tell(f"1 of 2: the version, {layer['size']} bytes")
                registry.upload(packed, layer["digest"])
                tell("2 of 2: the manifest")
                registry.upload(config, described["digest"])
                registry.tag(text)
            for label in labels:
                registry.tag(text, label)
    return there is None


def pull(
    store: ModelStore,
    reference: Reference,
    tell: Tell,
    model: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    public_key: Path | None = None,
) -> Arrived:
    """Publish the version that a tag of a registry names, as a version of `model`, by default of its own.

    Raises:
        StoreError: there is none, it is no version that `push` made, larger than `max_bytes`, not what the digests say
            or not signed; or the registry or the store does not do. Nothing is published.
    """
    with Registry(reference) as registry, tempfile.TemporaryDirectory(prefix="bookserve-") as folder:
        text = registry.manifest()
        if text is None:
            raise StoreError(f"{reference} is not there")
        digest, size = _layer(text, reference)
        if size > max_bytes:
            raise StoreError(f"{reference} holds {size} bytes: --max-bytes allows {max_bytes}")
        packed = Path(folder) / "version.tar.gz"
        tell(f"1 of 1: the version, {size} bytes")
        with packed.open("xb") as file:
            for chunk in registry.chunks(digest, size):
                file.write(chunk)
        try:
            return archive.unpack(store, packed, model, max_bytes, public_key)
        except StoreError as error:
            raise StoreError(str(error).replace(str(packed), str(reference))) from error


def _layer(text: bytes, reference: Reference) -> tuple[str, int]:
    """Digest and size of the one layer of an artifact."""
    try:
        content: Any = json.loads(text)
        (layer,) = content["layers"]
        kind, digest, size = layer["mediaType"], layer["digest"], layer["size"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise StoreError(f"{reference} is no version that 'bookserve models push' made: {error!r}"[:500]) from error
    wrong = not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0
    if kind != LAYER or wrong:
        raise StoreError(f"{reference} is no version that 'bookserve models push' made: its layer is {kind!r}"[:500])
    return digest, size


def _descriptor(path: Path, kind: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": path.stat().st_size}


def _unpacked_sum(path: Path) -> str:
    """The SHA-256 of the archive without its compression."""
    sums, inflate = hashlib.sha256(), zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sums.update(inflate.decompress(chunk))
    return sums.hexdigest()

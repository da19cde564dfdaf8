"""The manifest of a version: what was trained, on what data, how good it is and which files belong to it.

It lies in `assets.extra/manifest.json` of every version. The gateway reads the contract from it, `bookserve models` the
figures.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from bookserve.export.errors import StoreError

LOCATION = "assets.extra/manifest.json"  # inside the version folder
Metrics = dict[str, dict[str, float]]  # split -> figure -> value


@dataclass(frozen=True)
class DataOrigin:
    """Where the training rows came from: `source` is "real" or "sample", `sha256` covers the whole data set."""

    source: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One version's manifest.

    `created` is the time of publishing in ISO 8601 with its zone. `configuration` and `profile` name the numbers of the
    training. `parity` holds each output's largest difference between SavedModel and ONNX graph. `files` maps each file
    of the version, but the manifest itself, to its SHA-256.
    """

    model: str
    version: int
    created: str
    contract: str
    data: DataOrigin
    profile: str
    seed: int
    metrics: Metrics
    parity: dict[str, float]
    files: dict[str, str]
    made_with: dict[str, str]
    configuration: str = "standard"  # manifests from before there were others name none

    def to_json(self) -> str:
        """Indented JSON with a newline at its end."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def read(folder: Path) -> Manifest:
    """The manifest of a version folder.

    Raises:
        StoreError: there is none, or a field is missing or of another type; the message names it.
    """
    path = folder / LOCATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{folder} has no manifest ({LOCATION})") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    values = _fields(content, Manifest, path)
    values["data"] = DataOrigin(**_fields(values["data"], DataOrigin, path))
    return Manifest(**values)


def digests(folder: Path) -> dict[str, str]:
    """Path inside `folder` -> SHA-256, sorted, of every file but the manifest."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != LOCATION:
            with path.open("rb") as stream:
                result[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return result


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a version that are missing, changed or not in its manifest, sorted; empty when it is intact."""
    actual = digests(folder)
    return sorted(
        name for name in actual.keys() | manifest.files.keys() if actual.get(name) != manifest.files.get(name)
    )


def _fields(content: Any, kind: type[Any], path: Path) -> dict[str, Any]:
    """The values of a dataclass's fields in a JSON object; each must be there and of the field's outer type."""
    if not isinstance(content, dict):
        raise StoreError(f"{path}: {kind.__name__} is no JSON object")
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in content:
            if field.default is not dataclasses.MISSING:
                continue
            raise StoreError(f"{path}: the field '{field.name}' is missing")
        value = content[field.name]
        expected = dict if dataclasses.is_dataclass(field.type) else get_origin(field.type) or field.type
        if type(value) is not expected:
            raise StoreError(f"{path}: the field '{field.name}' is {json.dumps(value)[:60]}, not of type {expected}")
        if get_args(field.type) == (str, str) and not all(isinstance(item, str) for item in value.values()):
            raise StoreError(f"{path}: the field '{field.name}' holds a value that is no text")
        values[field.name] = value
    return values

"""The manifest of a version: its contract, where it came from, how good it is and which files belong to it.

It lies in `assets.extra/manifest.json` of every version; `manifest.schema.json` beside this module describes it. The
gateway and the clients read the contract from it, `bookserve models` the figures, the model server the sums of the
files.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from bookserve.export.contracts import Contract, ContractError, from_json, to_json
from bookserve.export.errors import StoreError
from bookserve.serving.wire import version_folder

SCHEMA = 2  # of what is written here; 1, without the field, had only the contract's name
LOCATION = version_folder.MANIFEST  # inside the version folder
Metrics = dict[str, dict[str, float]]  # split -> figure -> value


@dataclass(frozen=True)
class DataOrigin:
    """Where the training rows came from: `source` is "real", "sample", or "own" for a user's own data.

    `sha256` covers the whole data set.
    """

    source: str
    name: str
    sha256: str


@dataclass(frozen=True)
class DataCard:
    """What the rows of a training are.

    `rows`: split -> rows. `classes`: split -> class -> rows, or label -> rows that have it. `missing`: split -> label
    -> rows without a value. `ranges`: a quantity -> its smallest, median and largest value in the training rows.
    `duplicates`: "test in train" -> test rows that also stand in the training rows. `division` says how the splits were
    made; `left_out` counts what could not be used, and `left_out_first` tells of the first of it. `distributions`: a
    quantity of the inputs -> its "edges" and the "counts" of training rows between them (`drift.py`).
    """

    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    missing: dict[str, dict[str, int]]
    ranges: dict[str, list[float]]
    duplicates: dict[str, int]
    division: str
    left_out: int
    left_out_first: list[str]
    distributions: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """The splits in the order of a training."""
        known = ("train", "valid", "test")
        return sorted(self.rows, key=lambda name: (*known, name).index(name))


@dataclass(frozen=True)
class Source:
    """The file or folder that a version was made from: `format` such as "onnx" or "scikit-learn".

    `sha256` covers the file, or the names and contents of a folder's files.
    """

    format: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Quantization:
    """How the int8 graph of a version was made from the float graph of `version`, and what it is worth.

    `method` is "static" or "dynamic"; `calibration` tells how the range of each activation was chosen from
    `calibration_rows` rows, whose inputs have the sum `calibration_sha256`. `float_nodes` stay in float. `figure` was
    measured on `rows` held-out rows: `float32`, `int8`, their `difference`, its 95 % `interval` (empty where chance has
    no part in it), and the `loss` as a fraction of `float32`, of which `max_loss` was allowed. `bytes` are those of the
    graphs, `rates` the rows a second of one core of `processor`: batch -> "float32", "int8" and "speed_up".
    """

    version: int
    method: str
    calibration: str
    calibration_rows: int
    calibration_sha256: str
    float_nodes: list[str]
    figure: str
    rows: int
    float32: float
    int8: float
    difference: float
    interval: list[float]
    loss: float
    max_loss: float
    bytes: dict[str, int]
    rates: dict[str, dict[str, float]]
    processor: str


@dataclass(frozen=True)
class HalfPrecision:
    """How far the graph of 16 bits of a version may be from the float32 graph of `version`, by which it was made.

    Both were asked `rows` rows (`drawn` at random, or given) on the CPU `processor`. `tolerance` is the allowed
    difference as a fraction of an output's largest value; the manifest's `parity` has the differences found. `bytes`
    are those of the graphs.
    """

    version: int
    tolerance: float
    rows: int
    drawn: bool
    bytes: dict[str, int]
    processor: str


@dataclass(frozen=True)
class Manifest:
    """One version's manifest.

    `created` is the time when the training was started, for a model made elsewhere that of publishing, in ISO 8601 with
    its zone. `parity` holds each output's largest difference between the source and the graphs of the version. `files`
    maps each file of the version, but the manifest itself, to its SHA-256. `rows_independent` is what its packager
    declared: whether no row of a request changes another row's outputs. It is None where nobody said; the model server
    then proves it of an ONNX graph by itself, at each load. `configuration`, `profile`, `seed`, `config` (its numbers),
    `data` and `data_card` tell of a training, `source` of a model that was made elsewhere, `quantization` of an int8
    graph (`precision` "int8"), `float16` or `bfloat16` of a graph of that precision.
    """

    model: str
    version: int
    created: str
    contract: Contract
    parity: dict[str, float]
    files: dict[str, str]
    made_with: dict[str, str]
    metrics: Metrics = dataclasses.field(default_factory=dict)
    data: DataOrigin | None = None
    data_card: DataCard | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    profile: str = ""
    seed: int | None = None
    configuration: str = "standard"  # manifests from before there were others name none
    rows_independent: bool | None = None
    precision: str = "float32"
    source: Source | None = None
    quantization: Quantization | None = None
    float16: HalfPrecision | None = None
    bfloat16: HalfPrecision | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Indented JSON with a newline at its end; what is not known is left out."""
        content = {"schema": self.schema, **dataclasses.asdict(self), "contract": to_json(self.contract)}
        known = {name: value for name, value in content.items() if value is not None}
        return json.dumps(known, indent=2, allow_nan=False) + "\n"


_PARTS: dict[str, type[Any]] = {
    "data": DataOrigin,
    "data_card": DataCard,
    "source": Source,
    "quantization": Quantization,
    "float16": HalfPrecision,
    "bfloat16": HalfPrecision,
}


def read(folder: Path) -> Manifest:
    """The manifest of a version folder.

    Raises:
        StoreError: there is none, or a field is missing or of another type; the message names it.
    """
    path = folder / LOCATION
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{folder} has no manifest ({LOCATION})") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return parse(text, path)


def parse(text: bytes, path: object) -> Manifest:
    """The manifest with that text, which messages say to be in `path`.

    Raises:
        StoreError: as `read`.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path}: Manifest is no JSON object")
    schema = content.setdefault("schema", 1)
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise StoreError(f"{path} has the schema {schema!r}; this bookserve reads 1 to {SCHEMA}: update it")
    values = _fields(content, Manifest, path)
    for name, kind in _PARTS.items():
        if name in values:
            values[name] = kind(**_fields(values[name], kind, path))
    try:
        values["contract"] = from_json(values["contract"])
    except ContractError as error:
        raise StoreError(f"{path}: {error}") from error
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
    """The files of a version that are missing, changed or foreign, sorted; empty when it is intact.

    What the manifest does not list is foreign, but for what may lie beside its files (version_folder.py).
    """
    actual = digests(folder)
    changed = {name for name in actual.keys() | manifest.files.keys() if actual.get(name) != manifest.files.get(name)}
    return sorted(name for name in changed if name in manifest.files or not version_folder.may_lie_beside(name))


def _fields(content: Any, kind: type[Any], path: object) -> dict[str, Any]:
    """The values of a dataclass's fields in a JSON object; each must be there and of the field's outer type."""
    if not isinstance(content, dict):
        raise StoreError(f"{path}: {kind.__name__} is no JSON object")
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in content:
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                continue
            raise StoreError(f"{path}: the field '{field.name}' is missing")
        value = content[field.name]
        expected = _json_types(field.type)
        if type(value) not in expected:
            names = " or ".join(item.__name__ for item in expected)
            raise StoreError(f"{path}: the field '{field.name}' is {json.dumps(value)[:60]}, not of type {names}")
        if get_args(field.type) == (str, str) and not all(isinstance(item, str) for item in value.values()):
            raise StoreError(f"{path}: the field '{field.name}' holds a value that is no text")
        values[field.name] = value
    return values


def _json_types(declared: Any) -> tuple[type, ...]:
    """The types that JSON may have for a field; a contract may be its name alone."""
    if declared is Contract:
        return dict, str
    options = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    return tuple(
        dict if dataclasses.is_dataclass(option) else get_origin(option) or option
        for option in options
        if option is not NoneType
    )

"""`bookserve models diff`: what is different between two versions of a model.

Nothing is run: the graphs are read as messages, their operations counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from bookserve.export import contracts, graph_contract, manifest
from bookserve.export.errors import ExportError, StoreError
from bookserve.export.life import tflite_operations
from bookserve.export.manifest import Manifest
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto, NodeProto
from bookserve.serving.wire.tensorflow_pb2 import SavedModel

_ONNX = ("assets.extra/model.onnx", "model.onnx")
_SAVED_MODEL = "saved_model.pb"
_TFLITE = ("model.tflite", "assets.extra/model.tflite")
_WIDTH = 100  # of a value that is shown
Pair = list[Any]  # what the first version has and what the second one, None where it has none


@dataclass(frozen=True)
class _Side:
    """One of the two versions: path of a field -> value; file -> SHA-256, and bytes."""

    contract: dict[str, Any]
    made: dict[str, Any]
    figures: dict[str, Any]
    sums: dict[str, str]
    sizes: dict[str, int]

    @classmethod
    def of(cls, folder: Path) -> "_Side":
        found = manifest.read(folder) if (folder / manifest.LOCATION).exists() else None
        sums = manifest.digests(folder)
        return cls(
            contract=dict(_flat(_contract(folder, found))),
            made=dict(_flat(_made(found))),
            figures=dict(_flat({} if found is None else found.metrics)),
            sums=sums,
            sizes={name: (folder / name).stat().st_size for name in sums},
        )


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The differences of two version folders, as JSON: empty where there are none.

    "contract" and "made" (how it was made) map a field's path to its pair of values, "figures" split and figure,
    "operations" a graph and its operations to their pairs of counts, "files" a file's name to its sizes where its
    content differs. "bytes" is the pair of sizes, always there.

    Raises:
        StoreError: a manifest or a graph cannot be read.
    """
    before, after = (_Side.of(folder) for folder in (first, second))
    changed = [name for name, _ in _pairs(before.sums, after.sums).items()]
    graphs = [name for name in changed if name in (*_ONNX, *_TFLITE, _SAVED_MODEL)]
    operations = {name: _pairs(_operations(first / name), _operations(second / name)) for name in graphs}
    return {
        "contract": _pairs(before.contract, after.contract),
        "made": _pairs(before.made, after.made),
        "figures": _pairs(before.figures, after.figures),
        "operations": {name: counts for name, counts in operations.items() if counts},
        "bytes": [sum(before.sizes.values()), sum(after.sizes.values())],
        "files": {name: [before.sizes.get(name), after.sizes.get(name)] for name in sorted(changed)},
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """What `compare` gave in words, a line a difference."""
    for kind in ("contract", "made", "figures"):
        for path, (before, after) in told[kind].items():
            more = f" ({after - before:+.3g})" if kind == "figures" and None not in (before, after) else ""
            yield f"{kind:<11} {path}: {_shown(before)} -> {_shown(after)}{more}"
    for name, counts in told["operations"].items():
        for operation, (before, after) in counts.items():
            yield f"operations  {name}: {operation} {before or 0} -> {after or 0}"
    before, after = told["bytes"]
    change = f" ({(after - before) / before:+.1%})" if before and after != before else ""
    yield f"size        {before} -> {after} bytes{change}"
    for name, (before, after) in told["files"].items():
        if before is None or after is None:
            yield f"files       {name}: {'added' if before is None else 'gone'}, {before or after or 0} bytes"
        else:
            yield f"files       {name}: {before} -> {after} bytes" + (", other content" if before == after else "")


def _contract(folder: Path, found: Manifest | None) -> dict[str, Any]:
    try:
        told = contracts.to_json(graph_contract.of_version(folder, folder.parent.name, found))
    except ExportError as error:
        raise StoreError(str(error)) from error
    for direction in ("inputs", "outputs"):
        told[direction] = {tensor.pop("name"): tensor for tensor in told[direction]}
    return told


def _made(found: Manifest | None) -> dict[str, Any]:
    if found is None:
        return {}
    fields = ("configuration", "profile", "seed", "precision", "rows_independent", "made_with")
    told: dict[str, Any] = {name: getattr(found, name) for name in fields}
    told["data"] = None if found.data is None else f"{found.data.source}: {found.data.name} {found.data.sha256[:12]}"
    told["source"] = None if found.source is None else f"{found.source.format}: {found.source.sha256[:12]}"
    return told


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path of keys, joined by points -> value, of an object of objects; a list is one value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    names = [*first, *(name for name in second if name not in first)]
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _shown(value: Any) -> str:
    text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


def _operations(path: Path) -> dict[str, int]:
    """How often the graph has each operation, in its functions and branches too; nothing where there is no file."""
    if not path.is_file():
        return {}
    counts: Counter[str] = Counter()
    try:
        if path.name == _SAVED_MODEL:
            for graph in SavedModel.FromString(path.read_bytes()).meta_graphs:
                counts.update(node.op for node in graph.graph_def.node)
                counts.update(node.op for one in graph.graph_def.library.function for node in one.node_def)
        elif path.suffix == ".tflite":
            counts.update(tflite_operations.read(path))
        else:
            model = ModelProto.FromString(path.read_bytes())
            counts.update(_onnx_operations(model.graph.node))
            counts.update(name for one in model.functions for name in _onnx_operations(one.node))
    except (OSError, DecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return dict(sorted(counts.items()))


def _onnx_operations(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _onnx_operations(attribute.g.node)

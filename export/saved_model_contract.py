"""What a SavedModel says of its own contract: the signature to serve, and the features of the tf.Examples it parses.

Reads the protobuf alone, without TensorFlow.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.errors import ExportError
from bookserve.serving.wire import tensorflow_pb2, tensors

LOCATION = "saved_model.pb"  # inside the version folder
_SERVE = "serve"  # the tag
_INTERNAL = "__saved_model_"  # signatures that are none
_ROWS = 8


@dataclass(frozen=True)
class Feature:
    """One feature of a tf.Example: its key, its type, and its shape where it has one (dense)."""

    key: bytes
    dtype: str
    shape: tuple[int, ...]


def read(folder: Path, model: str) -> Contract:
    """The contract of the signature `serving_default`, or of the only one.

    Raises:
        ExportError: the file cannot be read, or it has no signature that can be served.
    """
    graph = _meta_graph(folder)
    signatures = {
        name: signature
        for name, signature in graph.signature_def.items()
        if not name.startswith(_INTERNAL) and signature.outputs
    }
    if SIGNATURE in signatures:
        name = SIGNATURE
    elif len(signatures) == 1:
        name = next(iter(signatures))
    else:
        known = ", ".join(sorted(signatures)) or "none"
        raise ExportError(f"{folder} has no signature '{SIGNATURE}' to serve (its signatures: {known})")
    signature = signatures[name]
    return Contract(model, 1, _tensors(signature.inputs), _tensors(signature.outputs), signature=name)


def parsed_features(folder: Path) -> list[Feature]:
    """The features of the graph's first ParseExample or ParseExampleV2; none where it parses no tf.Examples."""
    graph = _meta_graph(folder).graph_def
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            if node.op in ("ParseExample", "ParseExampleV2"):
                return list(_features(node, by_name))
    return []


def serialized_examples(features: Iterable[Feature], seed: int = 0) -> npt.NDArray[Any]:
    """Random tf.Examples with these features, serialized: an array of bytes [8]."""
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(_ROWS):
        example = tensorflow_pb2.Example()
        for feature in features:
            entry = example.features.feature[feature.key.decode()]
            size = int(np.prod(feature.shape)) if feature.shape else 1
            if feature.dtype == "object":
                entry.bytes_list.value.extend(chance.choice([b"a", b"the", b"42"], size).tolist())
            elif feature.dtype == "int64":
                entry.int64_list.value.extend(chance.integers(0, 10, size).tolist())
            else:
                entry.float_list.value.extend(chance.standard_normal(size).tolist())
        rows.append(example.SerializeToString(deterministic=True))
    return np.array(rows, dtype=object)


def _meta_graph(folder: Path) -> tensorflow_pb2.MetaGraphDef:
    path = folder / LOCATION
    try:
        saved = tensorflow_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is no SavedModel that can be read: {error}") from error
    for graph in saved.meta_graphs:
        if _SERVE in graph.meta_info_def.tags:
            return graph
    raise ExportError(f"{path} has no graph with the tag '{_SERVE}'")


def _tensors(infos: Mapping[str, Any]) -> tuple[Tensor, ...]:
    found = []
    for name in sorted(infos):
        info = infos[name]
        try:
            dtype = tensors.numpy_type(info.dtype).name
        except tensors.TensorError as error:
            raise ExportError(
                f"'{name}' is of the type {tensors.type_name(info.dtype)}, which numpy has not"
            ) from error
        sizes = () if info.tensor_shape.unknown_rank else info.tensor_shape.dim
        found.append(Tensor(name, dtype, tuple(dim.size if dim.size >= 0 else None for dim in sizes)))
    return tuple(found)


def _features(node: Any, by_name: Mapping[str, Any]) -> Iterator[Feature]:
    inputs = [name.partition(":")[0].lstrip("^") for name in node.input]
    dense_types, sparse_types = node.attr["Tdense"].list.type, node.attr["sparse_types"].list.type
    shapes = [tuple(dim.size for dim in shape.dim) for shape in node.attr["dense_shapes"].list.shape]
    if node.op == "ParseExample":  # serialized, names, sparse keys, dense keys, defaults
        sparse = [_text(by_name, name) for name in inputs[2 : 2 + len(sparse_types)]]
        start = 2 + len(sparse_types)
        dense = [_text(by_name, name) for name in inputs[start : start + len(dense_types)]]
        keys = ([key for found in sparse for key in found], [key for found in dense for key in found])
    else:  # serialized, names, sparse keys, dense keys, ragged keys, defaults
        keys = (_text(by_name, inputs[2]), _text(by_name, inputs[3]))
    for key, kind in zip(keys[0], sparse_types, strict=False):
        yield Feature(key, tensors.numpy_type(kind).name, ())
    for key, kind, shape in zip(keys[1], dense_types, shapes, strict=False):
        yield Feature(key, tensors.numpy_type(kind).name, tuple(max(size, 1) for size in shape))


def _text(by_name: Mapping[str, Any], name: str) -> list[bytes]:
    node = by_name.get(name)
    if node is None or node.op != "Const":
        return []
    values: list[bytes] = tensors.to_array(node.attr["value"].tensor).ravel().tolist()
    return values

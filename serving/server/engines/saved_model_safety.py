"""Refuses a SavedModel whose graph runs code or touches files, before TensorFlow sees it.

A SavedModel is a program. What a request or the initialisation can reach of its graph, through inputs and the functions
that nodes name, may hold the operations of `saved_model_operations.py` and no others. The saver is in every SavedModel
and writes files, but no signature reaches it; what restores the variables may read the version's own. A table may be
filled from a text file that is an asset of the version.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf.message import DecodeError

from bookserve.serving.server.engines.saved_model_operations import changes_state, is_known, why_refused
from bookserve.serving.server.types.errors import ServingError, failed_precondition
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import NodeDef

_TABLE_FILE_OPS = frozenset(("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"))
_CACHES = frozenset(("CacheDataset", "CacheDatasetV2"))  # of tf.data: in memory where their file has no name
_RESTORING = frozenset(("Restore", "RestoreV2", "RestoreSlice"))  # the loader runs these on the version's variables
_PASSING_OPS = ("Identity", "IdentityN", "Placeholder", "PlaceholderWithDefault")
_RESOURCES = ("HandleOp", "HashTable", "Variable")  # in names of operations: what is restored or filled
_IF_TRUSTED = "If you trust whoever made it, start the server with --allow_unsafe_ops"
INIT_SIGNATURE = "__saved_model_init_op"  # SavedModels of TensorFlow 2 carry their initialiser as a signature
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_ASSETS_COLLECTION = "saved_model_assets"  # where SavedModels of TensorFlow 1 name them


@dataclass(frozen=True)
class _May:
    """What one reason to run nodes allows beyond the list."""

    fill_tables: bool = False  # from assets
    restore: bool = False  # from the version's variables

    def run(self, node: NodeDef) -> bool:
        """Whether this node may run because of it; its file is checked apart."""
        return (self.restore and node.op in _RESTORING) or (self.fill_tables and node.op in _TABLE_FILE_OPS)


_ANSWERING, _INITIALISING = _May(), _May(fill_tables=True)
_RESTORING_VARIABLES = _May(fill_tables=True, restore=True)


def check(graph: tensorflow_pb2.MetaGraphDef, version_path: Path) -> None:
    """Raises ServingError (FAILED_PRECONDITION), with the operation and its node, for a graph that may not run."""
    folder = version_path.resolve()
    assets = _assets(graph)
    for asset in assets:
        if "\0" in asset.filename or not (folder / "assets" / asset.filename).resolve().is_relative_to(folder):
            raise failed_precondition(f"the SavedModel names an asset outside its folder: {asset.filename!r}")
    reach = _Reach(graph, assets)
    reach.check(_signature_roots(graph), _ANSWERING)
    reach.check(_init_roots(graph), _INITIALISING)
    if graph.saver_def.restore_op_name:
        reach.check([graph.saver_def.restore_op_name], _RESTORING_VARIABLES)


def answers_from_state(graph: tensorflow_pb2.MetaGraphDef) -> bool:
    """Whether a request may change what later ones are answered, as far as the graph tells."""
    reach = _Reach(graph, [])
    return any(changes_state(node) for _, nodes in reach.bodies(_signature_roots(graph)) for node in nodes)


def _assets(graph: tensorflow_pb2.MetaGraphDef) -> Sequence[tensorflow_pb2.AssetFileDef]:
    """As TensorFlow's loader finds them (GetAssetFileDefs of cc/saved_model/loader_util.cc)."""
    if graph.asset_file_def or _ASSETS_COLLECTION not in graph.collection_def:
        return graph.asset_file_def
    packed = graph.collection_def[_ASSETS_COLLECTION].any_list.value
    try:
        return [tensorflow_pb2.AssetFileDef.FromString(one.value) for one in packed]
    except DecodeError as error:
        raise failed_precondition(f"the SavedModel's {_ASSETS_COLLECTION} cannot be read: {error}") from error


def _signature_roots(graph: tensorflow_pb2.MetaGraphDef) -> Iterator[str]:
    for name, definition in graph.signature_def.items():
        for info in (*definition.inputs.values(), *definition.outputs.values()) if name != INIT_SIGNATURE else ():
            match info.WhichOneof("encoding"):
                case "name":
                    yield info.name
                case "coo_sparse":
                    yield from (
                        info.coo_sparse.values_tensor_name,
                        info.coo_sparse.indices_tensor_name,
                        info.coo_sparse.dense_shape_tensor_name,
                    )


def _init_roots(graph: tensorflow_pb2.MetaGraphDef) -> Iterator[str]:
    """What the loader runs once, with the paths of the assets fed."""
    if INIT_SIGNATURE in graph.signature_def:
        yield from (info.name for info in graph.signature_def[INIT_SIGNATURE].outputs.values())
    for name in _INIT_COLLECTIONS:
        if name in graph.collection_def:
            yield from graph.collection_def[name].node_list.value


@dataclass
class _Place:
    """The graph, or a function of it, and its nodes by name."""

    name: str
    nodes: Mapping[str, NodeDef]
    is_function: bool


class _Reach:
    """The nodes and functions of a graph, and what of them can be reached."""

    def __init__(self, graph: tensorflow_pb2.MetaGraphDef, assets: Iterable[tensorflow_pb2.AssetFileDef]) -> None:
        library = graph.graph_def.library
        self._nodes = {node.name: node for node in graph.graph_def.node}
        self._assets = {_node_of(asset.tensor_info.name) for asset in assets}
        self._checkpoint = {_node_of(graph.saver_def.filename_tensor_name)} - {""}
        self._functions = {function.signature.name: function.node_def for function in library.function}
        # What may run in a function's place: its gradient, and what implements the same interface.
        self._stand_ins: dict[str, set[str]] = {name: set() for name in self._functions}
        for gradient in library.gradient:
            self._stand_ins.setdefault(gradient.function_name, set()).add(gradient.gradient_func)
        interfaces: dict[bytes, set[str]] = {}
        for function in library.function:
            if "api_implements" in function.attr:
                interfaces.setdefault(function.attr["api_implements"].s, set()).add(function.signature.name)
        for names in interfaces.values():
            for name in names:
                self._stand_ins[name] |= names
        self._fillers = self._functions_that_run(_TABLE_FILE_OPS)
        self._restorers = self._functions_that_run(_RESTORING)

    def check(self, roots: Iterable[str], may: _May) -> None:
        """Raises ServingError (FAILED_PRECONDITION) when the roots reach what may not run."""
        for name, nodes in self.bodies(roots):
            if name is None:
                place = _Place("the graph", self._nodes, is_function=False)
            else:
                place = _Place(f"function {name}", {node.name: node for node in nodes}, is_function=True)
            for node in nodes:
                self._check(node, place, may)

    def bodies(self, roots: Iterable[str]) -> Iterator[tuple[str | None, Sequence[NodeDef]]]:
        """What the roots reach: nodes of the graph (with None), then the bodies of functions (with their names)."""
        reached = list(self._from(roots))
        yield None, reached
        seen: set[str] = set()
        waiting = [name for node in reached for name in self._called(node)]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            yield name, self._functions[name]
            waiting += [called for node in self._functions[name] for called in self._called(node)]

    def _from(self, roots: Iterable[str]) -> Iterator[NodeDef]:
        seen: set[str] = set()
        waiting = [_node_of(root) for root in roots]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self._nodes:
                continue
            seen.add(name)
            yield self._nodes[name]
            waiting += [_node_of(source) for source in self._nodes[name].input]

    def _called(self, node: NodeDef) -> set[str]:
        """The functions that a node may run."""
        names = {node.op}
        for value in node.attr.values():
            match value.WhichOneof("value"):
                case "func":
                    names.add(value.func.name)
                case "list":
                    names.update(function.name for function in value.list.func)
        for name in list(names):
            names |= self._stand_ins.get(name, set())
        return names & self._functions.keys()

    def _functions_that_run(self, operations: frozenset[str]) -> set[str]:
        """One of these operations, themselves or through others."""
        found = {name for name, body in self._functions.items() if any(node.op in operations for node in body)}
        if not found:
            return found
        calls = {name: {one for node in body for one in self._called(node)} for name, body in self._functions.items()}
        while more := {name for name, called in calls.items() if name not in found and called & found}:
            found |= more
        return found

    def _check(self, node: NodeDef, place: _Place, may: _May) -> None:
        called = self._called(node)
        if (node.op not in self._functions or is_known(node.op)) and not may.run(node):
            reason = why_refused(node)
            if node.op in _TABLE_FILE_OPS:
                reason = "reads a file each time that it is asked"
            if node.op in _CACHES and not _is_empty_text(node.input[1:2], place):
                reason = "keeps a data set in a file"
            if reason is not None:
                raise _refused(node, place, reason)
        # Of what restores or fills, the path alone is text; a function's call passes on whatever it is given.
        if node.op in _TABLE_FILE_OPS or called & self._fillers:
            self._check_sources(node, place, self._assets, "fills a table from a file that is no asset of the version")
        if node.op in _RESTORING:
            self._check_source(node.input[:1], node, place, self._checkpoint, _ELSEWHERE)
        elif called & self._restorers:
            self._check_sources(node, place, self._checkpoint | self._assets, _ELSEWHERE)

    def _check_sources(self, node: NodeDef, place: _Place, own: set[str], reason: str) -> None:
        self._check_source([tensor for tensor in node.input if not tensor.startswith("^")], node, place, own, reason)

    def _check_source(self, tensors: Iterable[str], node: NodeDef, place: _Place, own: set[str], reason: str) -> None:
        for tensor in tensors:
            if not (_is_resource_of_call(tensor, place) or self._is_own(_node_of(tensor), place, own)):
                raise _refused(node, place, reason)

    def _is_own(self, name: str, place: _Place, own: set[str]) -> bool:
        """Whether a tensor is one of the version's own paths, or a resource; callers answer for arguments."""
        for _ in range(len(place.nodes) + 1):
            if not place.is_function and name in own:
                return True
            node = place.nodes.get(name)
            if node is None:
                return place.is_function
            if any(word in node.op for word in _RESOURCES) and node.op != "ReadVariableOp":
                return True
            if node.op == "ReadVariableOp" and not place.is_function and node.input:
                return own >= self._assets and self._holds_an_asset(_node_of(node.input[0]))
            if node.op not in _PASSING_OPS or not node.input:
                return False
            name = _node_of(node.input[0])
        return False

    def _holds_an_asset(self, handle: str) -> bool:
        """Whether a variable of the graph, in which TensorFlow 2 keeps the path of an asset, can hold nothing else."""
        mine = self._nodes.get(handle)
        if mine is None or mine.op != "VarHandleOp" or "shared_name" not in mine.attr:
            return False
        names, all_named = self._variables
        if names[_shared_name(mine)] != 1 or not all_named:
            return False
        return all(
            node.op in ("ReadVariableOp", "VarIsInitializedOp")
            or (node.op == "AssignVariableOp" and _node_of(node.input[1]) in self._assets)
            for node in self._users.get(handle, ())
        )

    @cached_property
    def _variables(self) -> tuple[Counter[bytes], bool]:
        """How many variables, also in functions, have each name; and whether each tells its name."""
        functions = (node for body in self._functions.values() for node in body)
        variables = [node for node in (*self._nodes.values(), *functions) if node.op == "VarHandleOp"]
        return Counter(map(_shared_name, variables)), all("shared_name" in node.attr for node in variables)

    @cached_property
    def _users(self) -> dict[str, list[NodeDef]]:
        """The nodes of the graph that take a node's tensors."""
        users: dict[str, list[NodeDef]] = {}
        for node in self._nodes.values():
            for tensor in node.input:
                if not tensor.startswith("^"):
                    users.setdefault(_node_of(tensor), []).append(node)
        return users


_ELSEWHERE = "restores variables from a checkpoint that is not the version's own"


def _refused(node: NodeDef, place: _Place, reason: str) -> ServingError:
    return failed_precondition(
        f"the SavedModel may not run: {node.op} (node '{node.name}' of {place.name}) {reason}. {_IF_TRUSTED}"
    )


def _is_resource_of_call(tensor: str, place: _Place) -> bool:
    """Whether a tensor is a resource, such as a table, that a function gives: the executor holds it to that type."""
    node = place.nodes.get(_node_of(tensor))
    if node is None or node.op not in ("PartitionedCall", "StatefulPartitionedCall"):
        return False
    number = tensor.rpartition(":")[2] if ":" in tensor else "0"
    types = node.attr["Tout"].list.type if "Tout" in node.attr else ()
    known = number.isdigit() and int(number) < len(types)
    return known and types[int(number)] == tensorflow_pb2.DT_RESOURCE


def _is_empty_text(tensors: Sequence[str], place: _Place) -> bool:
    """Whether a tensor is a constant of this graph or function, and one text without letters."""
    node = place.nodes.get(_node_of(tensors[0])) if tensors else None
    if node is None or node.op != "Const":
        return False
    value = node.attr["value"].tensor if "value" in node.attr else tensorflow_pb2.TensorProto()
    return value.dtype == tensorflow_pb2.DT_STRING and not any(value.string_val) and not value.tensor_content


def _shared_name(node: NodeDef) -> bytes:
    return (node.attr["shared_name"].s if "shared_name" in node.attr else b"") or node.name.encode()


def _node_of(tensor: str) -> str:
    """The node of "node:0", "^node" or, in a function, "node:output:0"."""
    return tensor.removeprefix("^").partition(":")[0]

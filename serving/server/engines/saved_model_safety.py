"""Refuses a SavedModel whose graph runs code or touches files, before TensorFlow sees it.

A SavedModel is a program. What a request or the initialisation can reach of its graph, through inputs and the functions
that nodes name, may not hold an operation of the list below. The saver is in every SavedModel and writes files, but no
signature reaches it; what restores the variables may read them. A table may be filled from a text file that is an asset
of the version.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import NodeDef

_NAMES = """
    PyFunc PyFuncStateless EagerPyFunc
    ReadFile WriteFile MatchingFiles WholeFileReader WholeFileReaderV2 TextLineReader TextLineReaderV2
    FixedLengthRecordReader FixedLengthRecordReaderV2 TFRecordReader TFRecordReaderV2 LMDBReader ImmutableConst
    Save SaveV2 SaveSlices MergeV2Checkpoints Restore RestoreV2 RestoreSlice LoadAndRemapMatrix GenerateVocabRemapping
    PrintV2 DebugIdentity DebugIdentityV2 DebugIdentityV3 DebugNanCount DebugNumericSummary
    CreateSummaryFileWriter CreateSummaryDbWriter WriteSummary WriteScalarSummary WriteHistogramSummary
    WriteImageSummary WriteAudioSummary WriteGraphSummary WriteRawProtoSummary ImportEvent
    FileSystemSetConfiguration RpcCall RpcServerStart RpcClient RegisterDataset RegisterDatasetV2
    DataServiceDataset DataServiceDatasetV2 DataServiceDatasetV3 DataServiceDatasetV4
    TextLineDataset FixedLengthRecordDataset FixedLengthRecordDatasetV2 TFRecordDataset TFRecordDatasetV2
    ExperimentalCSVDataset CSVDataset CSVDatasetV2 ExperimentalSqlDataset SqlDataset ExperimentalLMDBDataset
    LMDBDataset ExperimentalMatchingFilesDataset MatchingFilesDataset CacheDataset CacheDatasetV2 SnapshotDataset
    SnapshotDatasetV2 SnapshotDatasetReader SnapshotNestedDatasetReader SnapshotChunkDataset ListSnapshotChunksDataset
    SaveDataset SaveDatasetV2 LoadDataset DatasetToTFRecord ExperimentalDatasetToTFRecord DistributedSave
"""
_TABLE_FILE_OPS = frozenset(("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"))
_FILES_AND_CODE = frozenset(_NAMES.split())
_PASSING_OPS = ("Identity", "IdentityN", "Placeholder", "PlaceholderWithDefault")
_RESTORING = frozenset(("Restore", "RestoreV2", "RestoreSlice"))  # the loader runs these on the version's variables
_IF_TRUSTED = "If you trust whoever made it, start the server with --allow_unsafe_ops"
INIT_SIGNATURE = "__saved_model_init_op"  # SavedModels of TensorFlow 2 carry their initialiser as a signature
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")


def check(graph: tensorflow_pb2.MetaGraphDef, version_path: Path) -> None:
    """Raises ServingError (FAILED_PRECONDITION), with the operation and its node, for a graph that may not run."""
    folder = version_path.resolve()
    for asset in graph.asset_file_def:
        if "\0" in asset.filename or not (folder / "assets" / asset.filename).resolve().is_relative_to(folder):
            raise failed_precondition(f"the SavedModel names an asset outside its folder: {asset.filename!r}")
    reach = _Reach(graph)
    reach.check(_signature_roots(graph), _FILES_AND_CODE | _TABLE_FILE_OPS)
    reach.check(_init_roots(graph), _FILES_AND_CODE)
    if graph.saver_def.restore_op_name:
        reach.check([graph.saver_def.restore_op_name], _FILES_AND_CODE - _RESTORING)


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


class _Reach:
    """The nodes and functions of a graph, and what of them can be reached."""

    def __init__(self, graph: tensorflow_pb2.MetaGraphDef) -> None:
        library = graph.graph_def.library
        self._nodes = {node.name: node for node in graph.graph_def.node}
        self._assets = {_node_of(asset.tensor_info.name) for asset in graph.asset_file_def}
        self._bodies = {function.signature.name: function.node_def for function in library.function}
        # What may run in a function's place: its gradient, and what implements the same interface.
        self._stand_ins: dict[str, set[str]] = {name: set() for name in self._bodies}
        for gradient in library.gradient:
            self._stand_ins.setdefault(gradient.function_name, set()).add(gradient.gradient_func)
        interfaces: dict[bytes, set[str]] = {}
        for function in library.function:
            if "api_implements" in function.attr:
                interfaces.setdefault(function.attr["api_implements"].s, set()).add(function.signature.name)
        for names in interfaces.values():
            for name in names:
                self._stand_ins[name] |= names
        self._fillers = self._functions_that_fill_tables()

    def check(self, roots: Iterable[str], forbidden: frozenset[str]) -> None:
        """Raises ServingError (FAILED_PRECONDITION) when the roots reach a forbidden operation."""
        reached = list(self._from(roots))
        self._check(reached, "the graph", self._nodes, self._assets, forbidden)
        seen: set[str] = set()
        waiting = [name for node in reached for name in self._called(node)]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            body = {node.name: node for node in self._bodies[name]}
            self._check(self._bodies[name], f"function {name}", body, None, forbidden)
            waiting += [called for node in self._bodies[name] for called in self._called(node)]

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
        return names & self._bodies.keys()

    def _functions_that_fill_tables(self) -> set[str]:
        """From a file, themselves or through others."""
        found = {name for name, body in self._bodies.items() if any(node.op in _TABLE_FILE_OPS for node in body)}
        if not found:
            return found
        calls = {name: {one for node in body for one in self._called(node)} for name, body in self._bodies.items()}
        while more := {name for name, called in calls.items() if name not in found and called & found}:
            found |= more
        return found

    def _check(
        self,
        reached: Iterable[NodeDef],
        place: str,
        nodes: Mapping[str, NodeDef],
        assets: set[str] | None,
        forbidden: frozenset[str],
    ) -> None:
        """Checks nodes of the graph, or of a function's body; `assets` is None there: callers answer for arguments."""
        for node in reached:
            if node.op in forbidden:
                raise failed_precondition(
                    f"the SavedModel may not run: {node.op} (node '{node.name}' of {place}) runs code or touches files."
                    f" {_IF_TRUSTED}"
                )
            if node.op in _TABLE_FILE_OPS or self._called(node) & self._fillers:
                for tensor in node.input:
                    if not tensor.startswith("^") and not self._is_asset_or_table(_node_of(tensor), nodes, assets):
                        raise failed_precondition(
                            f"the SavedModel may not run: {node.op} (node '{node.name}' of {place}) fills a table from"
                            f" a file that is no asset of the version. {_IF_TRUSTED}"
                        )

    def _is_asset_or_table(self, name: str, nodes: Mapping[str, NodeDef], assets: set[str] | None) -> bool:
        for _ in range(len(nodes) + 1):
            if assets is not None and name in assets:
                return True
            node = nodes.get(name)
            if node is None:
                return assets is None  # an argument of the function
            if "HashTable" in node.op:
                return True
            if node.op == "ReadVariableOp" and assets is not None and node.input:
                return self._holds_an_asset(_node_of(node.input[0]))
            if node.op not in _PASSING_OPS or not node.input:
                return False
            name = _node_of(node.input[0])
        return False

    def _holds_an_asset(self, handle: str) -> bool:
        """Whether a variable of the graph, in which TensorFlow 2 keeps the path of an asset, can hold nothing else."""
        functions = (node for body in self._bodies.values() for node in body)
        variables = [node for node in (*self._nodes.values(), *functions) if node.op == "VarHandleOp"]
        names = [node.attr["shared_name"].s or node.name.encode() for node in variables if "shared_name" in node.attr]
        mine = self._nodes.get(handle)
        if mine is None or mine not in variables or "shared_name" not in mine.attr:
            return False
        if names.count(mine.attr["shared_name"].s or mine.name.encode()) != 1 or len(names) != len(variables):
            return False
        return all(
            node.op in ("ReadVariableOp", "VarIsInitializedOp")
            or (node.op == "AssignVariableOp" and _node_of(node.input[1]) in self._assets)
            for node in self._nodes.values()
            if handle in (_node_of(tensor) for tensor in node.input if not tensor.startswith("^"))
        )


def _node_of(tensor: str) -> str:
    """The node of "node:0", "^node" or, in a function, "node:output:0"."""
    return tensor.removeprefix("^").partition(":")[0]

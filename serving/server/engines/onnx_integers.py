"""Which values of an ONNX graph may be integers of 32 or 64 bits, by the graph alone.

`onnx_guards.py` asks: over such integers a division can end the process. A value counts as one until the graph says
otherwise, and an operation that no rule is about counts as one that makes them; so nothing that may be one is missed.
The names of a graph and of the graphs inside it are looked at together: where two mean different values, both count
as integers when one may be.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bookserve.serving.wire.onnx_graph_pb2 import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

INT32, INT64 = 6, 7  # TensorProto.DataType
BOTH = (INT32, INT64)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # those whose operations the rules are about
_PASSES = 30  # over the functions of a model; what they call has to be found at the latest by then
_TENSOR = 4  # AttributeProto.AttributeType

# Operations whose results, or those behind the first, are integers whatever comes in: of which kinds.
_KINDS = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "Multinomial"), (INT32,)),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "SequenceLength", "Shape", "Size"), (INT64,)),
    **dict.fromkeys(("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"), (INT64,)),
    **dict.fromkeys(("CastMap", "CategoryMapper", "DictVectorizer", "LabelEncoder"), BOTH),
}
_INT64_BEHIND_FIRST = frozenset(("MaxPool", "StringSplit", "TopK", "Unique"))
# Operations whose results have the type of another input than the first.
_LIKE = {"CastLike": 1, "OneHot": 2, "Where": 1}
# Operations whose results have the type that an attribute names, if it is there.
_TYPED_BY = {
    "Bernoulli": "dtype", "BitCast": "to", "BlackmanWindow": "output_datatype", "Cast": "to",
    "ConstantOfShape": "value", "EyeLike": "dtype", "HammingWindow": "output_datatype", "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype", "Multinomial": "dtype", "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype", "SequenceEmpty": "dtype",
}  # fmt: skip

Part = GraphProto | FunctionProto
Question = Callable[[str], bool]  # whether the value of that name may be one


def of(model: ModelProto, kinds: tuple[int, ...] = BOTH) -> list[Question]:
    """For the graph and each function of a model in their order: which of its values may be integers of these kinds."""
    parts: list[Part] = [model.graph, *model.functions]
    scopes = [_Scope(part, kinds) for part in parts]
    functions = {
        (function.domain, function.name, function.overload): scope
        for function, scope in zip(model.functions, scopes[1:], strict=True)
    }
    for _ in range(_PASSES):
        known = sum(len(scope.found) for scope in scopes)
        for scope in scopes:
            scope.look(functions)
        if sum(len(scope.found) for scope in scopes) == known:
            return [scope.found.__contains__ for scope in scopes]
    return [lambda name: True for _ in parts]


def may_result(node: NodeProto, place: int, may_be: Question, kinds: tuple[int, ...] = BOTH) -> bool:
    """Whether a result of an operation of the standard, the one at that place, may be one."""
    if node.op_type == "Constant":
        return any(_names_one(entry, kinds) for entry in node.attribute)
    attribute = _TYPED_BY.get(node.op_type)
    for entry in node.attribute:
        if entry.name == attribute:
            return _names_one(entry, kinds)
    if node.op_type in _KINDS:
        return any(kind in kinds for kind in _KINDS[node.op_type])
    if place and node.op_type in _INT64_BEHIND_FIRST:
        return INT64 in kinds
    like = _LIKE.get(node.op_type, 0)
    return like < len(node.input) and may_be(node.input[like])


class _Scope:
    """What has been found of one graph, the graphs inside it included, or of one function."""

    def __init__(self, part: Part, kinds: tuple[int, ...]) -> None:
        self.part = part
        self._kinds = kinds
        self.found: set[str] = set()

    def look(self, functions: "_Functions") -> None:
        """Looks once at every node; finds more where more is known of the functions by now."""
        self._look(self.part, functions)

    def _look(self, part: Part, functions: "_Functions") -> None:
        if isinstance(part, GraphProto):
            self.found |= set(_declared(part, self._kinds))
        for node in part.node:
            inside = [entry.g for entry in node.attribute if entry.HasField("g")]
            for graph in inside:
                self._look(graph, functions)
            called = functions.get((node.domain, node.op_type, node.overload))
            if called is not None:
                self._call(node, called)
            elif inside:  # results come from the values inside, each from one of them
                if any(info.name in self.found for graph in inside for info in graph.output):
                    self.found |= set(node.output)
            elif node.domain not in _DOMAINS:
                self.found |= set(node.output)
            else:
                is_one = self.found.__contains__
                self.found |= {
                    name for place, name in enumerate(node.output) if may_result(node, place, is_one, self._kinds)
                }

    def _call(self, node: NodeProto, called: "_Scope") -> None:
        function = called.part
        assert isinstance(function, FunctionProto)
        called.found |= {inner for outer, inner in zip(node.input, function.input, strict=False) if outer in self.found}
        self.found |= {
            outer for outer, inner in zip(node.output, function.output, strict=False) if inner in called.found
        }


_Functions = dict[tuple[str, str, str], _Scope]  # by domain, name and overload


def _pairs(outer: Iterable[str], inner: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return zip(outer, inner, strict=False)  # what is left out stands last


def _declared(graph: GraphProto, kinds: tuple[int, ...]) -> Iterator[str]:
    """The inputs and constants that may be; one whose type is not said may."""
    for info in graph.input:
        if not info.type.HasField("tensor_type") or info.type.tensor_type.elem_type in (0, *kinds):
            yield info.name
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        if tensor.data_type in kinds:
            yield tensor.name


def _names_one(entry: AttributeProto, kinds: tuple[int, ...]) -> bool:
    """Whether an attribute that says the type of a result, or its value, may say this one."""
    if entry.ref_attr_name:
        return True  # whatever the caller of the function says
    if entry.name in ("value_int", "value_ints", "sparse_value"):
        return True
    return entry.t.data_type in kinds if entry.HasField("t") else entry.i in kinds

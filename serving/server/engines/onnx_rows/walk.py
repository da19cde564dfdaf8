"""The walk through an ONNX graph that follows the rows of its inputs to its outputs.

The rows of a request are the places of the free first dimension of each input. The walk proves that each row of each
output depends on that row of the inputs, and on nothing that another row or their number decides. It runs nothing. What
it has no rule for, or is in doubt about, it refuses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bookserve.serving.server.engines.onnx_rows import graph, sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.sizes import Dim
from bookserve.serving.server.engines.onnx_rows.table import GRAPHS_INSIDE, RULES
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Rows, Value
from bookserve.serving.wire.onnx_graph_pb2 import FunctionProto, GraphProto, ModelProto, NodeProto

_OLDEST = 7  # opset; before it, operations broadcast and train in other ways
_ROUNDS = 4  # through the graph inside a loop until its values keep their shapes
_DEEPEST = 20  # functions and graphs inside each other

Scope = dict[str, Value]


# Operations whose time depends on values, not only on the size of what they get.
_OPEN_ENDED = frozenset((*GRAPHS_INSIDE, "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))


@dataclass(frozen=True)
class Reading:
    """What reading a graph tells of its runs."""

    doubt: str  # why its rows are not proved to be independent; "" where they are
    open_ended: bool  # whether how long a run takes may depend on values


def read(model: ModelProto) -> Reading:
    """Reads the graph; runs nothing."""
    return Reading(refusal(model), _open_ended(model))


def _open_ended(model: ModelProto) -> bool:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type in _OPEN_ENDED for node in nodes)


def refusal(model: ModelProto) -> str:
    """Why the rows of a model are not proved to be independent; "" where they are."""
    try:
        _Walk(model).prove()
    except Mixed as doubt:
        return str(doubt)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as fault:
        return f"the graph is not one that is understood ({type(fault).__name__}: {fault})"
    return ""


@dataclass(frozen=True)
class _Around:
    """What the nodes of one graph find around them."""

    scope: Scope
    versions: Mapping[str, int]  # of the operations, by domain
    bound: Mapping[str, Any]  # attributes of the function that the graph stands in

    def within(self, more: Scope) -> "_Around":
        """The same, as a graph inside sees it that gets `more` as its inputs."""
        return replace(self, scope=self.scope | more)


@dataclass
class _Walk:
    model: ModelProto
    functions: dict[tuple[str, str, str], FunctionProto] = field(init=False)
    depth: int = 0

    def __post_init__(self) -> None:
        self.functions = {(one.domain, one.name, one.overload): one for one in self.model.functions}

    def prove(self) -> None:
        main = self.model.graph
        versions = graph.opsets(self.model)
        if versions.get("", _OLDEST) < _OLDEST:
            raise Mixed(f"the graph has opset {versions['']}, and operations are known from {_OLDEST} on")
        scope: Scope = {}
        for name, shape in graph.inputs(main).items():
            if not shape or shape[0] is not None:
                raise Mixed(f"the input '{name}' has no free first dimension")
            dims = [
                sizes.ROWS,
                *(sizes.named(f"{name}.{axis}") if size is None else size for axis, size in enumerate(shape[1:], 1)),
            ]
            scope[name] = Value(tuple(dims), Rows(0))
        outputs = self._graph(main, _Around(scope, versions, {}))
        if not outputs:
            raise Mixed("the graph has no outputs")
        for info, value in zip(main.output, outputs, strict=True):
            if value.rows != Rows(0):
                found = "does not depend on them" if value.rows is None else "has them elsewhere"
                raise Mixed(f"the output '{info.name}' does not have one place for each row on axis 0: it {found}")

    def _graph(self, inside: GraphProto, around: _Around) -> list[Value]:
        """The outputs of a graph whose inputs are in the scope, which gets all that it makes."""
        if inside.sparse_initializer:
            raise Mixed("the graph has sparse constants")
        scope = around.scope
        for tensor in inside.initializer:
            scope[tensor.name] = graph.constant(tensor)
        for proto in inside.node:
            self._run(proto, around)
        missing = [info.name for info in inside.output if info.name not in scope]
        if missing:
            raise Mixed(f"nothing makes the output '{missing[0]}'")
        return [scope[info.name] for info in inside.output]

    def _run(self, proto: NodeProto, around: _Around) -> None:
        """Puts the results of a node into the scope."""
        node, scope = graph.node(proto, around.versions, around.bound), around.scope
        inputs = []
        for name in node.inputs:
            if name and name not in scope:
                raise Mixed(f"nothing makes its input '{name}'", node.label)
            inputs.append(scope[name] if name else None)
        self.depth += 1
        try:
            if self.depth > _DEEPEST:
                raise Mixed("graphs are inside each other too often")
            results = self._results(node, inputs, around)
            for value in results:
                _check(value)
        except Mixed as doubt:
            raise doubt if doubt.node else Mixed(str(doubt), node.label) from None
        finally:
            self.depth -= 1
        if len(results) < len(list(filter(None, node.outputs))):
            raise Mixed("it has more results than are known", node.label)
        scope.update((name, value) for name, value in zip(node.outputs, results, strict=False) if name)

    def _results(self, node: Node, inputs: Inputs, around: _Around) -> list[Value]:
        function = self.functions.get((node.domain, node.op, node.overload))
        if function is not None:
            return self._call(function, node, inputs)
        if not node.domain and node.op in GRAPHS_INSIDE:
            return _GRAPH_RULES[node.op](self, node, inputs, around)
        rule = RULES.get(node.domain, {}).get(node.op)
        if rule is None:
            raise Mixed("an operation that is not in the table of rules")
        try:
            return rule(node, inputs)
        except Mixed:
            same_for_all = all(value is None or (value.rows is None and not value.counts_rows) for value in inputs)
            if same_for_all and node.op not in _NEVER_SAME:
                return [Value(None) for _ in node.outputs]
            raise

    def _call(self, function: FunctionProto, node: Node, inputs: Inputs) -> list[Value]:
        """A function of the model's own."""
        if any(value is None for value in inputs):
            raise Mixed("a function whose input is left out")
        bound = {entry.name: graph.attribute_value(entry) for entry in function.attribute_proto}
        bound.update(node.attributes)
        inner: Scope = {name: value for name, value in zip(function.input, inputs, strict=False) if value is not None}
        around = _Around(inner, graph.opsets(function), bound)
        for proto in function.node:
            self._run(proto, around)
        return [inner[name] for name in function.output]

    def branches(self, node: Node, inputs: Inputs, around: _Around) -> list[Value]:
        """If: the same branch for all rows, or one that the graph decides."""
        (condition,) = values.as_data(inputs)
        if condition.rows is not None:
            raise Mixed("which branch runs depends on values of the rows")
        names = ["then_branch", "else_branch"]
        decided = None if condition.content is None else condition.content.flat[0]
        if isinstance(decided, bool):
            names = names[:1] if decided else names[1:]
        one, *other = (self._graph(node.attribute(name), around.within({})) for name in names)
        return [_either(*pair) for pair in zip(one, *other, strict=True)] if other else one

    def loop(self, node: Node, inputs: Inputs, around: _Around) -> list[Value]:
        """Loop: as often for all rows, until its values keep their shapes."""
        for value in inputs[:2]:
            if value is not None and (value.rows is not None or value.counts_rows):
                raise Mixed("how often it runs depends on the rows")
        body = node.attribute("body")
        names = [info.name for info in body.input]
        carried = values.as_data(inputs[2:])
        if len(carried) != len(names) - 2:
            raise Mixed("its values do not fit its graph")

        def once(states: Sequence[Value]) -> list[Value]:
            inner = around.within(dict(zip(names, [Value(()), Value(()), *states], strict=True)))
            condition, *results = self._graph(body, inner)
            if condition.rows is not None or condition.counts_rows:
                raise Mixed("how often it runs depends on the rows")
            return results

        states, collected = _until_shapes_hold(once, carried)
        return [*states, *(_stacked(one, 0) for one in collected)]

    def scan(self, node: Node, inputs: Inputs, around: _Around) -> list[Value]:
        """Scan: along another axis than that of the rows, or along it where nothing is carried from row to row."""
        if node.opset < 9:
            raise Mixed(f"a Scan of opset {node.opset}")
        body = node.attribute("body")
        names = [info.name for info in body.input]
        present = values.as_data(inputs)
        count = node.attribute("num_scan_inputs")
        states, scanned = present[: len(present) - count], present[len(present) - count :]
        axes = node.attribute("scan_input_axes") or [0] * count
        out_axes = node.attribute("scan_output_axes") or [0] * (len(body.output) - len(states))
        slices = [_without_axis(*pair) for pair in zip(scanned, axes, strict=True)]
        on_rows = [
            value.rows.on(0) for value, piece in zip(scanned, slices, strict=True) if value.rows and not piece.rows
        ]
        over_rows = on_rows[0] if on_rows else None
        if over_rows is not None:
            if any(value.rows is not None for value in slices) or any(value.rows is not None for value in states):
                raise Mixed("it goes through the rows with what has rows itself")
            if any(value.rows is None or value.rows.on(0) != over_rows for value in scanned):
                raise Mixed("it goes through rows beside what has none")
            outputs = [info.name for info in body.output]
            if _carries(body, names[: len(states)], names[len(states) :], outputs[: len(states)]):
                raise Mixed("it carries values from row to row")

        def once(carried: Sequence[Value]) -> list[Value]:
            results = self._graph(body, around.within(dict(zip(names, [*carried, *slices], strict=True))))
            if over_rows is not None and any(value.rows is not None for value in results):
                raise Mixed("it goes through the rows with what has rows itself")
            return results

        last, collected = _until_shapes_hold(once, states)
        return [*last, *(_stacked(one, axis, over_rows) for one, axis in zip(collected, out_axes, strict=True))]


_NEVER_SAME = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Dropout",
)
_GRAPH_RULES = {"If": _Walk.branches, "Loop": _Walk.loop, "Scan": _Walk.scan}


def _check(value: Value) -> None:
    """Raises Mixed where the number of rows is in a dimension that does not have the rows."""
    for axis, size in enumerate(value.shape or ()):
        if sizes.mentions_rows(size) and (value.rows is None or value.rows.axis != axis):
            raise Mixed("the size of its result depends on the number of rows")


def _until_shapes_hold(
    once: Callable[[Sequence[Value]], list[Value]], states: list[Value]
) -> tuple[list[Value], list[Value]]:
    """The states after runs of a graph, once these keep their shapes, and what each run gives besides.

    `once` answers, of the states before a run, those after it and the rest.
    """
    for _ in range(_ROUNDS):
        results = values.as_data(once([value.without_content() for value in states]))
        joined = [_either(*pair) for pair in zip(states, results[: len(states)], strict=True)]
        if all(one.shape == other.shape for one, other in zip(states, joined, strict=True)):
            return joined, results[len(states) :]
        states = joined
    raise Mixed("its values do not keep their shapes")


def _without_axis(value: Value, number: int) -> Value:
    """A slice at one place of an axis; it has no rows where they were on that axis."""
    axis = value.axis(number)
    dims = value.known_shape[:axis] + value.known_shape[axis + 1 :]
    rows = value.rows
    if rows is None or rows.axis == axis:
        return Value(dims)
    return Value(dims, rows.on(rows.axis - (1 if rows.axis > axis else 0)))


def _either(one: Value, other: Value) -> Value:
    """What is known of a value that is one of two. Raises Mixed where they have their rows elsewhere."""
    values.as_data([one, other])
    if one.rows != other.rows:
        raise Mixed("its results have their rows elsewhere, depending on which graph ran")
    if one.shape is None or other.shape is None or one.rank != other.rank:
        if one.rows is not None:
            raise Mixed("its results have more dimensions or fewer, depending on which graph ran")
        return Value(None)
    same = zip(one.shape, other.shape, strict=True)
    return Value(tuple(first if first == second else sizes.fresh() for first, second in same), one.rows)


def _stacked(value: Value, axis: int, over_rows: Rows | None = None) -> Value:
    """The results of all runs of a graph along a new axis, which is that of the rows where it went through them."""
    if value.shape is None:
        if over_rows is not None or value.rows is not None:
            raise Mixed("the shape of what it collects does not follow from the graph")
        return Value(None)
    axis = axis % (value.rank + 1)
    length: Dim = sizes.fresh() if over_rows is None else over_rows.size
    dims = (*value.shape[:axis], length, *value.shape[axis:])
    if over_rows is not None:
        return Value(dims, over_rows.on(axis))
    rows = value.rows
    return Value(dims, rows and rows.on(rows.axis + (1 if rows.axis >= axis else 0)))


def _carries(body: GraphProto, states: Sequence[str], slices: Sequence[str], results: Sequence[str]) -> bool:
    """Whether a state of a Scan depends on what it goes through, or changes at all."""
    of_slices, changed = set(slices), set[str]()
    for proto in body.node:
        if of_slices & set(proto.input) or proto.op_type in GRAPHS_INSIDE:
            of_slices.update(proto.output)
        elif proto.op_type != "Identity":
            changed.update(proto.output)
    names = {proto.output[0]: proto.input[0] for proto in body.node if proto.op_type == "Identity" and proto.input}
    for state, result in zip(states, results, strict=True):
        while result in names:
            result = names[result]
        if result != state or result in of_slices:
            return True
    return False

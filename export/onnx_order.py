"""One order and one set of names for an ONNX graph, so that the same network gives the same bytes each time.

TensorFlow and tf2onnx go by hash tables whose order changes from run to run: which node stands first, and whose name
stays where equal nodes become one. Here the outputs decide: nodes stand in the order in which the outputs need them,
and are called by their operation and its place, "Conv_0", "Conv_1". Inputs and outputs keep their names.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx


def rewrite(model: onnx.ModelProto) -> None:
    """Order and rename everything in the model's graph; what no output needs is dropped."""
    fixed = [value.name for value in (*model.graph.input, *model.graph.output)]
    _Rewriting().graph(model.graph, {name: name for name in ("", *fixed)})
    _replace(model, "opset_import", sorted(model.opset_import, key=lambda entry: entry.domain))


def sort(graph: onnx.GraphProto) -> None:
    """Put each node after those that it needs, in the graphs inside nodes, too; what no output needs is dropped."""
    for node in graph.node:
        for inner in _inside(node):
            sort(inner)
    _replace(graph, "node", list(_needed(graph)))


def drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Drop the constants that no node and no output of the graph takes, but those that a client may give."""
    used = {name for node in graph.node for name in taken(node)}
    used.update(value.name for value in (*graph.input, *graph.output))
    _replace(graph, "initializer", [tensor for tensor in graph.initializer if tensor.name in used])


class _Rewriting:
    """The numbers given so far; the graphs inside nodes go on counting."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def graph(self, graph: onnx.GraphProto, known: Mapping[str, str]) -> None:
        """Rewrite a graph; `known` maps values that have a name to it: of the graph itself, or around it."""
        for node in graph.node:
            _replace(node, "attribute", sorted(node.attribute, key=lambda attribute: attribute.name))
        names = dict(known)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        used = []
        nodes = list(_needed(graph))
        for node in nodes:
            node.name = f"{node.op_type}_{self._counts[node.op_type]}"
            self._counts[node.op_type] += 1
            for place, name in enumerate(taken(node)):
                if name in constants:
                    names.setdefault(name, f"{node.name}/{place}")
                    used.append(constants.pop(name))
            for place, name in enumerate(node.output):
                names.setdefault(name, f"{node.name}:{place}")
            for number, inner in enumerate(_inside(node)):
                inner.name = f"{node.name}_{number}"
                own = {value.name: f"{node.name}/in{place}" for place, value in enumerate(inner.input)}
                self.graph(inner, {**names, **own})
            node.input[:] = [names[name] for name in node.input]
            node.output[:] = [names[name] for name in node.output]
        for value in graph.output:
            if value.name in constants:
                names.setdefault(value.name, f"constant_{self._counts['constant']}")
                self._counts["constant"] += 1
                used.append(constants.pop(value.name))
        for tensor in used:
            tensor.name = names[tensor.name]
        for value in (*graph.input, *graph.output):
            value.name = names[value.name]
        infos = [value for value in graph.value_info if value.name in names]
        for value in infos:
            value.name = names[value.name]
        _replace(graph, "node", nodes)
        _replace(graph, "initializer", used)
        _replace(graph, "value_info", sorted(infos, key=lambda value: value.name))


def _needed(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that the outputs need, each after those that it needs."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    done: set[int] = set()
    waiting = [(value.name, False) for value in reversed(graph.output)]
    while waiting:
        name, all_there = waiting.pop()
        place = makers.get(name)
        if place is None or place in done:
            continue
        node = graph.node[place]
        if all_there:
            done.add(place)
            yield node
        else:
            waiting.append((name, True))
            waiting.extend((taken, False) for taken in reversed(list(taken(node))))


def taken(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node takes, and what the graphs inside it take from around."""
    yield from node.input
    for inner in _inside(node):
        own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
        own.update(name for one in inner.node for name in one.output)
        wanted = [name for one in inner.node for name in taken(one)] + [value.name for value in inner.output]
        yield from (name for name in wanted if name not in own)


def _inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that are attributes of a node: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _replace(message: Any, field: str, content: Iterable[Any]) -> None:
    """Set a repeated field of a message to copies of messages that may stand in it."""
    copies = [type(item).FromString(item.SerializeToString()) for item in content]
    message.ClearField(field)
    getattr(message, field).extend(copies)

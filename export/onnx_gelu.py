"""The activation GELU as one node of an ONNX graph.

tf2onnx and PyTorch's exporters write it as five to eight nodes, each of which goes over the whole tensor. ONNX Runtime
joins some of these forms, but not that with transposed rows of tf2onnx, and none with quantisation in between.

Forms: x/2 (1 + erf(x/sqrt(2))), which is x/2 (1 - erf(-x/sqrt(2))), and by tanh
x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of Hendrycks and Gimpel (2016, arXiv 1606.08415).
"""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bookserve.export import onnx_order

OPSET = 20  # the first that has Gelu
_OLDEST = 18  # since then only _CHANGED mean something else in OPSET
_CHANGED = frozenset({"DFT", "GridSample"})
_CUBE = 0.044715
_CLOSE = 1e-4  # relative, of constants that were rounded
_MOST = 4  # factors of a product that is looked at
_Product = tuple[float, list[str]]  # a constant, and the tensors that it is multiplied with


def fuse(model: onnx.ModelProto) -> int:
    """Replace every GELU of float32 in the model's graph by one node; returns how many there were.

    A graph that has one becomes one of opset 20. Graphs of opset 17 and older, and graphs inside nodes, stay as they
    are.
    """
    opset = next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset.version < _OLDEST or any(node.op_type in _CHANGED for node in model.graph.node):
        return 0
    search = _Search(model.graph)
    found = {node.output[0]: search.match(node) for node in model.graph.node if node.op_type == "Mul"}
    found = {name: match for name, match in found.items() if match is not None}
    for node in model.graph.node:
        match = found.get(node.output[0]) if node.output else None
        if match is not None:
            node.CopyFrom(helper.make_node("Gelu", [match[0]], node.output, node.name, approximate=match[1]))
    if found:
        onnx_order.sort(model.graph)
        onnx_order.drop_unused_constants(model.graph)
        opset.version = max(opset.version, OPSET)
        model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([opset]))
    return len(found)


class _Search:
    """The nodes of a graph by what they make."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {}
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and int(np.prod(tensor.dims)) == 1:
                self._constants[tensor.name] = numpy_helper.to_array(tensor).item()

    def match(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """The input of the GELU that ends with `node`, and its form as in ONNX; None where it ends none."""
        for x in self._candidates(node):
            product = self._product(node.output[0], x)
            if product is None or len(product[1]) != 2 or x not in product[1] or not _close(product[0], 0.5):
                continue
            other = product[1][1 - product[1].index(x)]
            kind, argument = self._function(self._without_one(other))
            if kind == "Erf" and self._is(argument, x, math.sqrt(0.5), [x]):
                return x, "none"
            complement, argument_below = self._function(self._from_one(other))
            if complement == "Erf" and self._is(argument_below, x, -math.sqrt(0.5), [x]):
                return x, "none"
            if kind == "Tanh" and self._is_cubic(argument, x):
                return x, "tanh"
        return None

    def _candidates(self, node: onnx.NodeProto) -> list[str]:
        """What a product of two or three factors that ends with `node` may be made of."""
        inner = [self._makers[name] for name in node.input if name in self._makers]
        names = [*node.input, *(name for one in inner if one.op_type in ("Mul", "Div") for name in one.input)]
        return [name for name in dict.fromkeys(names) if name not in self._constants]

    def _is_cubic(self, name: str, x: str) -> bool:
        """Whether `name` is sqrt(2/pi) (x + 0.044715 x^3)."""
        outer = self._product(name, x)
        if outer is None or not _close(outer[0], math.sqrt(2 / math.pi)):
            return False
        if len(outer[1]) == 1:  # x + 0.044715 x^3
            one, other = self._terms(outer[1][0])
            return (one == x and self._is(other, x, _CUBE, [x] * 3)) or (
                other == x and self._is(one, x, _CUBE, [x] * 3)
            )
        if len(outer[1]) == 2 and x in outer[1]:  # x (1 + 0.044715 x^2)
            return self._is(self._without_one(outer[1][1 - outer[1].index(x)]), x, _CUBE, [x] * 2)
        return False

    def _is(self, name: str, x: str, constant: float, tensors: list[str]) -> bool:
        product = self._product(name, x)
        return product is not None and _close(product[0], constant) and product[1] == tensors

    def _function(self, name: str) -> tuple[str, str]:
        """The operation that makes a tensor of one other, and that; both empty where none does."""
        node = self._makers.get(name)
        return ("", "") if node is None or len(node.input) != 1 else (node.op_type, node.input[0])

    def _terms(self, name: str) -> tuple[str, str]:
        """What is added up to a tensor; both empty where it is no sum."""
        node = self._makers.get(name)
        return ("", "") if node is None or node.op_type != "Add" else (node.input[0], node.input[1])

    def _without_one(self, name: str) -> str:
        """What 1 is added to; empty where it is not."""
        one, other = self._terms(name)
        for constant, rest in ((one, other), (other, one)):
            if _close(self._constants.get(constant, 0.0), 1.0):
                return rest
        return ""

    def _from_one(self, name: str) -> str:
        """What is taken from 1; empty where nothing is."""
        node = self._makers.get(name)
        if node is not None and node.op_type == "Sub" and _close(self._constants.get(node.input[0], 0.0), 1.0):
            return node.input[1]
        return ""

    def _product(self, name: str, x: str) -> _Product | None:
        """A tensor as a product, of itself where it is none; `x` is not taken apart. None where it is too long."""
        if name in self._constants:
            return self._constants[name], []
        node = None if name == x else self._makers.get(name)
        parts: list[_Product | None]
        if node is not None and node.op_type == "Mul":
            parts = [self._product(one, x) for one in node.input]
        elif node is not None and node.op_type == "Neg":
            parts = [self._product(node.input[0], x), (-1.0, [])]
        elif node is not None and node.op_type == "Div" and self._constants.get(node.input[1]):
            parts = [self._product(node.input[0], x), (1 / self._constants[node.input[1]], [])]
        elif node is not None and node.op_type == "Pow" and self._constants.get(node.input[1]) in (2.0, 3.0):
            parts = [self._product(node.input[0], x)] * int(self._constants[node.input[1]])
        elif node is not None and node.op_type == "Transpose":
            return self._transposed_back(node, x) or (1.0, [name])
        else:
            return 1.0, [name]
        whole = [part for part in parts if part is not None]
        tensors = [tensor for part in whole for tensor in part[1]]
        if len(whole) < len(parts) or len(tensors) > _MOST:
            return None
        return math.prod(part[0] for part in whole), tensors

    def _transposed_back(self, node: onnx.NodeProto, x: str) -> _Product | None:
        """The product under a Transpose that undoes those of all its factors; None where it does not."""
        inner, back = self._product(node.input[0], x), _order(node)
        if inner is None or not inner[1]:
            return None
        makers = [self._makers.get(name) for name in inner[1]]
        if any(maker is None or maker.op_type != "Transpose" for maker in makers):
            return None
        forth = [_order(maker) for maker in makers if maker is not None]
        if any([order[place] for place in back] != list(range(len(order))) for order in forth):
            return None
        return inner[0], [maker.input[0] for maker in makers if maker is not None]


def _order(node: onnx.NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= _CLOSE * abs(expected)

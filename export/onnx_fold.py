"""Work that an ONNX graph of convolutions can do without; the answers stay, but for rounding.

- A scale and a shift of each channel behind a convolution, or behind the maximum pooling of one, go into its weights.
  ONNX Runtime does that without a pooling between, and no more once nodes of quantisation lie there.
- Rows and columns at the end of a convolution that its maximum pooling leaves out are not computed.
"""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from bookserve.export import onnx_order

_Array = npt.NDArray[np.float32]


def fold(model: onnx.ModelProto) -> int:
    """Take this work out of the model's graph; returns how many nodes went or became smaller.

    Graphs inside nodes stay as they are.
    """
    folding = _Folding(model)
    done = sum([folding.join(node) for node in list(model.graph.node) if node.op_type in ("Mul", "Add")])
    done += sum([folding.crop(node) for node in model.graph.node if node.op_type == "MaxPool"])
    if done:
        onnx_order.drop_unused_constants(model.graph)
    return done


class _Folding:
    """The nodes of a graph by what they make, and its float32 constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._uses = Counter(name for node in self._graph.node for name in onnx_order.taken(node))
        self._uses.update(value.name for value in self._graph.output)
        given = {value.name for value in self._graph.input}  # a client may replace these
        self._constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in self._graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in given
        }
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._sizes = {
            value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]  # 0: not known
            for value in inferred.value_info
        }
        self._joined: dict[tuple[str, ...], str] = {}  # convolutions that shared constants share what becomes of them

    def join(self, node: onnx.NodeProto) -> bool:
        """Bring a Mul or an Add with a number for each channel into the convolution before it."""
        constant = next((name for name in node.input if name in self._constants), "")
        before = self._before(node, next((name for name in node.input if name != constant), ""))
        pooling = before if before is not None and before.op_type == "MaxPool" else None
        convolution = before if pooling is None else self._before(pooling, pooling.input[0])
        if not constant or before is None or convolution is None or convolution.op_type != "Conv":
            return False
        if any(name not in self._constants for name in convolution.input[1:]):
            return False
        weights = self._constants[convolution.input[1]]
        values = _by_channel(self._constants[constant], weights)
        if values is None or (node.op_type == "Mul" and pooling is not None and values.min() <= 0):
            return False  # the largest times a negative number would be the smallest
        bias = convolution.input[2] if len(convolution.input) > 2 else ""
        shift = self._constants[bias] if bias else np.zeros(len(weights), np.float32)
        names = [*convolution.input[:2], bias]
        if node.op_type == "Mul":
            scaled = weights * values.reshape(-1, *[1] * (weights.ndim - 1))
            names[1] = self._constant(scaled, "scaled", names[1], constant)
            names[2] = self._constant(shift * values, "scaled", bias, constant) if bias else ""
        else:
            names[2] = self._constant(shift + values, "shifted", bias, constant, str(len(weights)))
        convolution.input[:] = names if names[2] else names[:2]
        self._makers[node.output[0]] = before
        before.output[0] = node.output[0]
        self._graph.node.remove(node)
        return True

    def crop(self, pooling: onnx.NodeProto) -> bool:
        """Take as much of the padding at the end of a convolution as its pooling leaves out of its output."""
        convolution, form = self._before(pooling, pooling.input[0]), _attributes(pooling)
        sizes = self._sizes.get(pooling.input[0], [])[2:]
        if convolution is None or convolution.op_type != "Conv" or not sizes or not all(sizes):
            return False
        pads = next((attribute for attribute in convolution.attribute if attribute.name == "pads"), None)
        own = _attributes(convolution)
        if pads is None or own.get("auto_pad", b"NOTSET") != b"NOTSET" or not _whole_windows(form):
            return False
        rank = len(sizes)
        steps, windows = form.get("strides", [1] * rank), form["kernel_shape"]
        cuts = []
        for place, size in enumerate(sizes):
            left_out = (size - windows[place]) % steps[place] if size >= windows[place] else 0
            stride = own.get("strides", [1] * rank)[place]
            cuts.append(min(left_out, pads.ints[rank + place] // stride) * stride)
        if not any(cuts):
            return False
        pads.ints[rank:] = [pad - cut for pad, cut in zip(pads.ints[rank:], cuts, strict=True)]
        stale = [value for value in self._graph.value_info if value.name == pooling.input[0]]
        for value in stale:
            self._graph.value_info.remove(value)
        return True

    def _before(self, node: onnx.NodeProto, name: str) -> onnx.NodeProto | None:
        """The node that makes the tensor `name`, if `node` alone takes that, and it makes nothing else."""
        maker = self._makers.get(name)
        return maker if maker is not None and self._uses[name] == 1 and len(maker.output) == 1 else None

    def _constant(self, values: npt.NDArray[np.floating], *made_of: str) -> str:
        """The name of a constant; what is made of the same is the same."""
        if made_of not in self._joined:
            names = {tensor.name for tensor in self._graph.initializer}
            name = next(name for number in range(len(names) + 1) if (name := f"folded_{number}") not in names)
            self._graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
            self._constants[name] = values.astype(np.float32)
            self._joined[made_of] = name
        return self._joined[made_of]


def _by_channel(values: _Array, weights: _Array) -> _Array | None:
    """A constant as a number for each channel of a convolution with `weights`; None where it is more than that."""
    channels, rank = len(weights), weights.ndim
    if values.size == 1 and values.ndim <= rank:
        return np.full(channels, values.item(), np.float32)
    spread = (channels, *[1] * (rank - 2))
    return values.reshape(-1) if values.shape in (spread, (1, *spread)) else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _whole_windows(form: dict[str, Any]) -> bool:
    """Whether a pooling with these attributes looks at windows inside its input alone, of neighbours."""
    return (
        form.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and not form.get("ceil_mode", 0)
        and not any(form.get("pads", ()))
        and set(form.get("dilations", (1,))) == {1}
    )

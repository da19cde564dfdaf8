"""The models made for the benchmark: graphs with random weights, and what each of them is asked.

LeNet-5 comes twice, in float32 and in int8; the int8 graph is made of the other by static quantisation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bookserve.export.quantization.int8_graph import BETWEEN, PRODUCTS, Quantizer, Recipe
from bookserve.serving.wire.tensors import Array

PICTURE = (28, 28, 1)
CONNECTIONS = (1, 16, 64, 256)
_STREAMS = 100  # of a single connection
_CALIBRATION_ROWS = 256


@dataclass(frozen=True)
class Model:
    """A model, and what it is asked: `x` float32 of that shape, at these connections."""

    name: str
    what: str
    shape: tuple[int, ...]
    write: Callable[[Path], None]  # makes the version folder
    connections: tuple[int, ...] = CONNECTIONS
    streams: int = _STREAMS  # gRPC calls under way at once on one connection, besides; 0: not measured

    def request(self) -> Array:
        """The input `x` that is sent over and over."""
        return np.random.default_rng(0).random(self.shape, np.float32).round(4)

    def graph(self, store: Path) -> Path:
        """The ONNX file of the model in that folder of models."""
        return store / self.name / "1" / "model.onnx"

    def answer(self, store: Path) -> Array:
        """What the graph makes of the request, by ONNX Runtime without a server."""
        (y,) = onnxruntime.InferenceSession(str(self.graph(store))).run(None, {"x": self.request()})
        return np.asarray(y)


def write_multiplication(version: Path) -> None:
    """`y = 2 x`, [n, w]."""
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    _write(version, [node], [two], ["n", None], ["n", None])


def write_lenet5(version: Path) -> None:
    """The network of chapter 6 with random weights: pictures [n, 28, 28, 1] to probabilities [n, 10]."""
    random = np.random.default_rng(0)
    weights = {"conv1": (32, 1, 5, 5), "conv2": (64, 32, 5, 5), "dense1": (3136, 512), "dense2": (512, 10)}
    values = []
    for name, shape in weights.items():
        outputs = shape[0] if len(shape) == 4 else shape[1]
        values.append(numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), name))
        values.append(numpy_helper.from_array(np.zeros(outputs, np.float32), f"{name}_bias"))
    values.append(numpy_helper.from_array(np.array([0, 1, 28, 28], np.int64), "planes"))
    values.append(numpy_helper.from_array(np.array([0, 3136], np.int64), "flat"))

    def convolution(name: str, source: str) -> list[Any]:
        return [
            helper.make_node("Conv", [source, name, f"{name}_bias"], [f"{name}_sum"], pads=[2] * 4),
            helper.make_node("Relu", [f"{name}_sum"], [f"{name}_relu"]),
            helper.make_node("MaxPool", [f"{name}_relu"], [f"{name}_pool"], kernel_shape=[2, 2], strides=[2, 2]),
        ]

    nodes = [
        helper.make_node("Reshape", ["x", "planes"], ["x_planes"]),
        *convolution("conv1", "x_planes"),
        *convolution("conv2", "conv1_pool"),
        helper.make_node("Reshape", ["conv2_pool", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "dense1", "dense1_bias"], ["dense1_sum"]),
        helper.make_node("Relu", ["dense1_sum"], ["dense1_relu"]),
        helper.make_node("Gemm", ["dense1_relu", "dense2", "dense2_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    _write(version, nodes, values, ["n", *PICTURE], ["n", 10])


def write_lenet5_int8(version: Path) -> None:
    """The same network as `bookserve models quantize` makes it, calibrated on random pictures."""
    float32 = version.parents[1] / "float32"
    write_lenet5(float32)
    version.mkdir(parents=True)
    pictures = np.random.default_rng(1).random((_CALIBRATION_ROWS, *PICTURE), np.float32)
    quantizer = Quantizer(float32 / "model.onnx", {"x": pictures}, float32)
    quantizer.make(Recipe("minmax", (*PRODUCTS, *BETWEEN)), version / "model.onnx")


def write_sums(version: Path) -> None:
    """`y` [n] is the sum of each row of `x` [n, w]."""
    node = helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    _write(version, [node], [axis], ["n", None], ["n"])


def _write(version: Path, nodes: list[Any], values: list[Any], x: list[Any], y: list[Any]) -> None:
    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))
    )
    graph = helper.make_graph(nodes, "benchmark", [inputs], [outputs], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")


LENET5 = Model("lenet5", "LeNet-5 float32, one 28x28 float32 picture a request", (1, *PICTURE), write_lenet5)
LENET5_INT8 = Model("lenet5-int8", "LeNet-5 int8, the same request", (1, *PICTURE), write_lenet5_int8)
MODELS = (
    Model("multiplication", "one multiplication of 3 numbers", (1, 3), write_multiplication),
    LENET5,
    Model("sums", "10 MiB a request, 256 rows of 10,240 float32", (256, 10_240), write_sums, (1, 4), streams=0),
)

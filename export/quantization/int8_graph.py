"""Int8 graphs of a float ONNX graph, by ONNX Runtime's own quantisation library.

Static: weights and activations are int8, by QuantizeLinear and DequantizeLinear (QDQ) with scales that are measured on
calibration rows. Dynamic: the scale of an activation is taken from the request itself, over all its rows, so requests
of different clients may not share a run.

Weights have 7 bits and a scale for each channel. With 8 bits the sums of products overflow 16 bits on x86 processors
without VNNI: the graph would answer otherwise there than where it was measured.
"""

import copy
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from bookserve.export import onnx_fold, onnx_gelu, onnx_order
from bookserve.export.errors import ExportError
from bookserve.export.figures import Rows

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What may stay in int8 between products. Softmax, Sigmoid and the like lose much and are cheap: they stay in float.
BETWEEN = (
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Pad", "Relu"),
    *("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
DYNAMIC = ("LSTM", "MatMul", "Gemm")  # of Conv it is slower than float
CALIBRATIONS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_PERCENTILE = 99.99  # of an activation's values that its int8 range holds
_CALIBRATION_BATCH = 32
_NAME = 12  # characters of a node's name that a line shows
_LARGEST = 2_000_000_000  # bytes of a protobuf message
_QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Recipe:
    """How an int8 graph is made: `operations` are quantised, but for the nodes named in `float_nodes`.

    `calibration` is one of CALIBRATIONS, or empty for a dynamic graph.
    """

    calibration: str
    operations: tuple[str, ...]
    float_nodes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """ "static" or "dynamic"."""
        return "static" if self.calibration else "dynamic"

    def __str__(self) -> str:
        what = "products" if self.operations == PRODUCTS else "all"
        how = f"static, {self.calibration}, {what}" if self.calibration else "dynamic"
        if not self.float_nodes:
            return how
        first, *others = self.float_nodes
        return f"{how} but {first.partition('/')[0][:_NAME]}{f' + {len(others)}' if others else ''}"


class Quantizer:
    """Makes int8 graphs of the graph in the file `source`; `scratch` is a folder for what lies between."""

    def __init__(self, source: Path, calibration: Rows, scratch: Path, fixed_batch: int | None = None) -> None:
        """Raises ExportError: the graph cannot be prepared, is quantised already, or is too large."""
        self._calibration, self._scratch = calibration, scratch
        self._batch = fixed_batch or _CALIBRATION_BATCH
        self._ranges: dict[str, Any] = {}
        self._prepared = scratch / "prepared.onnx"
        whole = scratch / "whole.onnx"
        graph = load(source)
        try:
            # What ONNX Runtime would join stays apart once there are nodes of quantisation between.
            onnx_gelu.fuse(graph)
            onnx_fold.fold(graph)
            onnx.save(graph, whole)  # with its external data inside
            # Batch normalisation goes into the weights, constants are computed, every tensor gets its shape.
            with _quiet():
                quant_pre_process(whole, self._prepared, skip_symbolic_shape=True)
            prepared = onnx.load(self._prepared)
        except Exception as error:  # the library's, ONNX Runtime's and protobuf's errors share no base class
            raise ExportError(f"the graph cannot be prepared for int8: {_first_line(error)}") from error
        _keep_used_domains(prepared)
        for number, node in enumerate(prepared.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        onnx.save(prepared, self._prepared)
        self._graph = prepared

    def products(self) -> list[str]:
        """The names of the nodes that multiply with constants, in the order of the graph."""
        constants = {tensor.name for tensor in self._graph.graph.initializer}
        return [
            node.name
            for node in self._graph.graph.node
            if node.op_type in PRODUCTS and any(name in constants for name in node.input[1:2])
        ]

    def first_products(self) -> tuple[str, ...]:
        """The names of those products that no other product comes before: of pictures mostly a convolution of few
        channels, which takes longer in int8 than in float.
        """
        products = self.products()
        later = self._after(products)
        return tuple(name for name in products if name not in later)

    def _after(self, names: Iterable[str]) -> set[str]:
        """The names of the nodes that take, at once or by others, what the nodes `names` make."""
        wanted, made, after = set(names), set[str](), set[str]()
        for node in self._graph.graph.node:  # each stands after those that it needs
            if not made.isdisjoint(onnx_order.taken(node)):
                after.add(node.name)
            if node.name in wanted or node.name in after:
                made.update(filter(None, node.output))
        return after

    def has_dynamic_operations(self) -> bool:
        """Whether there is something for the dynamic method."""
        return any(node.op_type in DYNAMIC for node in self._graph.graph.node)

    def make(self, recipe: Recipe, target: Path) -> None:
        """Write the graph of a recipe.

        Raises:
            ExportError: the library cannot quantise the graph.
        """
        try:
            with _quiet():
                (self._static if recipe.calibration else self._dynamic)(recipe, target)
            made = onnx.load(target)
            _keep_used_domains(made)
            onnx.checker.check_model(made)
        except Exception as error:  # as above
            raise ExportError(f"the graph cannot be quantised ({recipe}): {_first_line(error)}") from error
        onnx.save(made, target)

    def _static(self, recipe: Recipe, target: Path) -> None:
        quantised = [name for name in self.products() if name not in recipe.float_nodes]
        inside = {*quantised, *self._after(quantised)}
        # What is done to the inputs before the first product is cheap, and int8 would cost them precision.
        before = [node.name for node in self._graph.graph.node if node.name not in inside]
        quantizer = QDQQuantizer(
            copy.deepcopy(self._graph),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._measured(recipe.calibration),
            nodes_to_quantize=[],
            nodes_to_exclude=[*recipe.float_nodes, *before],
            op_types_to_quantize=list(recipe.operations),
            extra_options={"MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)

    def _dynamic(self, recipe: Recipe, target: Path) -> None:
        quantize_dynamic(
            self._prepared,
            target,
            op_types_to_quantize=list(recipe.operations),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(recipe.float_nodes),
            extra_options={"MatMulConstBOnly": True},
        )

    def _measured(self, calibration: str) -> Any:
        """The range of every activation on the calibration rows, measured once."""
        if calibration not in self._ranges:
            calibrator = create_calibrator(
                self._prepared,
                [*PRODUCTS, *BETWEEN],
                augmented_model_path=str(self._scratch / f"{calibration}.onnx"),
                calibrate_method=CALIBRATIONS[calibration],
                extra_options={"percentile": _PERCENTILE} if calibration == "percentile" else {},
            )
            for batch in batches(self._calibration, self._batch):
                calibrator.collect_data(_Once(batch))  # a batch at a time: the library keeps all activations of a call
            self._ranges[calibration] = calibrator.compute_data()
        return self._ranges[calibration]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library prints, and tells the root logger, of choices that the recipe has made."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def static_recipes() -> list[Recipe]:
    """The recipes that are compared at first."""
    return [
        Recipe(calibration, operations)
        for operations in ((*PRODUCTS, *BETWEEN), PRODUCTS)
        for calibration in CALIBRATIONS
    ]


def in_float(recipe: Recipe, nodes: tuple[str, ...]) -> Recipe:
    """The recipe with these nodes left in float."""
    return replace(recipe, float_nodes=nodes)


def batches(rows: Rows, size: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The rows in parts of `size`; the last one may have less."""
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in rows.items()}


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """One batch, in the library's form."""

    def __init__(self, batch: Mapping[str, npt.NDArray[Any]]) -> None:
        self._left = [dict(batch)]

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The batch, then None."""
        return self._left.pop() if self._left else None


def load(source: Path) -> onnx.ModelProto:
    """The float graph in a file, with its external data inside.

    Raises:
        ExportError: it cannot be read, is quantised already, or is too large.
    """
    try:
        graph = onnx.load(source)
    except Exception as error:  # protobuf's errors and onnx's own share no base class
        raise ExportError(f"{source} cannot be read: {_first_line(error)}") from error
    if any(node.op_type in _QUANTISED for node in graph.graph.node):
        raise ExportError("the graph is quantised already")
    if graph.ByteSize() > _LARGEST:
        raise ExportError("the graph is larger than 2 GB, which the quantisation library does not take")
    return graph


def _keep_used_domains(graph: onnx.ModelProto) -> None:
    """Drop the operation sets that no node uses, which the library and ONNX Runtime write in."""
    used = {"" if node.domain == "ai.onnx" else node.domain for node in _nodes(graph.graph)}
    used |= {node.domain for function in graph.functions for node in function.node}
    kept = [entry for entry in graph.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

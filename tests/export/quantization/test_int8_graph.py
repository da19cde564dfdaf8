"""Int8 graphs: their form, their bytes, whether clients may share a run, and which graph is taken."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from bookserve.export import figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError, NoGainError
from bookserve.export.quantization import int8_graph, rates
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.int8_graph import DYNAMIC, PRODUCTS, Quantizer, Recipe
from bookserve.export.quantization.search import Found, Search, Source
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

STATIC = Recipe("minmax", (*PRODUCTS, *int8_graph.BETWEEN))
POINTS = Contract(
    "height", 1, (Tensor("x", "float32", (None, 48)),), (Tensor("y", "float32", (None, 1)),), task="regression"
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_networks.write_dense(tmp_path_factory.mktemp("dense") / "model.onnx")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_networks.write_convolutional(tmp_path_factory.mktemp("convolutional") / "model.onnx")


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_SECONDS", 0.001)
    monkeypatch.setattr(rates, "_ROUNDS", 5)


def rows(seed: int = 3, count: int = 256) -> dict[str, np.ndarray]:
    return {"x": small_networks.points(count, seed)[0]}


def proof(path: Path) -> str:
    """Why the rows of a graph are not independent; "" where they are proved."""
    return walk.refusal(ModelProto.FromString(path.read_bytes()))


def test_a_static_graph_has_seven_bit_weights_with_a_scale_a_channel_and_proved_rows(
    convolutional: Path, tmp_path: Path
) -> None:
    calibration = {"images": small_networks.pictures(128, 3)[0]}
    Quantizer(convolutional, calibration, tmp_path).make(STATIC, tmp_path / "int8.onnx")
    made = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert [entry.domain for entry in made.opset_import] == [""]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    weights = [array for array in arrays.values() if array.dtype == np.int8 and array.ndim >= 2]
    assert sorted(array.shape for array in weights) == [(16, 1, 5, 5), (32, 16, 5, 5), (512, 10)]
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) <= 64
    assert {array.shape for name, array in arrays.items() if name.startswith("filters_2") and "scale" in name} == {
        (32,)
    }
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * convolutional.stat().st_size
    assert proof(tmp_path / "int8.onnx") == ""


def test_what_comes_before_the_first_product_in_int8_stays_in_float(convolutional: Path, tmp_path: Path) -> None:
    quantizer = Quantizer(convolutional, {"images": small_networks.pictures(128, 3)[0]}, tmp_path)
    assert quantizer.first_products() == ("first",)
    for recipe, taken in ((STATIC, "x0"), (int8_graph.in_float(STATIC, quantizer.first_products()), "x1")):
        quantizer.make(recipe, tmp_path / "int8.onnx")
        made = onnx.load(tmp_path / "int8.onnx").graph
        known = {value.name for value in made.input} | {tensor.name for tensor in made.initializer}
        quantised = next(node for node in made.node if node.op_type == "QuantizeLinear" and node.input[0] not in known)
        assert quantised.input[0] == taken


def test_gelu_stays_one_node_in_float_between_int8_products(tmp_path: Path) -> None:
    float32 = small_networks.write_dense(tmp_path / "model.onnx", activation="gelu")
    Quantizer(float32, rows(), tmp_path).make(STATIC, tmp_path / "int8.onnx")
    made = onnx.load(tmp_path / "int8.onnx").graph
    kinds = [node.op_type for node in made.node]
    assert kinds.count("Gelu") == 2
    assert not {"Erf", "Tanh", "Pow"} & set(kinds)
    makers = {name: node for node in made.node for name in node.output}
    gelu = next(node for node in made.node if node.op_type == "Gelu")
    assert makers[gelu.input[0]].op_type == "DequantizeLinear"
    assert "QuantizeLinear" in [node.op_type for node in made.node if gelu.output[0] in node.input]


def test_a_dynamic_graph_mixes_rows_so_that_clients_do_not_share_a_run(dense: Path, tmp_path: Path) -> None:
    Quantizer(dense, rows(), tmp_path).make(Recipe("", DYNAMIC), tmp_path / "int8.onnx")
    operations = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operations
    assert "its scale follows from the values of all rows" in proof(tmp_path / "int8.onnx")


def test_the_same_rows_give_the_same_bytes_in_every_process(dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows()["x"])
    program = (
        "import sys, numpy as np; from pathlib import Path; from bookserve.export.quantization.int8_graph import *\n"
        "source, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "quantizer = Quantizer(source, {'x': np.load(folder / 'rows.npy')}, folder)\n"
        "for name in CALIBRATIONS: quantizer.make(Recipe(name, (*PRODUCTS, *BETWEEN)), folder / f'{name}.int8')\n"
    )
    made = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, dense, tmp_path]
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, timeout=120)
        made.append({path.name: path.read_bytes() for path in tmp_path.glob("*.int8")})
    assert len(made[0]) == 3
    assert made[0] == made[1]


def found(
    graph: Path, folder: Path, demands: Demands, dark: float = 1.0, said: list[str] | None = None
) -> tuple[Found, list[str]]:
    x, y = small_networks.points(1_000, 4)
    held_out = {"x": x[256:]}
    said = [] if said is None else said
    search = Search(
        Source(graph),
        {"x": x[:256] * np.float32(dark)},
        held_out,
        lambda _: figures.from_targets(POINTS, held_out, y[256:]),
        demands,
        folder,
        said.append,
    )
    return search.found(), said


def test_the_static_graph_within_the_loss_is_taken_with_its_figures(dense: Path, tmp_path: Path) -> None:
    taken, said = found(dense, tmp_path, Demands(max_loss=0.01, min_speed_up=0.0))
    assert taken.recipe.method == "static"
    assert [name.partition("/")[0] for name in taken.recipe.float_nodes] in ([], ["first"])  # whichever is faster here
    comparison = taken.comparison
    assert (comparison.figure, comparison.rows) == ("r2", 744)
    assert comparison.int8 == pytest.approx(comparison.float32, rel=0.01)
    assert comparison.interval is not None
    assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]
    assert sorted(taken.rates) == [1, 16]
    assert sum("outputs of calibration rows differ" in line for line in said) == 6


@pytest.fixture
def _harmful_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Quantizer._measured

    def broken(self: Quantizer, calibration: str) -> TensorsData:
        ranges: TensorsData = measured(self, calibration)
        ranges["x"] = TensorData(lowest=np.float32(-0.02), highest=np.float32(0.02))  # the input of the first product
        return ranges

    monkeypatch.setattr(Quantizer, "_measured", broken)


@pytest.mark.usefixtures("_harmful_first_product")
def test_nodes_that_cost_too_much_are_left_in_float(dense: Path, tmp_path: Path) -> None:
    taken, _ = found(dense, tmp_path, Demands("static", max_loss=0.01, min_speed_up=0.0))
    assert len(taken.recipe.float_nodes) == 1
    made = onnx.load(taken.path)
    assert [node.input[0] for node in made.graph.node if node.name in taken.recipe.float_nodes] == ["x"]


@pytest.mark.usefixtures("_harmful_first_product")
def test_no_graph_is_judged_twice(dense: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NoGainError):
        found(dense, tmp_path, Demands("static", max_loss=0.0, min_speed_up=1e6), said=said)
    judged = [line for line in said if "refused" in line]
    assert any(" but first: " in line for line in judged)  # which may be faster, and where most is lost
    assert len(set(judged)) == len(judged)


def test_a_graph_that_loses_too_much_is_refused(dense: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NoGainError, match=r"none of \d+ int8 graphs is worth publishing \(--max-loss 0\.20%, "):
        found(dense, tmp_path, Demands("static", min_speed_up=0.0), dark=0.01, said=said)
    judged = [line for line in said if "refused" in line]
    assert all(re.search(r": r2 -?\d+\.\d+, refused: \d+\.\d+% worse$", line) for line in judged), judged
    assert any(re.search(r" but \w+ \+ 1: ", line) for line in judged)
    assert max(len(f"tictactoe: {line}") for line in said) < 100


def test_where_static_loses_too_much_the_dynamic_graph_is_taken(dense: Path, tmp_path: Path) -> None:
    taken, _ = found(dense, tmp_path, Demands(max_loss=0.01, min_speed_up=0.0), dark=0.01)
    assert taken.recipe == Recipe("", DYNAMIC)


def test_a_graph_that_is_not_faster_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(NoGainError, match=r"--min-speed-up 1000\)"):
        found(dense, tmp_path, Demands(max_loss=0.05, min_speed_up=1000.0))


def test_an_int8_graph_is_not_quantised_again(dense: Path, tmp_path: Path) -> None:
    Quantizer(dense, rows(), tmp_path).make(STATIC, tmp_path / "int8.onnx")
    with pytest.raises(ExportError, match="quantised already"):
        Quantizer(tmp_path / "int8.onnx", rows(), tmp_path)

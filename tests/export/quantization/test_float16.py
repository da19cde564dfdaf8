"""`bookserve models quantize --precision float16` as its user runs it, and the graph that it makes."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_networks
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper

from bookserve.clients.command_line import main
from bookserve.export import confined, contracts, engines, manifest
from bookserve.export.errors import ExportError
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.quantization import float16_graph

SCHEMA = json.loads((Path(confined.__file__).parent / "manifest.schema.json").read_text())
DIGITS = contracts.Contract(
    "digits",
    1,
    (contracts.Tensor("images", "uint8", (None, 16, 16)),),
    (contracts.Tensor("probabilities", "float32", (None, 10), unit="probability"),),
    labels=tuple("0123456789"),
    assets=("names.txt",),
    task="image-classification",
    preprocessing=contracts.Preprocessing("images", size=(16, 16), colour="grey", resize="centred"),
)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with version 1 of `digits`, float32, and version 2, float16, compared on random rows."""
    root = tmp_path_factory.mktemp("float16") / "store"
    version = root / "digits/1"
    small_networks.write_convolutional(version / "assets.extra/model.onnx")
    (version / "assets").mkdir()
    (version / "assets/names.txt").write_text("zero\none\n")
    (version / "assets.extra/report").mkdir()
    (version / "assets.extra/report/card.md").write_text("# digits\n\nOf patterns.\n")
    described = Manifest(
        model="digits",
        version=1,
        created="2026-01-02T03:04:05+00:00",
        contract=DIGITS,
        parity={},
        files=manifest.digests(version),
        made_with={"keras": "3.15"},
        metrics={"test": {"accuracy": 0.9}},
        data=DataOrigin("sample", "patterns", "0" * 64),
        profile="smoke",
        seed=3,
        rows_independent=True,
    )
    (version / manifest.LOCATION).write_text(described.to_json())
    done = invoke("models", "quantize", "digits", "--precision=float16", "--models-dir", root)
    assert done.exit_code == 0, done.output
    assert "digits: largest differences on 8 random rows: probabilities" in done.output
    return root


def write_line(
    path: Path, weight: float, *more: onnx.NodeProto, width: int = 400, element: int = TensorProto.FLOAT
) -> None:
    """`y` = x times a column of `weight`, for x [n, width] of type `element`, and more nodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), *more],
        "line",
        [helper.make_tensor_value_info("x", element, ["n", width])],
        [helper.make_tensor_value_info("y", element, ["n", 1])],
        [helper.make_tensor("w", element, (width, 1), [weight] * width)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def test_the_next_version_has_the_float16_graph_and_says_how_near_it_is(store: Path) -> None:
    folder = store / "digits/2"
    found = manifest.read(folder)
    Draft202012Validator(SCHEMA).validate(json.loads(found.to_json()))
    assert found.precision == "float16"
    assert found.float16 is not None
    assert (found.float16.version, found.float16.rows, found.float16.drawn) == (1, 8, True)
    assert found.float16.tolerance == float16_graph.TOLERANCE
    assert 0 < found.parity["probabilities"] < float16_graph.TOLERANCE
    assert found.float16.bytes["float16"] < 0.6 * found.float16.bytes["float32"]
    assert (found.created, found.seed, found.rows_independent) == ("2026-01-02T03:04:05+00:00", 3, True)
    assert found.metrics == {}
    assert (folder / "assets/names.txt").read_text() == "zero\none\n"
    card = (folder / "assets.extra/report/card.md").read_text()
    assert card.startswith("# digits, float16\n")
    assert "figures and speed are not measured anew" in card
    assert card.endswith("# digits\n\nOf patterns.\n")
    assert "\ndigits  2        float16 " in invoke("models", "list", "--models-dir", store).output


def test_inputs_and_outputs_keep_their_types_and_weights_do_not(store: Path) -> None:
    graph = onnx.load(store / "digits/2/assets.extra/model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) > 1} == {TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == [
        "tensor(uint8)",
        "tensor(float)",
    ]
    told = session.get_modelmeta().custom_metadata_map
    assert (told["model"], told["precision"]) == ("digits", "float16")
    images = np.random.default_rng(5).integers(0, 256, (64, 16, 16), np.uint8)
    float32 = engines.onnx_graph(store / "digits/1/assets.extra/model.onnx")({"images": images})["probabilities"]
    (float16,) = session.run(None, {"images": images})
    np.testing.assert_allclose(float16, float32, atol=float16_graph.TOLERANCE)


def test_a_version_copied_under_another_name_becomes_one_of_that_name(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store / "digits/1", tmp_path / "numerals/4")
    done = invoke("models", "quantize", "numerals", "--precision=float16", "--models-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["numerals"]
    found = manifest.read(tmp_path / "numerals/5")
    assert (found.model, found.contract.model, found.version) == ("numerals", "numerals", 5)


def test_rows_of_a_file_are_compared_and_targets_left_out(store: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(6).integers(0, 256, (300, 16, 16), np.uint8)
    np.savez(tmp_path / "rows.npz", images=images, targets=np.zeros(300, np.int64))
    done = invoke("models", "quantize", "digits", 1, "--precision=float16", "--data", tmp_path / "rows.npz",
                  "--models-dir", store)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "digits: largest differences on 256 rows: probabilities" in done.output


@pytest.mark.parametrize(
    ("weight", "message"),
    [(1e6, "the float32 graph and the float16 graph differ in 'y' by"), (0.001, "'y'")],
    ids=["above what float16 holds", "within it"],
)
def test_a_graph_whose_answers_are_too_far_off_is_not_published(tmp_path: Path, weight: float, message: str) -> None:
    write_line(tmp_path / "line/1/model.onnx", weight)
    done = invoke("models", "quantize", "line", "--precision=float16", "--models-dir", tmp_path)
    published = (tmp_path / "line/2").is_dir()
    assert published == (weight < 1)
    assert done.exit_code == (0 if published else 1)
    assert (message in done.output) != published


def test_a_graph_that_would_not_be_smaller_is_not_published(tmp_path: Path) -> None:
    write_line(tmp_path / "line/1/model.onnx", 0.001, width=2)
    done = invoke("models", "quantize", "line", "--precision=float16", "--models-dir", tmp_path)
    assert done.exit_code == 1
    assert "a float16 graph would not be smaller: " in done.output
    assert [path.name for path in (tmp_path / "line").iterdir()] == ["1"]


def test_what_has_no_float16_form_is_named(tmp_path: Path) -> None:
    contract = contracts.Contract("line", 1, (), (contracts.Tensor("y", "float32", (None, 1)),))
    path = tmp_path / "line.onnx"
    write_line(path, 1.0, helper.make_node("QuantizeLinear", ["y", "w"], ["q"]))
    with pytest.raises(ExportError, match="quantised already"):
        float16_graph.make(path, tmp_path / "made.onnx", contract)
    write_line(path, 1.0)
    graph = onnx.load(path)
    del graph.graph.initializer[:]
    onnx.save(graph, path)
    with pytest.raises(ExportError, match="no float32 weights"):
        float16_graph.make(path, tmp_path / "made.onnx", contract)
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"line\.onnx cannot be read"):
        float16_graph.make(path, tmp_path / "made.onnx", contract)
    assert not (tmp_path / "made.onnx").exists()


def test_a_bfloat16_graph_is_refused_as_there_is_nothing_to_compare_it_in(tmp_path: Path) -> None:
    path = tmp_path / "line.onnx"
    write_line(path, 1.0, element=TensorProto.BFLOAT16)
    done = invoke("models", "add", "line", path, "--models-dir", tmp_path / "store")
    assert done.exit_code == 1
    assert "on CPUs it computes in float32 and float16, not in bfloat16" in done.output
    assert not (tmp_path / "store/line").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision=int8"], "--precision int8 needs --data"),
        (["--precision=float16", "--targets=labels"], "--targets is for --precision int8"),
        (["2", "--precision=float16"], "digits version 2 is float16 already"),
    ],
)
def test_options_that_do_not_fit_are_one_line(store: Path, options: list[str], message: str) -> None:
    done = invoke("models", "quantize", "digits", *options, "--models-dir", store)
    assert done.exit_code != 0
    assert message in done.output

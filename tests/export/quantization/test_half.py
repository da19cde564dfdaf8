"""`bookserve models quantize --precision float16`, or bfloat16, as its user runs it, and the graph that it makes."""

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
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bookserve.clients.command_line import main
from bookserve.clients.grpc_client import GrpcClient
from bookserve.export import confined, contracts, engines, manifest
from bookserve.export.errors import ExportError
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.quantization import bfloat16_graph, float16_graph
from bookserve.serving.wire import wide_bfloat16
from model_servers import server_starter

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


FORMS = {"float16": float16_graph, "bfloat16": bfloat16_graph}
WEIGHTS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=FORMS)
def precision(request: pytest.FixtureRequest) -> str:
    """float16, and bfloat16."""
    return str(request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, precision: str) -> Path:
    """A store with version 1 of `digits`, float32, and version 2, of 16 bits, compared on random rows."""
    root = tmp_path_factory.mktemp(precision) / "store"
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
    done = invoke("models", "quantize", "digits", f"--precision={precision}", "--models-dir", root)
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


def test_the_next_version_has_that_graph_and_says_how_near_it_is(store: Path, precision: str) -> None:
    folder = store / "digits/2"
    found = manifest.read(folder)
    Draft202012Validator(SCHEMA).validate(json.loads(found.to_json()))
    assert found.precision == precision
    compared, other = (found.float16, found.bfloat16) if precision == "float16" else (found.bfloat16, found.float16)
    assert compared is not None
    assert other is None
    assert (compared.version, compared.rows, compared.drawn) == (1, 8, True)
    assert compared.tolerance == FORMS[precision].TOLERANCE
    assert 0 < found.parity["probabilities"] < compared.tolerance
    assert compared.bytes[precision] < 0.6 * compared.bytes["float32"]
    assert (found.created, found.seed, found.rows_independent) == ("2026-01-02T03:04:05+00:00", 3, True)
    assert found.metrics == {}
    assert (folder / "assets/names.txt").read_text() == "zero\none\n"
    card = (folder / "assets.extra/report/card.md").read_text()
    assert card.startswith(f"# digits, {precision}\n")
    assert "figures and speed are not measured anew" in card
    assert card.endswith("# digits\n\nOf patterns.\n")
    assert f"\ndigits  2        {precision} " in invoke("models", "list", "--models-dir", store).output
    shown = invoke("models", "show", "digits", 2, "--models-dir", store).output
    assert f"{precision} of version 1; inputs and outputs have their types of before" in shown


def test_the_version_is_verified_and_served_on_a_cpu(store: Path, precision: str, tmp_path: Path) -> None:
    done = invoke("models", "verify", "digits", 2, "--models-dir", store)
    assert done.exit_code == 0, done.output
    assert "ONNX Runtime answers the example as in the manifest" in done.output
    images = np.random.default_rng(8).integers(0, 256, (64, 16, 16), np.uint8)
    float32 = engines.onnx_graph(store / "digits/1/assets.extra/model.onnx")({"images": images})["probabilities"]
    with server_starter(tmp_path) as start:
        server = start("--model_name=digits", f"--model_base_path={store / 'digits'}")
        with GrpcClient(server.target) as client:
            served = client.predict("digits", {"images": images}, version=2).outputs["probabilities"]
    assert 0 < np.abs(served - float32).max() < FORMS[precision].TOLERANCE


def test_inputs_and_outputs_keep_their_types_and_weights_do_not(store: Path, precision: str) -> None:
    graph = onnx.load(store / "digits/2/assets.extra/model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) > 1} == {WEIGHTS[precision]}
    content = graph.SerializeToString()
    session = onnxruntime.InferenceSession(wide_bfloat16.widened(content) or content)
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == [
        "tensor(uint8)",
        "tensor(float)",
    ]
    told = session.get_modelmeta().custom_metadata_map
    assert (told["model"], told["precision"]) == ("digits", precision)
    images = np.random.default_rng(5).integers(0, 256, (64, 16, 16), np.uint8)
    float32 = engines.onnx_graph(store / "digits/1/assets.extra/model.onnx")({"images": images})["probabilities"]
    (answer,) = session.run(None, {"images": images})
    np.testing.assert_allclose(answer, float32, atol=FORMS[precision].TOLERANCE)


def test_a_version_copied_under_another_name_becomes_one_of_that_name(
    store: Path, precision: str, tmp_path: Path
) -> None:
    shutil.copytree(store / "digits/1", tmp_path / "numerals/4")
    done = invoke("models", "quantize", "numerals", f"--precision={precision}", "--models-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["numerals"]
    found = manifest.read(tmp_path / "numerals/5")
    assert (found.model, found.contract.model, found.version) == ("numerals", "numerals", 5)


def test_rows_of_a_file_are_compared_and_targets_left_out(store: Path, precision: str, tmp_path: Path) -> None:
    images = np.random.default_rng(6).integers(0, 256, (300, 16, 16), np.uint8)
    np.savez(tmp_path / "rows.npz", images=images, targets=np.zeros(300, np.int64))
    done = invoke("models", "quantize", "digits", 1, f"--precision={precision}", "--data", tmp_path / "rows.npz",
                  "--models-dir", store)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "digits: largest differences on 256 rows: probabilities" in done.output


@pytest.mark.parametrize("weight", [1e6, 0.001], ids=["above what float16 holds", "within it"])
def test_a_graph_whose_answers_are_too_far_off_is_not_published(tmp_path: Path, precision: str, weight: float) -> None:
    write_line(tmp_path / "line/1/model.onnx", weight)
    done = invoke("models", "quantize", "line", f"--precision={precision}", "--models-dir", tmp_path)
    published, message = (tmp_path / "line/2").is_dir(), "the float32 graph and the float16 graph differ in 'y' by"
    assert published == (weight < 1 or precision == "bfloat16")
    assert done.exit_code == (0 if published else 1)
    assert (message in done.output) != published


def test_a_graph_that_would_not_be_smaller_is_not_published(tmp_path: Path, precision: str) -> None:
    write_line(tmp_path / "line/1/model.onnx", 0.001, width=2)
    done = invoke("models", "quantize", "line", f"--precision={precision}", "--models-dir", tmp_path)
    assert done.exit_code == 1
    assert f"a {precision} graph would not be smaller: " in done.output
    assert [path.name for path in (tmp_path / "line").iterdir()] == ["1"]


def test_what_has_no_such_form_is_named(tmp_path: Path, precision: str) -> None:
    contract = contracts.Contract("line", 1, (), (contracts.Tensor("y", "float32", (None, 1)),))
    path = tmp_path / "line.onnx"
    write_line(path, 1.0, helper.make_node("QuantizeLinear", ["y", "w"], ["q"]))
    with pytest.raises(ExportError, match="quantised already"):
        FORMS[precision].make(path, tmp_path / "made.onnx", contract)
    write_line(path, 1.0)
    graph = onnx.load(path)
    del graph.graph.initializer[:]
    onnx.save(graph, path)
    with pytest.raises(ExportError, match="no float32 weights"):
        FORMS[precision].make(path, tmp_path / "made.onnx", contract)
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"line\.onnx cannot be read"):
        FORMS[precision].make(path, tmp_path / "made.onnx", contract)
    assert not (tmp_path / "made.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision=int8"], "--precision int8 needs --data"),
        (["--precision=float16", "--targets=labels"], "--targets is for --precision int8"),
        (["--precision=bfloat16", "--targets=labels"], "--targets is for --precision int8"),
    ],
)
def test_options_that_do_not_fit_are_one_line(store: Path, options: list[str], message: str) -> None:
    done = invoke("models", "quantize", "digits", *options, "--models-dir", store)
    assert done.exit_code != 0
    assert message in done.output


def test_what_is_of_16_bits_already_is_named(store: Path, precision: str) -> None:
    done = invoke("models", "quantize", "digits", 2, "--precision=float16", "--models-dir", store)
    assert done.exit_code == 1
    assert f"digits version 2 is {precision} already" in done.output


def test_a_bfloat16_graph_keeps_in_float32_what_gpus_have_not_and_what_is_too_large(tmp_path: Path) -> None:
    source = small_networks.write_convolutional(tmp_path / "model.onnx")
    bfloat16_graph.make(source, tmp_path / "made.onnx", DIGITS)
    made = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "made.onnx"), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*made.graph.value_info, *made.graph.output)}
    by_operation = {node.op_type: types[node.output[0]] for node in made.graph.node if node.op_type != "Cast"}
    assert by_operation["MaxPool"] == TensorProto.FLOAT
    assert by_operation["Conv"] == by_operation["Relu"] == TensorProto.BFLOAT16
    lowest = float(np.finfo(np.float32).min)
    write_line(tmp_path / "mask.onnx", lowest)
    contract = contracts.Contract("mask", 1, (), (contracts.Tensor("y", "float32", (None, 1)),))
    bfloat16_graph.make(tmp_path / "mask.onnx", tmp_path / "masked.onnx", contract)
    (kept,) = onnx.load(tmp_path / "masked.onnx").graph.initializer
    assert np.isfinite(numpy_helper.to_array(kept).astype(np.float32)).all()


def test_the_check_rounds_after_each_node_as_the_standard_says(tmp_path: Path) -> None:
    source = small_networks.write_convolutional(tmp_path / "model.onnx")
    bfloat16_graph.make(source, tmp_path / "made.onnx", DIGITS)
    images = {"images": np.random.default_rng(9).integers(0, 256, (12, 16, 16), np.uint8)}
    rounded = engines.onnx_graph(bfloat16_graph.on_cpu(tmp_path / "made.onnx"))(images)["probabilities"]
    (expected,) = ReferenceEvaluator(onnx.load(tmp_path / "made.onnx")).run(["probabilities"], images)
    exact = engines.onnx_graph(source)(images)["probabilities"]
    np.testing.assert_allclose(rounded, expected, atol=2e-2)
    assert np.abs(rounded - expected).max() < np.abs(rounded - exact).max()


def test_branches_and_16_bits_have_no_bfloat16_form(tmp_path: Path) -> None:
    contract = contracts.Contract("line", 1, (), (contracts.Tensor("y", "float32", (None, 1)),))
    one = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Identity", ["y"], ["b"])], "branch", [], one)
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    chosen = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    write_line(tmp_path / "branch.onnx", 1.0, yes, chosen)
    with pytest.raises(ExportError, match="it has branches or loops"):
        bfloat16_graph.make(tmp_path / "branch.onnx", tmp_path / "made.onnx", contract)
    half = helper.make_node("Constant", [], ["h"], value=helper.make_tensor("h", TensorProto.FLOAT16, [1], [1.0]))
    write_line(tmp_path / "half.onnx", 1.0, half)
    with pytest.raises(ExportError, match="parts of it have 16 bits already"):
        bfloat16_graph.make(tmp_path / "half.onnx", tmp_path / "made.onnx", contract)


def test_a_bfloat16_graph_of_another_maker_is_added_and_one_with_such_inputs_is_told(tmp_path: Path) -> None:
    source = small_networks.write_convolutional(tmp_path / "model.onnx")
    bfloat16_graph.make(source, tmp_path / "made.onnx", DIGITS)
    done = invoke("models", "add", "theirs", tmp_path / "made.onnx", "--models-dir", tmp_path / "store")
    assert done.exit_code == 0, done.output
    write_line(tmp_path / "line.onnx", 1.0, element=TensorProto.BFLOAT16)
    done = invoke("models", "add", "line", tmp_path / "line.onnx", "--models-dir", tmp_path / "store")
    assert done.exit_code == 1
    assert "'x' is bfloat16, which NumPy has not: cast inputs and outputs to float32" in done.output
    assert not (tmp_path / "store/line").exists()


@pytest.mark.parametrize(("element", "casts"), [(TensorProto.FLOAT, 0), (TensorProto.INT64, 1)])
def test_operations_of_other_domains_stay_in_float32_and_their_inputs_are_not_rounded(
    tmp_path: Path, precision: str, element: int, casts: int
) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["years"], ["x"], to=TensorProto.FLOAT),
            helper.make_node(
                "Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[2000.0] * 300, scale=[0.1] * 300
            ),
            helper.make_node("MatMul", ["scaled", "w"], ["y"]),
        ][0 if casts else 1 :],
        "scaled",
        [helper.make_tensor_value_info("years" if casts else "x", element, ["n", 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.random.default_rng(3).normal(0, 0.1, (300, 4)).astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    (tmp_path / "scaled/1").mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "scaled/1/model.onnx")
    years = np.random.default_rng(4).integers(1950, 2050, (20, 300))
    np.savez(tmp_path / "years.npz", **{graph.input[0].name: years if casts else years.astype(np.float32)})
    done = invoke("models", "quantize", "scaled", f"--precision={precision}", "--data", tmp_path / "years.npz",
                  "--models-dir", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    made = onnx.load(tmp_path / "scaled/2/assets.extra/model.onnx")
    if casts and precision == "float16":  # holds these years
        assert made.graph.node[0].op_type == "Cast"
    else:
        assert [node.op_type for node in made.graph.node] == [*["Cast"][:casts], "Scaler", "Cast", "MatMul", "Cast"]

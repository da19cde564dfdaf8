"""`bookserve models add`, `show`, `model-server` and `predict` as their user runs them."""

import json
import shlex
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper, numpy_helper

from bookserve.clients import forms
from bookserve.clients.command_line import main
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import pictures
from bookserve.export import confined, contracts
from bookserve.export.errors import ConfinedError
from bookserve.export.manifest import LOCATION
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.molecule_pool import MoleculePool

SCHEMA = json.loads((Path(confined.__file__).parent / "manifest.schema.json").read_text())


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def graph(folder: Path, outside: bool = False) -> Path:
    """The path of an ONNX file: y = x w + b of 3 features to 2 scores."""
    weights = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["scores"])]
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0.1, -0.2], np.float32), "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=outside, location="weights.bin", size_threshold=0)
    return path


@pytest.fixture
def added(tmp_path: Path) -> tuple[Path, Result]:
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    (tmp_path / "rows.csv").write_text("a,b,c\n1,2,3\n-0.5,0.25,4\n")
    result = invoke(
        *("models", "add", "score", graph(tmp_path, outside=True), "--models-dir", tmp_path / "my store"),
        *("--labels", tmp_path / "labels.txt", "--example", tmp_path / "rows.csv", "--task", "tabular"),
        "--rows-independent",
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "my store", result


def test_a_version_of_an_onnx_file_has_the_whole_contract(added: tuple[Path, Result]) -> None:
    store, result = added
    manifest = json.loads((store / "score/1/assets.extra/manifest.json").read_text())
    assert list(Draft202012Validator(SCHEMA).iter_errors(manifest)) == []
    contract = manifest["contract"]
    assert contract["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 3], "free": ["rows"]}]
    assert (contract["task"], contract["labels"], manifest["source"]["format"]) == ("tabular", ["no", "yes"], "ONNX")
    assert contract["example"]["inputs"] == {"x": [[1.0, 2.0, 3.0]]}
    assert manifest["rows_independent"] is True
    np.testing.assert_allclose(contract["example"]["outputs"]["scores"], [[2.35, 3.8]], atol=1e-5)
    assert not (store / "score/1/assets.extra/weights.bin").exists()
    shown = invoke("models", "show", "score", "--models-dir", store).output
    assert "in        x: float32 [rows, 3]" in shown
    assert "labels    no, yes" in shown
    assert "rows      declared independent" in shown
    assert "files     3, all as published" in shown
    assert "bookserve predict score" in result.output


def test_the_lines_at_the_end_work(added: tuple[Path, Result]) -> None:
    store, result = added
    lines = [line.strip() for line in result.output.splitlines()[-3:]]
    port, rest = _ports(2)
    command = shlex.split(lines[0].replace("8500", str(port)).replace("8501", str(rest)))
    server = subprocess.Popen([sys.executable, "-m", "bookserve.clients.command_line", *command[1:]])
    try:
        curl = lines[2].replace("8501", str(rest)).replace("curl", "curl -s --fail", 1)
        deadline = time.monotonic() + 60
        while (answer := subprocess.run(shlex.split(curl), capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, answer.stderr
            time.sleep(0.05)
        np.testing.assert_allclose(json.loads(answer.stdout)["outputs"], [[2.35, 3.8]], atol=1e-5)
        for way in (f"--rest=http://127.0.0.1:{rest}", f"--grpc=127.0.0.1:{port}"):
            words = shlex.split(lines[1])[1:-2]
            predicted = invoke(*words, way, "--models-dir", store, "--json")
            assert predicted.exit_code == 0, predicted.output
            scores = json.loads(predicted.output)["predictions"][0]["scores"]
            assert scores == {"no": pytest.approx(2.35), "yes": pytest.approx(3.8)}
            asked = invoke("predict", "score", "1,2,3", way, "--models-dir", store)
            assert asked.output.splitlines() == ["score version 1", "   no  2.35", "  yes  3.8"]
        with GrpcClient(f"127.0.0.1:{port}") as client, closing(MoleculePool()) as pool:
            gateway = create_app(GatewayConfig(models_dir=store), client, pool).test_client()
            answer = gateway.post("/api/v1/score", json={"x": [[1, 2, 3], [-0.5, 0.25, 4]]}).get_json()
            assert answer["predictions"][0] == {"scores": {"no": pytest.approx(2.35), "yes": pytest.approx(3.8)}}
            assert gateway.get("/readyz").get_json()["models"] == {"score": 1}
    finally:
        server.terminate()
        server.wait(30)


def test_figures_on_the_user_s_rows_are_kept_with_the_version(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    scores = x @ np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32) + np.array([0.1, -0.2], np.float32)
    labels = scores.argmax(axis=1)
    labels[:40] = 1 - labels[:40]
    np.savez(tmp_path / "rows.npz", x=x, labels=labels)
    np.savez(tmp_path / "bare.npz", x=x)
    command = ("models", "add", "score", graph(tmp_path), "--models-dir", tmp_path / "store", "--evaluate")
    refused = invoke(*command, tmp_path / "bare.npz")
    assert refused.exit_code == 1
    assert "has no right answers: add an array or column 'targets' or 'labels'" in refused.output
    assert not (tmp_path / "store/score/1").exists()
    result = invoke(*command, tmp_path / "rows.npz")
    assert result.exit_code == 0, result.output
    assert "score: accuracy 0.9, 95 % interval 0.8" in result.output
    extra = tmp_path / "store/score/1/assets.extra"
    manifest = json.loads((extra / "manifest.json").read_text())
    Draft202012Validator(SCHEMA).validate(manifest)
    assert manifest["metrics"]["test"]["accuracy"] == pytest.approx(0.9)
    assert manifest["metrics"]["test"]["rows"] == 400
    assert "On the rows of `rows.npz`:" in (extra / "report/card.md").read_text()
    assert {"assets.extra/report/evaluation.json", "assets.extra/report/card.md"} <= manifest["files"].keys()
    assert invoke("models", "verify", "score", "--models-dir", tmp_path / "store").exit_code == 0


@pytest.mark.slow
def test_a_model_that_is_worse_than_the_served_one_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (400, 3)).astype(np.float32)
    weights = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)
    np.savez(tmp_path / "rows.npz", x=x, labels=(x @ weights + np.array([0.1, -0.2])).argmax(axis=1))
    store, source = tmp_path / "store", graph(tmp_path)
    asked = ("--evaluate", tmp_path / "rows.npz", "--require-better", "--models-dir", store)
    assert "no version is served yet" in invoke("models", "add", "score", source, *asked).output
    same = invoke("models", "add", "score", source, *asked)
    assert "score: accuracy 1, version 1, which is served, has 1, on the same 400 rows" in same.output
    assert "It is not worse by more than chance" in same.output
    made = onnx.load(source)
    made.graph.node[0].input[1], made.graph.initializer[0].name = "other", "other"
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(-weights, "other"))
    onnx.save(made, source)
    refused = invoke("models", "add", "score", source, *asked)
    assert refused.exit_code == 1
    assert "version 2, which is served, has 1, on the same 400 rows: difference -0.9" in refused.output
    assert "It is worse by more than chance and not published" in refused.output
    assert not (store / "score/3").exists()
    assert invoke("models", "rollback", "score", "--to", 1, "--models-dir", store).exit_code == 0
    assert "version 1, which is served" in invoke("models", "add", "score", source, *asked).output
    bare = invoke("models", "add", "score", source, "--require-better", "--models-dir", store)
    assert (bare.exit_code, "--require-better compares on the rows of --evaluate" in bare.output) == (2, True)


def test_show_reads_the_graph_of_a_version_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "store/score/7").mkdir(parents=True)
    graph(tmp_path / "store/score/7")
    result = invoke("models", "show", "score", "--models-dir", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert "score version 7, no manifest" in result.output
    assert "out       scores: float32 [rows, 2]" in result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"\xff" * 200, "is no ONNX file that can be read"),
        ("model.tflite", b"\0\0\0\0TFL3" + b"\xff" * 100, "model.tflite"),
        ("model.keras", b"PK", "it is no zip archive"),
        ("model.pkl", b"cos\nsystem\n(S'touch INFECTED'\ntR.", "--trust"),
        ("model.json", b'{"learner": 7}', "XGBoost does not load"),
        ("model.bin", b"nothing", "is of no known format; known are: SavedModel"),
    ],
)
def test_a_file_that_is_no_model_is_one_line_and_nothing_is_published(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = invoke("models", "add", "score", tmp_path / name, "--models-dir", tmp_path / "store")
    assert result.exit_code == 1
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "store/score").exists()
    assert not Path("INFECTED").exists()


def test_a_child_that_dies_hangs_or_takes_all_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
    for limits, kind, message in (
        (confined.Limits(60), "dies", "SIGSEGV"),
        (confined.Limits(2), "hangs", "not done after 2 s"),
        (confined.Limits(60, 512 << 20), "grows", "more memory than 512 MiB"),
    ):
        with pytest.raises(ConfinedError, match=message):
            confined.call(f"bad_children:{kind}", {}, limits)


def _ports(count: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def test_a_file_says_how_pictures_become_numbers(tmp_path: Path) -> None:
    from picture_models import write_colours  # a child that imports this file has no tests/support

    source = write_colours(tmp_path)
    store = ("--models-dir", tmp_path / "store", "--task", "image-classification")
    told = invoke("models", "add", "colours", source, *store)
    assert told.exit_code == 1
    assert 'with --preprocessor FILE, such as {"size": {"height": 224, "width": 224}}' in told.output
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": [4, 6], "image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 2.0]}))
    added = invoke("models", "add", "colours", source, *store, "--preprocessor", file)
    assert added.exit_code == 0, added.output
    contract = contracts.from_json(json.loads((tmp_path / "store/colours/1" / LOCATION).read_text())["contract"])
    means = contract.preprocessing
    assert means is not None
    assert (means.size, means.layout, means.resize) == ((4, 6), "channels-first", "stretch")
    white = pictures.tensor(pictures.levels(np.full((9, 9, 3), 255, np.uint8), means)[None], means, contract.inputs[0])
    assert white.shape == (1, 3, 4, 6)
    assert white.mean((0, 2, 3)) == pytest.approx([1.0, 1.5, 0.5])
    assert forms.form(contract) == "image-classification"
    photo = Path(__file__).parents[1] / "support" / "turned.heic"
    added = invoke("models", "add", "colours", source, *store, "--preprocessor", file, "--example", photo)
    assert added.exit_code == 0, added.output
    assert "on the example's rows" in added.output
    example = json.loads((tmp_path / "store/colours/2" / LOCATION).read_text())["contract"]["example"]["inputs"]
    expected = pictures.tensor(pictures.levels(photo, means)[None], means, contract.inputs[0])
    np.testing.assert_allclose(np.array(next(iter(example.values()))), expected, atol=1e-6)
    file.write_text(json.dumps({"size": [4, 6], "do_flip_channel_order": True}))
    refused = invoke("models", "add", "colours", source, *store, "--preprocessor", file)
    assert (refused.exit_code, "pictures are given as red, green, blue here" in refused.output) == (1, True)
    file.write_text("{}")
    assert "colours.onnx: " in invoke("models", "add", "colours", source, *store, "--preprocessor", file).output

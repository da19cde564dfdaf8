"""`bookserve models quantize` as its user runs it, and the int8 version that is served.

Where the child is not what is tested, its work is done in this process, with shorter measurements.
"""

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import small_networks
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from bookserve.clients.command_line import main
from bookserve.export import confined, contracts, manifest
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.quantization import rates, trial
from bookserve.serving.server.models.manifest import rows_independent
from model_servers import server_starter

SCHEMA = json.loads((Path(confined.__file__).parent / "manifest.schema.json").read_text())
FLOAT = contracts.Contract(
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


def make_store(folder: Path) -> Path:
    """A store with version 1 of `digits`: a float graph, an asset, a card, and rows declared independent."""
    version = folder / "store/digits/1"
    small_networks.write_convolutional(version / "assets.extra/model.onnx")
    (version / "assets").mkdir()
    (version / "assets/names.txt").write_text("zero\none\n")
    (version / "assets.extra/report").mkdir()
    (version / "assets.extra/report/card.md").write_text("# digits\n\nOf patterns.\n")
    described = Manifest(
        model="digits",
        version=1,
        created="2026-01-02T03:04:05+00:00",
        contract=FLOAT,
        parity={},
        files=manifest.digests(version),
        made_with={"keras": "3.15"},
        data=DataOrigin("sample", "patterns", "0" * 64),
        profile="smoke",
        seed=3,
        rows_independent=True,
    )
    (version / manifest.LOCATION).write_text(described.to_json())
    return folder / "store"


def save_rows(folder: Path, count: int = 600, **more: np.ndarray) -> Path:
    images, labels = small_networks.pictures(count, 5)
    np.savez(folder / "rows.npz", **{"images": images, "labels": labels, **more})
    return folder / "rows.npz"


def measure_little(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rates, "_SECONDS", 0.001)
    patch.setattr(rates, "_ROUNDS", 5)
    patch.setattr(confined, "call", lambda _, job, limits: json.loads(json.dumps(trial.run(job))))


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("quantised")
    store = make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        measure_little(patch)
        result = invoke(
            *("models", "quantize", "digits", "--data", save_rows(folder), "--models-dir", store),
            *("--calibration-rows", 200, "--min-speed-up", 0),
        )
    assert result.exit_code == 0, result.output
    return store, result


def test_the_next_version_has_the_int8_graph_alone_and_the_whole_manifest(quantised: tuple[Path, Result]) -> None:
    store, result = quantised
    version = store / "digits/2"
    assert sorted(path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()) == [
        "assets.extra/example.json",
        "assets.extra/manifest.json",
        "assets.extra/model.onnx",
        "assets.extra/report/card.md",
        "assets.extra/tf_serving_warmup_requests",
        "assets/names.txt",
    ]
    content = json.loads((version / manifest.LOCATION).read_text())
    assert list(Draft202012Validator(SCHEMA).iter_errors(content)) == []
    found = manifest.read(version)
    assert manifest.changed_files(version, found) == []
    assert (found.precision, found.profile, found.seed, found.data) == (
        *("int8", "smoke", 3),
        DataOrigin("sample", "patterns", "0" * 64),
    )
    assert (found.contract.labels, found.contract.preprocessing) == (FLOAT.labels, FLOAT.preprocessing)
    measured = found.quantization
    assert measured is not None
    assert (measured.version, measured.method, measured.figure) == (1, "static", "accuracy")
    assert (measured.calibration_rows, measured.rows) == (200, 400)
    assert measured.int8 >= 0.99 * measured.float32
    assert measured.interval[0] <= measured.difference <= measured.interval[1]
    assert measured.bytes["int8"] == (version / "assets.extra/model.onnx").stat().st_size < measured.bytes["float32"]
    assert all(rate["int8"] > 0 for rate in measured.rates.values())
    assert list(measured.rates) == ["1", "16"]
    assert found.metrics == {"test": {"accuracy": measured.int8, "rows": 400.0}}
    assert rows_independent(version) is True
    card = (version / "assets.extra/report/card.md").read_text()
    assert card.startswith("# digits, int8")
    assert card.endswith("# digits\n\nOf patterns.\n")
    assert "published as" in result.output
    shown = invoke("models", "show", "digits", "--models-dir", store)
    assert shown.exit_code == 0, shown.output
    assert "int8      accuracy " in shown.output
    assert "files     5, all as published" in shown.output


def test_the_server_answers_as_onnx_runtime_does_on_the_int8_graph(
    quantised: tuple[Path, Result], tmp_path: Path
) -> None:
    store, _ = quantised
    images, _ = small_networks.pictures(40, 6)
    graph = onnxruntime.InferenceSession(str(store / "digits/2/assets.extra/model.onnx"))
    (expected,) = graph.run(None, {"images": images})
    body = json.dumps({"inputs": images.tolist()}).encode()
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={store}")
        url = f"{server.url}/v1/models/digits/versions/2:predict"
        answer = json.loads(urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).read())
    np.testing.assert_allclose(answer["outputs"], expected, atol=1e-6)
    example = manifest.read(store / "digits/2").contract.example
    assert example is not None
    (again,) = graph.run(None, {"images": np.array(example.inputs["images"], np.uint8)})
    np.testing.assert_allclose(example.outputs["probabilities"], again, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "dynamic", "--max-loss", 0.5, "--min-speed-up", 1e6],
            "int8 graphs is worth publishing (--max-loss 50.00%, --min-speed-up 1e+06)",
        ),
        ([2], "digits has no version 2"),
        (["--targets", "classes"], "has no array 'classes' but images, labels"),
    ],
)
def test_what_cannot_be_published_is_one_line_and_status_1(tmp_path: Path, options: list[object], message: str) -> None:
    store = make_store(tmp_path)
    result = invoke("models", "quantize", "digits", *options, "--data", save_rows(tmp_path, 60), "--models-dir", store)
    assert result.exit_code == 1
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert message in error
    assert [path.name for path in (store / "digits").iterdir()] == ["1"]


@pytest.mark.usefixtures("little")
def test_each_graph_that_is_refused_is_a_line_with_its_figure_and_the_reason(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    demands = ("--max-loss", 0.5, "--min-speed-up", 1e6)
    result = invoke("models", "quantize", "digits", "--data", save_rows(tmp_path), "--models-dir", store, *demands)
    assert result.exit_code == 1, result.output
    judged = [line for line in result.output.splitlines() if ", refused: " in line]
    recipe = r"(static, \w+, (all|products)( but \w+)?|dynamic)"
    line = re.compile(rf"digits: {recipe}: accuracy [\d.]+, refused: [\d.]+x as fast")
    assert all(line.fullmatch(one) for one in judged), judged
    assert len(set(judged)) == len(judged) == 5  # two static ones, both with the first product in float, one dynamic
    assert f"none of {len(judged)} int8 graphs is worth publishing" in result.output
    assert re.search(r"^digits: float: accuracy [\d.]+; allowed: --max-loss 50.00%, ", result.output, re.MULTILINE)


def test_a_folder_made_by_hand_is_quantised_by_what_its_graph_says(tmp_path: Path) -> None:
    small_networks.write_dense(tmp_path / "store/height/7/model.onnx")
    np.save(tmp_path / "x.npy", small_networks.points(300, 5)[0])
    result = invoke(
        *("models", "quantize", "height", "--data", tmp_path / "x.npy", "--models-dir", tmp_path / "store"),
        *("--max-loss", 0.5, "--min-speed-up", 0, "--method", "dynamic"),
    )
    assert result.exit_code == 0, result.output
    found = manifest.read(tmp_path / "store/height/8")
    assert found.quantization is not None
    assert (found.quantization.method, found.quantization.figure) == ("dynamic", "closeness")
    assert found.contract.inputs[0].shape == (None, 48)
    assert rows_independent(tmp_path / "store/height/8") is None
    again = invoke(
        *("models", "quantize", "height", 8, "--data", tmp_path / "x.npy", "--models-dir", tmp_path / "store"),
    )
    assert "height version 8 is int8 already" in again.output


def test_a_dynamic_graph_is_not_declared_independent_although_the_float_one_was(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    result = invoke(
        *("models", "quantize", "digits", "--data", save_rows(tmp_path, 60), "--models-dir", store),
        *("--method", "dynamic", "--max-loss", 1, "--min-speed-up", 0),
    )
    assert result.exit_code == 0, result.output
    assert rows_independent(store / "digits/1") is True
    assert rows_independent(store / "digits/2") is None


def test_a_version_without_an_onnx_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store/score/1").mkdir(parents=True)
    (tmp_path / "store/score/1/saved_model.pb").write_bytes(b"")
    np.save(tmp_path / "x.npy", np.zeros((30, 3), np.float32))
    result = invoke("models", "quantize", "score", "--data", tmp_path / "x.npy", "--models-dir", tmp_path / "store")
    assert result.exit_code == 1
    assert "score version 1 has no ONNX graph" in result.output

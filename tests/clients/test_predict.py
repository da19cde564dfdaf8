import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_networks
from click.testing import CliRunner
from PIL import Image

from book_contracts import CONTRACTS, write_manifest, write_manifests
from bookserve.clients import ask_server, predict
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.predict_inputs import Tensors, tensors
from bookserve.export import contracts, manifest
from bookserve.export.contracts import to_json
from bookserve.export.errors import ExportError
from model_servers import server_starter
from stand_in_models import WORDS, FakeServer, serve

ANSWER = {"model": "mnist", "version": 3, "predictions": [{"class": "7", "probabilities": {"6": 0.25, "7": 0.75}}]}


@pytest.fixture
def picture(tmp_path):
    """A file in MNIST's form; its mean grey level is 10, so the fake model server's class is 0."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[10:18, 12:16] = 245  # 32 pixels
    path = tmp_path / "digit.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def _run(*arguments):
    return CliRunner().invoke(predict.main, arguments)


def tell(http_fake, name) -> None:
    """The gateway's description of a model, with its manifest."""
    manifest = {"contract": to_json(CONTRACTS[name])}
    http_fake.answer(
        "GET", f"/api/v1/models/{name}", {"version": 3, "versions": [{"version": 3, "manifest": manifest}]}
    )


def test_the_gateway_is_asked_and_a_chart_printed(http_fake, picture) -> None:
    tell(http_fake, "mnist")
    http_fake.answer("POST", "/api/v1/mnist", ANSWER)
    result = _run("mnist", picture, "--gateway", http_fake.url)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "mnist version 3",
        "class 7",
        f"  6   25.00%  {'█' * 10}",
        f"  7   75.00%  {'█' * 30}",
    ]


def test_the_model_server_is_asked_over_grpc(fake, picture, store) -> None:
    result = _run("mnist", picture, "--grpc", fake.target, "--label", "stable", "--json", "--models-dir", store)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["model"], answer["version"]) == ("mnist", 2)
    assert answer["predictions"][0]["class"] == "0"
    assert answer["predictions"][0]["probabilities"]["0"] == 1.0


def test_the_model_server_is_asked_over_rest(http_fake, picture, store) -> None:
    def info(dtype, *sizes):
        return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(size)} for size in sizes]}}

    outputs = {"probabilities": info("DT_FLOAT", -1, 10), "classes": info("DT_INT64", -1)}
    definitions = {"serving_default": {"inputs": {"images": info("DT_UINT8", -1, 28, 28)}, "outputs": outputs}}
    metadata = {"model_spec": {"version": "5"}, "metadata": {"signature_def": {"signature_def": definitions}}}
    http_fake.answer("GET", "/v1/models/mnist/versions/5/metadata", metadata)
    answer = {"outputs": {"probabilities": [[0.1] * 10], "classes": [4]}}
    http_fake.answer("POST", "/v1/models/mnist/versions/5:predict", answer)
    result = _run("mnist", picture, "--rest", http_fake.url, "--version", "5", "--models-dir", store)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("mnist version 5\nclass 4\n")


def test_a_bare_grpc_after_the_input_takes_the_default_target(picture, monkeypatch) -> None:
    monkeypatch.setattr("bookserve.clients.predict.GrpcClient", lambda target: pytest.fail(target))
    with pytest.raises(pytest.fail.Exception, match=r"127\.0\.0\.1:8500"):
        CliRunner().invoke(predict.main, ["mnist", picture, "--grpc"], catch_exceptions=False)


@pytest.mark.parametrize(
    "way", [("--gateway", "http://127.0.0.1:1"), ("--rest", "http://127.0.0.1:1"), ("--grpc", "127.0.0.1:1")]
)
def test_nobody_there_names_the_mend(way, picture) -> None:
    result = _run("mnist", picture, *way)
    assert result.exit_code == 1
    assert "nothing answers" in result.output
    assert way[1] in result.output
    assert "start it with 'make serve'" in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--grpc", "127.0.0.1:1", "--rest", "http://x"), "one of --gateway, --grpc and --rest"),
        (("--version", "1", "--label", "stable"), "one of --version and --label"),
        (("--version", "0"), "--version"),
        (("--gateway", "no url"), "no URL"),
    ],
)
def test_contradictory_options_are_refused(arguments, text, picture) -> None:
    result = _run("mnist", picture, *arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_unusable_inputs_are_explained(fake, store, tmp_path) -> None:
    server = ("--grpc", fake.target, "--models-dir", store)
    result = _run("mnist", str(tmp_path / "none.png"), *server)
    assert result.exit_code == 1
    assert "cannot read" in result.output
    path = tmp_path / "text.png"
    path.write_text("no picture")
    result = _run("mnist", str(path), *server)
    assert result.exit_code == 1
    assert "PNG, JPEG, WebP, BMP" in result.output


def test_a_model_without_a_contract_is_asked_in_tensors(http_fake, fake, picture, tmp_path) -> None:
    details = {
        "version": 7,
        "versions": [{"version": 7, "manifest": None}],
        "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 2]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 1]}],
    }
    http_fake.answer("GET", "/api/v1/models/own", details)
    http_fake.answer("POST", "/api/v1/own", {"model": "own", "version": 7, "predictions": [{"y": [2.5]}]})
    result = _run("own", "[[1, 2]]", "--gateway", http_fake.url)
    assert result.output == "own version 7\ny 2.5\n"
    assert json.loads(http_fake.received[-1][3]) == {"inputs": {"x": [[1.0, 2.0]]}}
    result = _run("mnist", picture, "--grpc", fake.target, "--models-dir", str(tmp_path))
    assert f"only scaled to the model's size, as {tmp_path} has no manifest of it" in result.output
    assert "classes 0" in result.output


@pytest.mark.parametrize("way", ["--grpc", "--rest"])
def test_without_the_store_the_server_makes_the_tensors_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    contract = replace(
        CONTRACTS["mnist"],
        model="digits",
        inputs=(contracts.Tensor("images", "uint8", (None, 16, 16)),),
        outputs=(contracts.Tensor("probabilities", "float32", (None, 10)),),
        preprocessing=contracts.Preprocessing("images", size=(16, 16), colour="grey", resize="centred"),
    )
    for name in ("digits", "bare"):
        small_networks.write_convolutional(tmp_path / f"store/{name}/1/assets.extra/model.onnx")
    write_manifest(tmp_path / "store", contract, 1)
    described = manifest.read(version := tmp_path / "store/digits/1")
    (version / manifest.LOCATION).unlink()
    (version / manifest.LOCATION).write_text(replace(described, files=manifest.digests(version)).to_json())
    pixels = np.full((90, 120), 250, np.uint8)
    pixels[5:40, 70:80] = 10  # a stroke in dark ink, not in the middle: as it is scaled alone it answers otherwise
    (tmp_path / "photographs").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photographs/stroke.png")
    monkeypatch.chdir(tmp_path)
    with server_starter(tmp_path) as start:
        server = start("--model_root=store")
        target = server.target if way == "--grpc" else server.url
        stored = _run("digits", "photographs/stroke.png", way, target, "--json", "--models-dir", "store")
        sent = _run("digits", "photographs/stroke.png", way, target, "--json")
        folder = _run("digits", "photographs", way, target, "--json")
        (tmp_path / "damaged.png").write_bytes(b"no picture")
        damaged = _run("digits", "damaged.png", "photographs/stroke.png", way, target, "--json")
        guessed = _run("bare", "photographs", way, target, "--json")
    assert stored.exit_code == sent.exit_code == folder.exit_code == guessed.exit_code == 0, sent.output
    wanted = [row["probabilities"] for row in json.loads(stored.stdout)["predictions"]]
    found = [row["probabilities"] for row in json.loads(sent.stdout)["predictions"]]
    assert found == [pytest.approx(list(wanted[0].values()), abs=1e-6)]
    assert json.loads(folder.stdout)["predictions"] == json.loads(sent.stdout)["predictions"]
    assert damaged.exit_code == 1
    assert "damaged.png cannot be read" in damaged.output
    assert "note:" not in sent.output + folder.output + damaged.output
    assert "note: the picture is only scaled to the model's size, as the model store is not named" in guessed.output
    assert json.loads(guessed.stdout)["predictions"] != json.loads(sent.stdout)["predictions"]


def test_tensors_of_a_model_with_a_form_are_for_the_model_server(http_fake) -> None:
    tell(http_fake, "linear")
    result = _run("linear", '{"inputs": [[1.5]]}', "--gateway", http_fake.url)
    assert result.exit_code == 2
    assert "takes no tensors for linear, whose task is regression" in result.output


def test_any_model_is_asked_by_its_signature(fake, tmp_path) -> None:
    body = tmp_path / "example.json"
    body.write_text(json.dumps({"inputs": np.full((1, 28, 28), 14).tolist()}))
    client = GrpcClient(fake.target)
    asked = ask_server.find(client, "mnist", ask_server.Choice())
    answer = ask_server.ask(client, asked, [Tensors(tensors(str(body), asked.contract))])
    assert (answer["version"], answer["predictions"][0]["classes"]) == (3, 4)
    with pytest.raises(ExportError, match=r"'images' is \[1, 2\]; the model takes \[any, 28, 28\]"):
        tensors("[[1, 2]]", asked.contract)


def test_nothing_of_tensorflow_is_imported() -> None:
    code = (
        "import sys; import bookserve.clients.predict, bookserve.serving.gateway.main;"
        " print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'tensorflow_serving', 'keras')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture
def seven():
    """A model server that answers all contracts."""
    fake = FakeServer(models=tuple(CONTRACTS))
    server = serve(fake)
    yield fake
    server.stop(None).wait()


@pytest.fixture
def store(tmp_path):
    assets = write_manifests(tmp_path / "store") / "ptb" / "3" / "assets"
    assets.mkdir(parents=True)
    (assets / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return str(tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "source", "lines"),
    [
        ("linear", "1.5", ["y 9.5"]),
        ("linear", "-1e1", ["y -48.0"]),
        ("logistic", "-0.2,0.8", ["class 1", "probability 0.645656"]),
        ("tox21", "CCO", ["smiles CCO", "          NR-AR    0.59%"]),
        ("cifar10", "PICTURE", ["class airplane", "    airplane  100.00%  " + 40 * "█"]),
        ("mnist", "PICTURE", ["class 0", "  0  100.00%  " + 40 * "█"]),
        ("ptb", "The Foo stock", ["text The Foo stock", "unknown foo", "  market   88.00%  " + 35 * "█"]),
        ("tictactoe", "X.O/.X./...", ["player O", "move 8", "row 2", "column 2"]),
    ],
)
def test_every_model_is_asked_over_grpc(seven, store, tmp_path, name, source, lines) -> None:
    if source == "PICTURE":
        pixels = np.zeros((28, 28), np.uint8)
        pixels[10:18, 12:16] = 245  # a mean of 10
        source = str(tmp_path / "picture.png")
        Image.fromarray(pixels).save(source)
    result = _run(name, source, "--grpc", seven.target, "--models-dir", store)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[: len(lines) + 1] == [f"{name} version 3", *lines]


def test_a_molecule_unlike_the_training_ones_is_told(seven, store, http_fake) -> None:
    near = "nearest training molecule: similarity 0.19 of 1"
    result = _run("tox21", "CCO", "--grpc", seven.target, "--models-dir", store)
    assert result.output.splitlines()[-1] == near  # the version's figures do not say what is unlike
    write_manifest(Path(store), CONTRACTS["tox21"], 3, {"served": {"unlike": 0.3}})
    result = _run("tox21", "CCO", "--grpc", seven.target, "--models-dir", store)
    assert result.output.splitlines()[-1] == f"{near}, unlike the training molecules: these answers are less certain"
    answer = json.loads(_run("tox21", "CCO", "--grpc", seven.target, "--models-dir", store, "--json").output)
    assert answer["predictions"][0]["unlike_training"] is True
    tell(http_fake, "tox21")
    http_fake.answer("POST", "/api/v1/tox21", answer)
    assert _run("tox21", "CCO", "--gateway", http_fake.url).output == result.output


@pytest.mark.parametrize(
    ("name", "source", "body"),
    [
        ("linear", "-1.5", {"x": [-1.5]}),
        ("logistic", "-0.5,2", {"x": [[-0.5, 2.0]]}),
        ("tox21", "CCO", {"smiles": ["CCO"]}),
        ("ptb", "the stock", {"text": ["the stock"], "top_k": 5}),
        ("tictactoe", "X../.../...", {"board": [["X", "", "", "", "", "", "", "", ""]]}),
    ],
)
def test_every_model_is_asked_through_the_gateway(http_fake, name, source, body) -> None:
    tell(http_fake, name)
    http_fake.answer("POST", f"/api/v1/{name}?label=stable", {"model": name, "version": 3, "predictions": [{"y": 1.0}]})
    result = _run(name, source, "--gateway", http_fake.url, "--label", "stable")
    assert result.exit_code == 0, result.output
    assert result.output == f"{name} version 3\ny 1.0\n"
    assert json.loads(http_fake.received[-1][3]) == body


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        ("linear", "x", "give it as 1.5"),
        ("logistic", "1", "give it as 1.5,-0.8"),
        ("tox21", "C1CC", "CCO would be one"),
        ("tictactoe", "XO", "X.O/.X./..."),
        ("tictactoe", "XXX/OO./...", "X has won"),
        ("ptb", "...", "'the stock'"),
        ("cifar10", "none.png", "cannot read none.png"),
    ],
)
def test_bad_inputs_are_explained_without_a_traceback(seven, store, name, source, text) -> None:
    result = _run(name, source, "--grpc", seven.target, "--models-dir", store)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert text in result.output


def test_ptb_needs_the_vocabulary_of_the_version_that_answers(seven, store, tmp_path) -> None:
    result = _run("ptb", "the stock", "--grpc", seven.target)
    assert result.exit_code == 2
    assert "--models-dir" in result.output
    bare = str(write_manifests(tmp_path / "bare", ["ptb"]))
    result = _run("ptb", "the stock", "--grpc", seven.target, "--models-dir", bare)
    assert result.exit_code == 1
    assert "vocabulary.txt cannot be read" in result.output


def test_a_misspelt_option_is_refused(picture) -> None:
    result = _run("mnist", picture, "--jsno")
    assert result.exit_code == 2
    assert "--jsno" in result.output

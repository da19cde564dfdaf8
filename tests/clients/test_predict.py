import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bookserve.clients import predict

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


def test_the_gateway_is_asked_and_a_chart_printed(http_fake, picture) -> None:
    http_fake.answer("POST", "/api/v1/mnist", ANSWER)
    result = _run("mnist", picture, "--gateway", http_fake.url)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "mnist version 3",
        "class 7",
        f"  6   25.00%  {'█' * 10}",
        f"  7   75.00%  {'█' * 30}",
    ]


def test_the_model_server_is_asked_over_grpc(fake, picture) -> None:
    result = _run("mnist", picture, "--grpc", fake.target, "--label", "stable", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["model"], answer["version"]) == ("mnist", 2)
    assert answer["predictions"][0]["class"] == "0"
    assert answer["predictions"][0]["probabilities"]["0"] == 1.0


def test_the_model_server_is_asked_over_rest(http_fake, picture) -> None:
    def info(dtype, *sizes):
        return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(size)} for size in sizes]}}

    outputs = {"probabilities": info("DT_FLOAT", -1, 10), "classes": info("DT_INT64", -1)}
    definitions = {"serving_default": {"inputs": {"images": info("DT_UINT8", -1, 28, 28)}, "outputs": outputs}}
    metadata = {"model_spec": {"version": "5"}, "metadata": {"signature_def": {"signature_def": definitions}}}
    http_fake.answer("GET", "/v1/models/mnist/versions/5/metadata", metadata)
    answer = {"outputs": {"probabilities": [[0.1] * 10], "classes": [4]}}
    http_fake.answer("POST", "/v1/models/mnist/versions/5:predict", answer)
    result = _run("mnist", picture, "--rest", http_fake.url, "--version", "5")
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


def test_unusable_inputs_are_explained(tmp_path) -> None:
    result = _run("mnist", str(tmp_path / "none.png"), "--grpc", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "cannot read" in result.output
    path = tmp_path / "text.png"
    path.write_text("no picture")
    result = _run("mnist", str(path), "--grpc", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "PNG, JPEG, WEBP, BMP" in result.output


def test_an_unknown_model_is_refused() -> None:
    result = _run("nope", "x")
    assert result.exit_code == 2
    assert "mnist" in result.output


def test_nothing_of_tensorflow_is_imported() -> None:
    code = (
        "import sys; import bookserve.clients.predict, bookserve.serving.gateway.main;"
        " print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'tensorflow_serving', 'keras')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

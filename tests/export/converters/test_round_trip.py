"""Every format from its own library to a served answer: the line of README.md that adds it, the model server, and the
library beside it.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from bookserve.clients.command_line import main
from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from documents import ROOT
from model_servers import Server, server_starter, wait_until

pytestmark = pytest.mark.slow
Array = npt.NDArray[Any]


_ROW = re.compile(r"^\| ([^|,]+)[^|]*\| `bookserve (models add score \S+[^`]*)` \|$", re.MULTILINE)


def commands() -> dict[str, list[str]]:
    """Format -> the words after `bookserve` that add a model of it, as README.md has them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serve your own model")[2]
    return {name.strip(): shlex.split(command) for name, command in _ROW.findall(text.partition("\n## ")[0])}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """A store, and a server that follows it."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "models").mkdir()
    with server_starter(folder) as start:
        flags = (f"--model_root={folder / 'models'}", "--file_system_poll_wait_seconds=0.2")
        yield folder / "models", start(*flags, wait=False)


def of_keras(path: Path, x: Array) -> Array:
    import keras

    return np.asarray(keras.models.load_model(path)(x))


def of_saved_model(path: Path, x: Array) -> Array:
    import tensorflow as tf

    (answer,) = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(x)).values()
    return np.asarray(answer)


def of_onnx(path: Path, x: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {session.get_inputs()[0].name: x})[0])


def of_tflite(path: Path, x: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(target["index"]))


def of_pickle(path: Path, x: Array) -> Array:
    import joblib

    return np.asarray(joblib.load(path).predict_proba(x))


def of_xgboost(path: Path, x: Array) -> Array:
    import xgboost

    model = xgboost.XGBClassifier()
    model.load_model(path)
    return np.asarray(model.predict_proba(x))


def of_lightgbm(path: Path, x: Array) -> Array:
    import lightgbm

    return np.asarray(lightgbm.Booster(model_file=path).predict(x))


def of_torch(path: Path, x: Array) -> Array:
    import torch

    return np.asarray(torch.export.load(path).module()(torch.from_numpy(x)).detach())


# Format -> the file of the model's library in what the user gives, and how the library answers.
LIBRARIES: dict[str, tuple[str, Callable[[Path, Array], Array]]] = {
    "SavedModel": ("saved", of_saved_model),
    "Keras": ("model.keras", of_keras),
    "Keras h5": ("model.h5", of_keras),
    "ONNX": ("model.onnx", of_onnx),
    "LiteRT": ("model.tflite", of_tflite),
    "scikit-learn": ("model.joblib", of_pickle),
    "XGBoost": ("model.json", of_xgboost),
    "LightGBM": ("model.txt", of_lightgbm),
    "MLflow": ("model.onnx", of_onnx),
    "Hugging Face": ("model.onnx", of_onnx),
    "torch.export": ("model.pt2", of_torch),
}
INSIDE = {"Keras in TensorFlow": ("data/model.keras", of_keras), "PyTorch": ("model.pt2", of_torch)}  # MLflow folders


def test_what_is_served_is_what_the_library_answers(
    made: tuple[str, Path], serving: tuple[Path, Server], table: tuple[Array, Array]
) -> None:
    (name, path), (store, server) = made, serving
    model = name.lower().replace(" ", "_")
    kind, _, flavor = name.partition(" of ")
    command, add, _, given, *options = commands()[kind]
    if not flavor:
        assert given.endswith("/") == path.is_dir()
        assert Path(given).suffix == path.suffix
    options += ["--trust"] * (flavor in ("scikit-learn", "PyTorch"))
    result = CliRunner().invoke(main, [command, add, model, str(path), "--models-dir", str(store), *options])
    assert result.exit_code == 0, result.output
    assert f"{model}: published as {store / model / '1'}" in result.output

    file, library = {**LIBRARIES, **INSIDE}[flavor or name]
    x = table[0][:50]
    wanted = library(path if path.name == file else path / file, x)
    assert wanted.shape == (50, 3)
    with GrpcClient(f"127.0.0.1:{server.grpc_port}") as client:

        def available() -> bool:
            try:
                return any(status.state == "AVAILABLE" for status in client.status(model))
            except PredictError:
                return False

        wait_until(available, f"{model} is served", seconds=90)
        (asked,) = client.metadata(model).signatures["serving_default"].inputs
        served = client.predict(model, {asked: x}).outputs
    (answer,) = (array for array in served.values() if array.shape == wanted.shape)
    tolerance = 1e-4 if "scikit-learn" in name or "LightGBM" in name else 1e-5
    np.testing.assert_allclose(answer, wanted, atol=tolerance, rtol=0)
    assert len({row.argmax() for row in answer}) > 1  # it tells the classes apart


def test_every_converter_is_in_the_readme_and_in_the_round_trip() -> None:
    from bookserve.export.converters import choose

    assert set(commands()) == set(LIBRARIES)
    assert {converter.FORMAT for converter in choose.CONVERTERS} == {name.removesuffix(" h5") for name in LIBRARIES}


@pytest.mark.parametrize("made", ["LiteRT", "XGBoost"], indirect=True)
def test_the_lines_at_the_end_name_what_serves_the_model(made: tuple[str, Path], tmp_path: Path) -> None:
    _, path = made
    result = CliRunner().invoke(main, ["models", "add", "score", str(path), "--models-dir", str(tmp_path / "models")])
    assert result.exit_code == 0, result.output
    assert f"  bookserve serve --models-dir {tmp_path / 'models'}\n" in result.output
    assert f"  bookserve model-server --model_root={tmp_path / 'models'} --port=8500" in result.output

"""The SavedModel of every model of the book in the engines of others: their commands, as their users call them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bookserve.export import engines, parity, publish, run_reader
from bookserve.export.errors import ExportError
from bookserve.export.store import ModelStore
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import MODELS
from bookserve.training.run import train_model

WITHOUT_TFLITE = {"ptb": "TensorListReserve"}  # model -> the operation that LiteRT lacks


def call(*arguments: str | Path) -> None:
    done = subprocess.run([str(one) for one in arguments], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_engine_answers_as_tensorflow_does(name: str, tmp_path: Path) -> None:
    trained = train_model(name, DataRequest("sample"), tmp_path / "runs", Console(quiet=True), profile="smoke")
    run = run_reader.read(trained.folder, name)
    store = ModelStore(tmp_path / "models")
    if name in WITHOUT_TFLITE:
        lacking = f"{name}: no LiteRT file can be made: LiteRT lacks TensorFlow's operation {WITHOUT_TFLITE[name]}"
        with pytest.raises(ExportError, match=lacking):
            publish.publish(run, store, lambda _: None, ["tflite"])
    made = publish.publish(run, store, lambda _: None, [] if name in WITHOUT_TFLITE else ["tflite"])
    folder = store.path(name, made.version)
    rows = {key: values[:8] for key, values in run.examples().items()}
    expected = engines.saved_model(folder, made.contract.signature)(rows)

    np.savez(tmp_path / "rows.npz", **rows)
    given = ";".join(f"{key}={tmp_path / 'rows.npz'}[{key}]" for key in rows)
    command = Path(sys.executable).with_name("saved_model_cli")
    call(command, "run", "--dir", folder, "--tag_set=serve", f"--signature_def={made.contract.signature}",
         "--inputs", given, "--outdir", tmp_path / "answer")  # fmt: skip
    call(
        sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--opset=18", "--output", tmp_path / "m.onnx"
    )

    answers = {
        "saved_model_cli": {key: np.load(tmp_path / "answer" / f"{key}.npy") for key in expected},
        "tf2onnx": engines.onnx_graph(tmp_path / "m.onnx")(rows),
        "ONNX": engines.onnx_graph(folder / "assets.extra/model.onnx")(rows),
    }
    if name not in WITHOUT_TFLITE:
        answers["LiteRT"] = engines.tflite(folder / "assets.extra/model.tflite", made.contract.signature)(rows)
    for engine, answer in answers.items():
        for tensor in made.contract.outputs:
            parity.difference(tensor, expected, answer, ("TensorFlow", engine))

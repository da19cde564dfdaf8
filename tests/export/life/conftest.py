"""A store of one small model, `score`: two versions of an ONNX graph, with example, figures and report."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from bookserve.clients.command_line import main
from bookserve.export import contracts, engines, golden, manifest
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.manifest import Manifest, Source
from bookserve.export.store import ModelStore

Invoke = Callable[..., Result]
Publish = Callable[..., Manifest]
ROW = np.array([[1.0, 2.0, 3.0]], np.float32)
CONTRACT = Contract(
    "score",
    1,
    (Tensor("x", "float32", (None, 3), free=("rows",)),),
    (Tensor("scores", "float32", (None, 2), free=("rows",)),),
    labels=("no", "yes"),
    task="tabular",
)


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def publish() -> Publish:
    """Publishes a version of y = x w + b, 3 features to 2 scores, with the contract that `models add` writes.

    A `fragile` one fails to answer where a feature is above 3.
    """

    def publish(store: ModelStore, bias: float = 0.1, fragile: bool = False, **fields: object) -> Manifest:
        weights = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)
        initializers = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32([bias, -0.2]), "b")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["scores"])]
        if fragile:
            initializers.append(numpy_helper.from_array(np.zeros(4, np.float32), "table"))
            nodes[1].output[0] = "sum"
            nodes += [
                helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
                helper.make_node("Gather", ["table", "i"], ["zeros"]),
                helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
                helper.make_node("Add", ["sum", "zero"], ["scores"]),
            ]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])]
        outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 2])]
        graph = helper.make_graph(nodes, "score", inputs, outputs, initializers)
        with store.staging("score") as folder:
            (folder / "assets.extra/report").mkdir(parents=True)
            (folder / "assets.extra/report/card.md").write_text("# score\n")
            path = folder / "assets.extra/model.onnx"
            onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
            answer = engines.onnx_graph(path)({"x": ROW})
            made = Manifest(
                model="score",
                version=1,
                created="2026-11-28T15:04:05+00:00",
                contract=replace(CONTRACT, example=golden.example(CONTRACT, {"x": ROW}, answer)),
                parity={"scores": 6e-8},
                files=manifest.digests(folder),
                made_with={"onnx": "1.22.0"},
                configuration="",
                source=Source("ONNX", "model.onnx", "5" * 64),
            )
            made = replace(made, **fields)
            assert contracts.to_json(made.contract)["example"]
            return store.publish("score", folder, lambda version: replace(made, version=version))

    return publish


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory, publish: Publish) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("life") / "models")
    publish(store, metrics={"test": {"accuracy": 0.91, "loss": 0.31, "rows": 500.0}})
    publish(store, bias=0.125, metrics={"test": {"accuracy": 0.92, "loss": 0.3, "rows": 500.0}})
    return store


@pytest.fixture
def store(tmp_path: Path, _made: ModelStore) -> ModelStore:
    """A copy to change."""
    shutil.copytree(_made.root, tmp_path / "models")
    copy = ModelStore(tmp_path / "models")
    copy.write_config()
    return copy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, so that no account of the user at a registry is found."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in (
        "DOCKER_AUTH_CONFIG",
        "DOCKER_CONFIG",
        "ORAS_PASS",
        "ORAS_USER",
        "REGISTRY_AUTH_FILE",
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    return home

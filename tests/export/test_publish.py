import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import numpy_helper
from tensorflow_serving.apis import prediction_log_pb2

from book_contracts import CONTRACTS
from bookserve.export import evaluation, onnx_graph, publish, run_reader, savedmodel
from bookserve.export import manifest as manifests
from bookserve.export.contracts import Contract, Tensor, to_json
from bookserve.export.errors import ExportError
from bookserve.export.life import engine_trial
from bookserve.export.run_reader import TrainingRun
from bookserve.export.store import ModelStore


@pytest.fixture(scope="session")
def published(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a published version."""
    store = ModelStore(tmp_path_factory.mktemp("models"))
    run = run_reader.read(run_reader.latest(runs_dir, "mnist"), "mnist")
    made = publish.publish(run, store, lambda _: None)
    return store.path("mnist", made.version)


@pytest.mark.parametrize("graph", ["saved_model.pb", "assets.extra/model.onnx"])
def test_both_graphs_answer_the_example_as_verify_asks_it(published: Path, graph: str) -> None:
    found = manifests.read(published)
    job = {"folder": str(published), "file": graph, "contract": to_json(found.contract), "parity": found.parity}
    told = engine_trial.run(job)["differences"]
    assert told["classes"] == 0
    assert told["probabilities"] < 1e-5


def test_a_version_has_the_layout_of_the_store(published: Path) -> None:
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert files == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
        "assets.extra/model.onnx",
        "assets.extra/manifest.json",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/report/curves.png",
        "assets.extra/report/confusion.png",
        "assets.extra/report/evaluation.json",
        "assets.extra/report/reliability.png",
        "assets.extra/report/card.md",
    }
    assert (published / "assets").is_dir()


def test_the_manifest_describes_the_version(published: Path, run: TrainingRun) -> None:
    manifest = manifests.read(published)
    assert (manifest.model, manifest.version) == ("mnist", 1)
    assert replace(manifest.contract, example=None) == CONTRACTS["mnist"]
    assert manifest.contract.example is not None
    assert sum(manifest.contract.example.outputs["probabilities"][0]) == pytest.approx(1, abs=1e-5)
    assert manifest.data.source == "sample"
    assert manifest.metrics == run.metrics
    assert set(manifest.parity) == {"probabilities", "classes"}
    assert manifest.parity["probabilities"] < 1e-5
    assert manifest.made_with["tensorflow"] == tf.__version__
    assert (manifest.configuration, manifest.profile) == ("standard", "smoke")
    assert manifests.changed_files(published, manifest) == []


def test_the_savedmodel_has_the_contract_s_signature(published: Path, run: TrainingRun) -> None:
    signature = tf.saved_model.load(str(published)).signatures["serving_default"]
    _, inputs = signature.structured_input_signature
    assert {name: (spec.dtype.name, list(spec.shape)) for name, spec in inputs.items()} == {
        "images": ("uint8", [None, 28, 28])
    }
    for rows in (1, 7):
        outputs = signature(images=tf.constant(run.examples()["images"][:rows]))
        assert outputs["probabilities"].shape == (rows, 10)
        assert outputs["classes"].dtype == tf.int64


def test_the_savedmodel_holds_weights_only(published: Path, run: TrainingRun) -> None:
    names = [name for name, _ in tf.train.list_variables(str(published / "variables" / "variables"))]
    assert not [name for name in names if "optimizer" in name or "momentum" in name]


def test_the_onnx_graph_has_the_contract_s_names_and_a_free_batch(published: Path, run: TrainingRun) -> None:
    session = onnxruntime.InferenceSession(published / onnx_graph.LOCATION)
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["n", 28, 28])
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["n", 10]),
        ("classes", "tensor(int64)", ["n"]),
    ]
    for rows in (0, 1, 7):
        probabilities, classes = session.run(None, {"images": run.examples()["images"][:rows]})
        assert probabilities.shape == (rows, 10)
        np.testing.assert_array_equal(classes, probabilities.argmax(axis=1) if rows else [])


def test_the_warm_up_requests_are_tensorflow_serving_s_own_messages(published: Path, run: TrainingRun) -> None:
    records = tf.data.TFRecordDataset(str(published / "assets.extra/tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records.as_numpy_iterator()]
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log"] * 3
    requests = [log.predict_log.request for log in logs]
    assert {(request.model_spec.name, request.model_spec.signature_name) for request in requests} == {
        ("mnist", "serving_default")
    }
    for request, rows in zip(requests, (1, 8, 32), strict=True):
        sent = tf.make_ndarray(request.inputs["images"])
        np.testing.assert_array_equal(sent, run.examples()["images"][:rows])


def test_the_card_says_that_it_is_a_sample_and_how_good_it_is(published: Path, run: TrainingRun) -> None:
    card = (published / "assets.extra/report/card.md").read_text()
    assert "not the real data set" in card
    assert f"| test | {run.metrics['test']['accuracy']:.6g} |" in card
    assert "![confusion](confusion.png)" in card
    assert "\n".join(evaluation.text(evaluation.read(run.report / "evaluation.json"))) in card
    assert "| in `images` | uint8 | [batch, 28, 28] |" in card


def test_a_broken_onnx_graph_is_refused_and_nothing_is_published(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx_graph.convert

    def convert_wrongly(servable: savedmodel.ServingModule, contract: Contract, path: Path) -> None:
        convert(servable, contract, path)
        graph = onnx.load(path)
        bias = next(item for item in graph.graph.initializer if item.dims == [10])
        values = numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[3]
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_graph, "convert", convert_wrongly)
    store = ModelStore(tmp_path)
    with pytest.raises(ExportError, match=r"differ in 'probabilities' by 0\.\d+, more than \d"):
        publish.publish(run, store, lambda _: None)
    assert store.models() == []
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_network_that_breaks_the_contract_is_refused(run: TrainingRun) -> None:
    def with_output(tensor: Tensor) -> Contract:
        return Contract("mnist", 1, CONTRACTS["mnist"].inputs, (tensor,))

    for tensor, message in (
        (Tensor("scores", "float32", (None, 10)), "no output 'scores'"),
        (Tensor("probabilities", "float64", (None, 10)), "is float32"),
        (Tensor("probabilities", "float32", (None, 11)), r"\[None, 11\]"),
        (Tensor("probabilities", "float32", (None,)), r"\[None\]"),
    ):
        with pytest.raises(ExportError, match=message):
            savedmodel.load(run.network, with_output(tensor))
    with pytest.raises(ExportError, match="does not take the inputs"):
        savedmodel.load(
            run.network, Contract("mnist", 1, (Tensor("images", "uint8", (None, 28)),), CONTRACTS["mnist"].outputs)
        )


def test_a_damaged_network_file_is_named(run: TrainingRun, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(run.network.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"model\.keras cannot be loaded"):
        savedmodel.load(tmp_path / "model.keras", CONTRACTS["mnist"])


def test_a_store_that_cannot_be_written_is_named(run: TrainingRun, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ExportError, match=r"cannot write to .*/models: "):
        publish.publish(run, ModelStore(tmp_path / "models"), lambda _: None)


def test_a_full_disk_is_named_and_leaves_nothing(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match="No space left on device"):
        publish.publish(run, ModelStore(tmp_path), lambda _: None)
    assert list((tmp_path / "mnist").iterdir()) == []

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import numpy_helper
from tensorflow_serving.apis import prediction_log_pb2

import http_calls
from book_contracts import CONTRACTS
from bookserve.export import (
    engines,
    evaluation,
    onnx_graph,
    parity,
    publish,
    run_graphs,
    run_reader,
    savedmodel,
    tflite_graph,
)
from bookserve.export import manifest as manifests
from bookserve.export.contracts import Contract, Tensor, to_json
from bookserve.export.errors import ExportError
from bookserve.export.life import engine_trial
from bookserve.export.run_reader import TrainingRun
from bookserve.export.store import ModelStore
from model_servers import server_starter


@pytest.fixture(scope="session")
def published(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a published version."""
    store = ModelStore(tmp_path_factory.mktemp("models"))
    run = run_reader.read(run_reader.latest(runs_dir, "mnist"), "mnist")
    made = publish.publish(run, store, lambda _: None, ["tflite"])
    return store.path("mnist", made.version)


def job(run: TrainingRun, folder: Path, *formats: str) -> dict[str, Any]:
    """What the child that makes the graphs is told."""
    (folder / "assets.extra").mkdir(parents=True)
    return {
        "run": str(run.folder),
        "folder": str(folder),
        "contract": to_json(run.contract),
        "assets": [],
        "formats": formats,
    }


@pytest.mark.parametrize("graph", ["saved_model.pb", "assets.extra/model.onnx", "assets.extra/model.tflite"])
def test_every_graph_answers_the_example_as_verify_asks_it(published: Path, graph: str) -> None:
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
        "assets.extra/model.tflite",
        "assets.extra/manifest.json",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/report/curves.png",
        "assets.extra/report/confusion.png",
        "assets.extra/report/evaluation.json",
        "assets.extra/report/reliability.png",
        "assets.extra/report/card.md",
    }
    assert (published / "assets").is_dir()


def test_a_run_that_is_published_again_gives_the_same_files(published: Path, run: TrainingRun, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    publish.publish(run, store, lambda _: None, ["tflite"])
    again = store.path("mnist", 1)
    names = {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert names == {path.relative_to(published) for path in published.rglob("*") if path.is_file()}
    assert [str(name) for name in names if (again / name).read_bytes() != (published / name).read_bytes()] == []


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
    assert manifest.created == run.started != ""
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


def test_the_onnx_graph_says_who_made_it_and_what_its_classes_are(published: Path) -> None:
    graph = onnx.load(published / onnx_graph.LOCATION)
    assert (graph.producer_name, graph.producer_version) == ("bookserve", version("bookserve"))
    assert (graph.graph.name, graph.model_version) == ("mnist", 1)
    told = onnxruntime.InferenceSession(published / onnx_graph.LOCATION).get_modelmeta().custom_metadata_map
    assert json.loads(told.pop("labels")) == [str(digit) for digit in range(10)]
    assert told == {
        "model": "mnist",
        "contract": "mnist/1",
        "task": "image-classification",
        "precision": "float32",
        "converter": f"tf2onnx {version('tf2onnx')}",
    }


def test_our_server_serves_the_litert_file(published: Path, run: TrainingRun, tmp_path: Path) -> None:
    images = run.examples()["images"][:3]
    body = json.dumps({"inputs": images.tolist()})
    expected = engines.onnx_graph(published / onnx_graph.LOCATION)({"images": images})
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={published.parents[1]}", "--prefer_tflite_model")
        answer = http_calls.post(server.rest_port, "/v1/models/mnist:predict", body).json()
        assert http_calls.get(server.rest_port, "/v2/models/mnist").json()["platform"] == "tflite"
    np.testing.assert_allclose(answer["outputs"]["probabilities"], expected["probabilities"], atol=1e-5)
    assert answer["outputs"]["classes"] == expected["classes"].tolist()


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


def test_a_broken_onnx_graph_is_refused(run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx_graph.convert

    def convert_wrongly(servable: savedmodel.ServingModule, contract: Contract, path: Path) -> None:
        convert(servable, contract, path)
        graph = onnx.load(path)
        bias = next(item for item in graph.graph.initializer if item.dims == [10])
        values = numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[3]
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_graph, "convert", convert_wrongly)
    with pytest.raises(ExportError, match=r"the ONNX graph differ in 'probabilities' by 0\.\d+, more than \d"):
        run_graphs.make(job(run, tmp_path))


def test_a_savedmodel_whose_variables_tensorflow_1_and_litert_lose_is_refused(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keras's own variables, which wrap TensorFlow's: the converter takes them for empty ones.
    monkeypatch.setattr(savedmodel, "read_resources", lambda network, _: list(network.variables))
    with pytest.raises(ExportError, match=r"TensorFlow 1's loader refuses the rows: .* Could not find variable"):
        run_graphs.make(job(run, tmp_path))
    with pytest.raises(ExportError, match="the SavedModel and the LiteRT file differ in 'probabilities'"):
        run_graphs._tflite(tmp_path, run.contract, run.examples())  # of the files that were written


def test_a_savedmodel_that_tensorflow_1_reads_otherwise_is_refused(
    published: Path, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engines.saved_model_session

    def load_wrongly(folder: Path, signature: str) -> engines.Run:
        answer = load(folder, signature)
        return lambda rows: {name: values[::-1] for name, values in answer(rows).items()}

    monkeypatch.setattr(engines, "saved_model_session", load_wrongly)
    with pytest.raises(ExportError, match="the SavedModel and the SavedModel in TensorFlow 1's loader differ"):
        parity.check(published, run.contract, run.examples())


def test_what_litert_lacks_is_told_and_refused_only_where_it_is_wanted(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lacking(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.math.digamma(x)}

    module = Lacking()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.serve})

    def convert(_: Path, signature: str, path: Path) -> engines.Run:
        return convert_really(tmp_path / "saved", signature, path)

    convert_really = tflite_graph.convert
    monkeypatch.setattr(tflite_graph, "convert", convert)
    told = run_graphs.make(job(run, tmp_path / "told"))
    assert told["notes"] == ["not tried in LiteRT: LiteRT lacks TensorFlow's operation Digamma, as this model has it"]
    monkeypatch.setattr(onnx_graph, "convert", lambda *_: None)
    monkeypatch.setattr(parity, "check", lambda *_: {})
    with pytest.raises(ExportError, match="no LiteRT file can be made: LiteRT lacks TensorFlow's operation Digamma"):
        run_graphs.make(job(run, tmp_path / "wanted", "tflite"))


def test_a_child_that_fails_publishes_nothing(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_GRAPHS", "bookserve.export.run_graphs_that_are_not:make")
    store = ModelStore(tmp_path)
    with pytest.raises(ExportError, match="mnist: ModuleNotFoundError: No module named"):
        publish.publish(run, store, lambda _: None)
    assert store.models() == []
    assert not (tmp_path / "mnist").exists()


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
    assert not (tmp_path / "mnist").exists()

"""The request log as TFRecords of PredictionLog: written by a real server, read back by TensorFlow."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tritonclient.grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from bookserve.serving.server.models.warmup import LOCATION
from bookserve.serving.wire import tfrecord
from model_servers import Server, server_starter, wait_until, write_scale_model


class Examples(tf.Module):
    """Classifies and regresses tf.Example by their one feature."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return {"scores": tf.concat([x, 1 - x], 1), "classes": tf.where(tf.concat([x, 1 - x], 1) > 0.5, "yes", "no")}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return {"outputs": x / 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """All models in one log but `lines`, whose log is of JSON lines."""
    for name in ("scale", "lines"):
        write_scale_model(folder / "models" / name, 1, 2.0)
    module = Examples()
    signatures = {"serving_default": module.classify, "regress": module.regress}
    tf.saved_model.save(module, str(folder / "models" / "examples" / "1"), signatures=signatures)
    collector = f'log_collector_config {{ type: "jsonl" filename_prefix: "{folder}/lines" }}'
    configs = [
        f'config {{ name: "{name}" base_path: "{folder}/models/{name}" model_platform: "tensorflow" {more} }}'
        for name, more in (("scale", ""), ("examples", ""), ("lines", f"logging_config {{ {collector} }}"))
    ]
    (folder / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    with server_starter(folder) as start:
        yield start(
            f"--model_config_file={folder / 'models.config'}",
            f"--request_log_file={folder / 'log'}",
            "--request_log_format=tfrecord",
        )


def records(folder: Path) -> list[prediction_log_pb2.PredictionLog]:
    """As TensorFlow reads them."""
    files = sorted(map(str, folder.glob("log-*.tfrecord")))
    return [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(files).as_numpy_iterator()
    ]


def new_record(folder: Path, before: int) -> prediction_log_pb2.PredictionLog:
    wait_until(lambda: len(records(folder)) > before, "the record is written")
    return records(folder)[before]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_tensorflow_reads_what_is_framed(tmp_path_factory: pytest.TempPathFactory, values: list[bytes]) -> None:
    file = tmp_path_factory.mktemp("framed") / "f"
    file.write_bytes(b"".join(map(tfrecord.framed, values)))
    assert list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator()) == values
    with tf.io.TFRecordWriter(str(file)) as writer:
        for value in values:
            writer.write(value)
    assert file.read_bytes() == b"".join(map(tfrecord.framed, values))


def test_predict_over_all_protocols(server: Server, folder: Path) -> None:
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "scale"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))

    def by_grpc() -> None:
        with grpc.insecure_channel(server.target) as channel:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)

    def by_rest() -> None:
        body = json.dumps({"instances": x.tolist()}).encode()
        urllib.request.urlopen(f"{server.url}/v1/models/scale:predict", body, timeout=20).close()

    def by_oip() -> None:
        tensor = tritonclient.grpc.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        with tritonclient.grpc.InferenceServerClient(server.target) as client:
            client.infer("scale", [tensor])

    for ask in (by_grpc, by_rest, by_oip):
        before = len(records(folder))
        ask()
        record = new_record(folder, before)
        log = record.predict_log
        for spec in (record.log_metadata.model_spec, log.request.model_spec, log.response.model_spec):
            assert (spec.name, spec.version.value, spec.signature_name) == ("scale", 1, "serving_default")
        assert record.log_metadata.timestamp_secs > 1_700_000_000
        assert record.log_metadata.sampling_config.sampling_rate == 1
        np.testing.assert_array_equal(tf.make_ndarray(log.request.inputs["x"]), x)
        np.testing.assert_array_equal(tf.make_ndarray(log.response.outputs["y"]), 2 * x)


def test_tensors_are_whole(server: Server, folder: Path) -> None:
    before = len(records(folder))
    body = json.dumps({"instances": [[1.5, 2, 3]] * 20_000}).encode()
    urllib.request.urlopen(f"{server.url}/v1/models/scale:predict", body, timeout=20).close()
    log = new_record(folder, before).predict_log
    assert tf.make_ndarray(log.request.inputs["x"]).shape == (20_000, 3)
    np.testing.assert_array_equal(tf.make_ndarray(log.response.outputs["y"]), [[3, 4, 6]] * 20_000)


def example(x: float) -> tf.train.Example:
    return tf.train.Example(
        features=tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[x]))})
    )


def test_classify_and_regress(server: Server, folder: Path) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name = "examples"
        classify.input.example_list.examples.extend([example(0.75), example(0.25)])
        before = len(records(folder))
        answer: Any = stub.Classify(classify, timeout=60)
        log: Any = new_record(folder, before).classify_log
        assert list(log.request.input.example_list.examples) == list(classify.input.example_list.examples)
        assert log.response == answer
        assert log.response.result.classifications[0].classes[0].label == "yes"
        regress = regression_pb2.RegressionRequest()
        regress.model_spec.name = "examples"
        regress.model_spec.signature_name = "regress"
        regress.input.example_list.examples.extend([example(0.5)])
        answer = stub.Regress(regress, timeout=60)
        log = new_record(folder, before + 1).regress_log
        assert log.request.input == regress.input
        assert log.response == answer


def test_failures_and_other_logs_have_no_record(server: Server, folder: Path) -> None:
    before = len(records(folder))
    for model, body in (("scale", {"instances": [["a"]]}), ("lines", {"instances": [[1, 2, 3]]})):
        request = urllib.request.Request(f"{server.url}/v1/models/{model}:predict", json.dumps(body).encode())
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError as error:
            error.close()
    urllib.request.urlopen(f"{server.url}/v1/models/scale/metadata", timeout=20).close()

    def written() -> bool:
        return any('"model":"lines"' in file.read_text() for file in folder.glob("lines-*.jsonl"))

    wait_until(written, "the line of the other log is written")
    body_of_last = json.dumps({"instances": [[7, 7, 7]]}).encode()
    urllib.request.urlopen(f"{server.url}/v1/models/scale:predict", body_of_last, timeout=20).close()
    last = new_record(folder, before)
    assert tf.make_ndarray(last.predict_log.request.inputs["x"]).tolist() == [[7, 7, 7]]


def test_a_log_warms_the_next_version_up(server: Server, folder: Path) -> None:
    before = len(records(folder))
    urllib.request.urlopen(
        f"{server.url}/v1/models/scale:predict", json.dumps({"instances": [[1, 2, 3]]}).encode(), timeout=20
    ).close()
    new_record(folder, before)
    with tf.io.TFRecordWriter(str(folder / "warmup")) as writer:
        for record in records(folder):
            if record.log_metadata.model_spec.name == "scale":
                writer.write(record.SerializeToString())
    next_version = write_scale_model(folder / "next", 2, 3.0)
    (next_version / LOCATION).parent.mkdir()
    shutil.copy(folder / "warmup", next_version / LOCATION)
    next_version.rename(folder / "models" / "scale" / "2")
    wait_until(lambda: "Number of warmup records read: " in server.log.read_text(), "it is warmed up", 60)
    state = "Successfully loaded servable version {name: scale version: 2}"
    wait_until(lambda: state in server.log.read_text(), "it serves", 60)

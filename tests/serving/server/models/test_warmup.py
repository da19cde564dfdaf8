from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from bookserve.export import warmup as written
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.server.models import warmup
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array, TensorSpec
from model_servers import StartServer, write_scale_model

SCALE = Signature(
    "serving_default",
    {"x": TensorSpec("x", tensorflow_pb2.DT_FLOAT, (None, 3))},
    {"y": TensorSpec("y", tensorflow_pb2.DT_FLOAT, (None, 3))},
)


class CountingEngine:
    """Notes the inputs of each run."""

    computes_alone = False
    keeps_state = False
    doubts: Mapping[str, str] = {}
    name = "counting"
    signatures: Mapping[str, Signature] = {"serving_default": SCALE}
    signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = {}

    def __init__(self) -> None:
        self.inputs: list[Array] = []

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.inputs.append(inputs["x"])
        return [inputs["x"]]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    (tmp_path / "assets.extra").mkdir()
    return tmp_path


def write(version: Path, *records: bytes) -> Path:
    path = version / warmup.LOCATION
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def predict_record(rows: int = 1, width: int = 3) -> bytes:
    return written.prediction_log("scale", {"x": np.ones((rows, width), np.float32)})


def test_what_the_export_writes_is_run(version: Path) -> None:
    assert written.LOCATION == warmup.LOCATION
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    contract = Contract("scale", 1, (Tensor("x", "float32", (None, 3)),), ())
    written.write(version / warmup.LOCATION, contract, {"x": rows})
    engine = CountingEngine()
    warmup.warm_up(engine, version, iterations=2)
    assert [len(array) for array in engine.inputs] == [1, 1, 8, 8, 32, 32]
    np.testing.assert_array_equal(engine.inputs[-1], rows[:32])


def test_without_a_file_one_row_of_zeros_is_run(version: Path) -> None:
    engine = CountingEngine()
    warmup.warm_up(engine, version, iterations=5)
    (zeros,) = engine.inputs
    np.testing.assert_array_equal(zeros, np.zeros((1, 3)))


def test_a_type_that_numpy_lacks_keeps_no_version_from_loading(version: Path) -> None:
    x = {"x": TensorSpec("x", tensorflow_pb2.DT_QUINT8, (None, 3))}
    engine = CountingEngine()
    engine.signatures = {"brain": Signature("brain", x, x), "serving_default": SCALE}
    warmup.warm_up(engine, version, iterations=1)
    assert len(engine.inputs) == 1


def test_an_empty_file_is_no_request(version: Path) -> None:
    write(version)
    engine = CountingEngine()
    warmup.warm_up(engine, version, iterations=1)
    assert engine.inputs == []


def fails(version: Path) -> str:
    with pytest.raises(ServingError) as caught:
        warmup.warm_up(CountingEngine(), version, iterations=1)
    return str(caught.value)


def test_every_flipped_bit_of_a_record_is_noticed(version: Path) -> None:
    path = write(version, predict_record())
    sound = path.read_bytes()
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        assert fails(version) == (
            "DATA_LOSS: corrupted record at 0. Please verify your warmup data is in TFRecord format."
        )


def test_every_cut_is_noticed(version: Path) -> None:
    path = write(version, predict_record(), predict_record())
    whole = path.read_bytes()
    second = len(whole) // 2
    for size in (*range(1, second), *range(second + 1, len(whole))):
        path.write_bytes(whole[:size])
        assert fails(version).startswith(f"DATA_LOSS: truncated record at {0 if size < second else second}.")


def test_a_record_that_is_no_prediction_log(version: Path) -> None:
    record = b"\xff\xff\xff"
    path = write(version, record)
    assert fails(version) == f"INVALID_ARGUMENT: Failed to parse warmup record: {record!r} from {path}"


def test_at_most_a_thousand_records(version: Path) -> None:
    write(version, *[predict_record()] * 1000)
    engine = CountingEngine()
    warmup.warm_up(engine, version, iterations=1)
    assert len(engine.inputs) == 1000
    path = write(version, *[predict_record()] * 1001)
    assert fails(version) == (f"INVALID_ARGUMENT: Number of warmup records exceeds the maximum (1000) at {path}")


def test_a_request_that_the_model_refuses(version: Path) -> None:
    write(version, predict_record(width=4))
    assert fails(version) == "INVALID_ARGUMENT: input 'x' expects shape [?, 3], the request has [1, 4]"


class ExampleEngine(CountingEngine):
    """Scores and values for examples, each the number of its bytes."""

    def __init__(self) -> None:
        super().__init__()
        inputs = {"inputs": TensorSpec("inputs", tensorflow_pb2.DT_STRING, (None,))}
        self.signatures = {
            name: Signature(name, inputs, {alias: TensorSpec(alias, tensorflow_pb2.DT_FLOAT, None)})
            for name, alias in (("serving_default", "scores"), ("regress", "outputs"))
        }

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.inputs.append(inputs["inputs"])
        return [np.float32([[len(value)] for value in inputs["inputs"]])]


def test_classify_regress_and_multi_inference_are_run(version: Path) -> None:
    classify, regress, multi = (prediction_log_pb2.PredictionLog() for _ in range(3))
    classify.classify_log.request.input.example_list.examples.add()
    regress.regress_log.request.model_spec.signature_name = "regress"
    regress.regress_log.request.input.example_list.examples.add()
    multi.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/classify")
    multi.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/regress")
    multi.multi_inference_log.request.tasks[1].model_spec.signature_name = "regress"
    multi.multi_inference_log.request.input.example_list.examples.add()
    write(version, *(log.SerializeToString() for log in (classify, regress, multi)))
    engine = ExampleEngine()
    warmup.warm_up(engine, version, iterations=1)
    assert [array.tolist() for array in engine.inputs] == [[b""]] * 4
    write(version, regress.SerializeToString())
    assert fails(version) == "INVALID_ARGUMENT: No signature was found with the name: regress"
    classify.classify_log.request.model_spec.signature_name = ""
    write(version, classify.SerializeToString())
    assert fails(version).startswith("INVALID_ARGUMENT: No classification inputs found in SignatureDef: ")
    multi.multi_inference_log.request.tasks[0].method_name = "tensorflow/serving/predict"
    write(version, multi.SerializeToString())
    assert fails(version) == "UNIMPLEMENTED: Unsupported signature method_name: tensorflow/serving/predict"


def test_logs_of_other_kinds_are_unimplemented(version: Path) -> None:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.SetInParent()
    write(version, log.SerializeToString())
    assert fails(version).startswith("UNIMPLEMENTED: Unsupported log_type for warmup: ")


def test_a_version_whose_warm_up_fails_is_not_served(start_server: StartServer, tmp_path: Path) -> None:
    base = tmp_path / "scale"
    write(write_scale_model(base, 1, 2.0), predict_record(width=4))
    flags = (f"--model_base_path={base}", "--max_num_load_retries=0")
    server = start_server(*flags, wait=False)
    assert server.process.wait(60) == 255
    assert "input 'x' expects shape [?, 3], the request has [1, 4]" in server.log.read_text()
    assert "Successfully loaded" not in server.log.read_text()
    server = start_server(*flags, "--enable_model_warmup=false")
    assert "Successfully loaded servable version {name: default version: 1}" in server.log.read_text()

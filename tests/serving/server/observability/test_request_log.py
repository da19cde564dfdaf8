"""The request log: what a line holds, that files take turns, and that requests never wait for it."""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bookserve.serving.server.observability.request_log import (
    MAX_TENSOR_BYTES,
    RequestLog,
)
from bookserve.serving.wire.model_admin_pb2 import AddOrReplaceModelRequest
from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model


def lines(folder: Path, prefix: str = "log") -> list[dict[str, Any]]:
    def place(file: Path) -> tuple[str, int]:
        day, *number = file.stem.removeprefix(f"{prefix}-").split(".")
        return day, int(number[0]) if number else 0

    files = sorted(folder.glob(f"{prefix}-2*.jsonl"), key=place)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def lost() -> list[str]:
    return []


def opened(folder: Path, lost: list[str], *, max_file_bytes: int = 1 << 20, max_files: int = 0) -> RequestLog:
    return RequestLog(str(folder / "log"), max_file_bytes, max_files, lost.append)


def closed(request_log: RequestLog) -> None:
    request_log.stop()
    request_log.join()


def test_every_kind_of_tensor_becomes_json(tmp_path: Path, lost: list[str]) -> None:
    strings = np.array([b"text", b"\xff\x00"], dtype=object)
    tensors = {
        "float": np.array([[1.5, np.nan]], np.float32),
        "half": np.array([0.5], np.float16),
        "int": np.array(7, np.int64),
        "bool": np.array([True]),
        "strings": strings,
        "complex": np.array([1 + 2j], np.complex64),
        "slice": np.arange(6, dtype=np.int32).reshape(2, 3)[:, 1],
        "large": np.zeros(MAX_TENSOR_BYTES + 1, np.uint8),
        "large_strings": np.array([b"x" * MAX_TENSOR_BYTES * 2], dtype=object),
    }
    request_log = opened(tmp_path, lost)
    assert request_log.put({"model": "m"}, tensors, {})
    closed(request_log)
    (line,) = lines(tmp_path)
    assert line.pop("time").startswith("20")
    omitted = f"more than {MAX_TENSOR_BYTES} bytes"
    assert line == {
        "model": "m",
        "inputs": {
            "float": [[1.5, None]],
            "half": [0.5],
            "int": 7,
            "bool": [True],
            "strings": ["text", {"b64": "/wA="}],
            "complex": [[1.0, 2.0]],
            "slice": [1, 4],
            "large": {"omitted": omitted, "dtype": "uint8", "shape": [MAX_TENSOR_BYTES + 1]},
            "large_strings": {"omitted": omitted, "dtype": "string", "shape": [1]},
        },
        "outputs": {},
    }
    assert lost == []


def test_files_take_turns_by_size_and_old_ones_go(tmp_path: Path, lost: list[str]) -> None:
    other = tmp_path / "log-of-another-20250101.jsonl"
    other.write_text("kept\n")
    request_log = opened(tmp_path, lost, max_file_bytes=200, max_files=3)
    for number in range(100):
        assert request_log.put({"model": "m", "number": number}, {}, {})
    closed(request_log)
    files = [file for file in tmp_path.iterdir() if file != other]
    assert len(files) == 3
    assert all(file.stat().st_size < 300 for file in files)
    kept = [line["number"] for line in lines(tmp_path)]
    assert kept == list(range(kept[0], 100))
    assert other.read_text() == "kept\n"


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path: Path, lost: list[str]) -> None:
    for start in (0, 10, 20):
        request_log = opened(tmp_path, lost, max_file_bytes=250, max_files=4)
        for number in range(start, start + 10):
            request_log.put({"model": "m", "number": number}, {}, {})
        closed(request_log)
    kept = [line["number"] for line in lines(tmp_path)]
    assert kept == list(range(kept[0], 30))
    assert kept[0] < 25


def test_a_folder_that_cannot_be_written_costs_records_not_requests(
    tmp_path: Path, lost: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing"
    request_log = opened(missing, lost)
    for _ in range(3):
        assert request_log.put({"model": "m"}, {}, {})
    wait_until(lambda: len(lost) == 3, "the records are lost")
    assert [record.message for record in caplog.records] == [
        f"the request log {missing / 'log'} cannot be written: No such file or directory"
    ]
    missing.mkdir()
    request_log.put({"model": "m"}, {}, {})
    closed(request_log)
    assert len(lines(missing)) == 1


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path, lost: list[str]) -> None:
    victim = tmp_path / "victim"
    request_log = opened(tmp_path, lost)
    request_log.put({"model": "m"}, {}, {})
    closed(request_log)
    (file,) = tmp_path.glob("log-*.jsonl")
    file.unlink()
    file.symlink_to(victim)
    request_log = opened(tmp_path, lost)
    request_log.put({"model": "m"}, {}, {})
    closed(request_log)
    assert lost == ["m"]
    assert not victim.exists()


def test_a_full_queue_drops_instead_of_waiting(
    tmp_path: Path, lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a disk that hangs, what is kept in memory stays below the limits, by number and by bytes."""
    go_on = threading.Event()
    write = os.write

    def hang(descriptor: int, data: bytes) -> int:
        go_on.wait(20)
        return write(descriptor, data)

    monkeypatch.setattr("bookserve.serving.server.observability.request_log.os.write", hang)
    request_log = opened(tmp_path, lost)
    tensor = np.zeros(MAX_TENSOR_BYTES, np.uint8)
    taken = sum(request_log.put({"model": "m"}, {"x": tensor}, {}) for _ in range(2000))
    assert taken == 512
    go_on.set()
    closed(request_log)
    request_log = opened(tmp_path, lost)
    go_on.clear()
    taken = sum(request_log.put({"model": "m"}, {}, {}) for _ in range(20_000))
    assert 10_000 <= taken < 10_300
    go_on.set()
    closed(request_log)


def test_half_a_record_is_taken_back(tmp_path: Path, lost: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full takes the beginning of what is written."""
    room = [150]
    write = os.write

    def fill(descriptor: int, data: bytes) -> int:
        room[0] -= (written := write(descriptor, data[: room[0]]))
        return written

    for number in range(4):
        with monkeypatch.context() as patch:
            patch.setattr("bookserve.serving.server.observability.request_log.os.write", fill)
            request_log = opened(tmp_path, lost)
            request_log.put({"model": "m", "number": number}, {}, {})
            closed(request_log)
    request_log = opened(tmp_path, lost)
    request_log.put({"model": "m", "number": 4}, {}, {})
    closed(request_log)
    assert [line["number"] for line in lines(tmp_path)] == [0, 4]
    assert lost == ["m"] * 3


# A real server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("request-log")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """`scale` has a log of its own, `quiet` samples nothing, the others share the one of the flag."""
    for name in ("scale", "quiet", "other"):
        write_scale_model(folder / name, 1, 2.0)
    config = folder / "models.config"

    def model(name: str, logging: str = "") -> str:
        return f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" {logging} }}'

    def logging(rate: float) -> str:
        prefix = f'log_collector_config {{ type: "jsonl" filename_prefix: "{folder}/of-scale" }}'
        return f"logging_config {{ {prefix} sampling_config {{ sampling_rate: {rate} }} }}"

    config.write_text(
        f"model_config_list {{ {model('scale', logging(1))} {model('quiet', logging(0))} {model('other')} }}"
    )
    with server_starter(folder) as start:
        yield start(f"--model_config_file={config}", f"--request_log_file={folder}/rest", "--enable_metrics")


def post(server: Server, model: str, request_id: str, body: Any) -> int:
    request = urllib.request.Request(
        f"{server.url}/v1/models/{model}:predict", json.dumps(body).encode(), {"x-request-id": request_id}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def line_of(folder: Path, prefix: str, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [line for line in lines(folder, prefix) if line["request_id"] == request_id]

    wait_until(lambda: bool(found()), f"the record of {request_id}")
    (line,) = found()
    return line


def test_a_record_holds_the_request_and_its_answer(server: Server, folder: Path) -> None:
    assert post(server, "scale", "rest-1", {"instances": [[1, 2, 3]]}) == 200
    line = line_of(folder, "of-scale", "rest-1")
    assert line.pop("latency_us") > 0
    assert line.pop("time").startswith("20")
    assert line == {
        "request_id": "rest-1",
        "entrypoint": "REST",
        "api": "predict",
        "model": "scale",
        "version": 1,
        "signature": "serving_default",
        "status": "OK",
        "error": "",
        "sampling_rate": 1.0,
        "inputs": {"x": [[1.0, 2.0, 3.0]]},
        "outputs": {"y": [[2.0, 4.0, 6.0]]},
    }


def test_grpc_and_failures_are_logged_too(server: Server, folder: Path) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "scale"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, 3), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(request, timeout=20, metadata=(("x-request-id", "grpc-1"),))
    line = line_of(folder, "of-scale", "grpc-1")
    assert (line["entrypoint"], line["api"], line["outputs"]) == ("GRPC", "Predict", {"y": [[2.0, 2.0, 2.0]]})
    assert post(server, "scale", "bad-1", {"instances": [["a"]]}) == 400
    line = line_of(folder, "of-scale", "bad-1")
    assert (line["status"], line["inputs"], line["outputs"]) == ("INVALID_ARGUMENT", {}, {})
    assert "is not of expected type: float" in line["error"]


def test_sampling_and_the_log_of_the_other_models(server: Server, folder: Path) -> None:
    assert post(server, "quiet", "quiet-1", {"instances": [[1, 2, 3]]}) == 200
    assert post(server, "scale", "last-1", {"instances": [[1, 2, 3]]}) == 200
    line_of(folder, "of-scale", "last-1")
    assert "quiet-1" not in [line["request_id"] for line in lines(folder, "of-scale") + lines(folder, "rest")]
    assert post(server, "other", "other-1", {"instances": [[1, 2, 3]]}) == 200
    assert line_of(folder, "rest", "other-1")["model"] == "other"
    with urllib.request.urlopen(server.url + "/monitoring/prometheus/metrics", timeout=20) as response:
        page = response.read().decode()
    assert ':tensorflow:serving:request_log_count{model_name="other",status_code="OK"} 1\n' in page


def test_a_reload_may_log_only_where_the_start_did(server: Server, folder: Path) -> None:
    outside = folder.parent / "elsewhere" / "log"
    with grpc.insecure_channel(server.target) as channel:
        admin = channel.unary_unary(
            "/bookserve.ModelAdminService/AddOrReplaceModel",
            request_serializer=AddOrReplaceModelRequest.SerializeToString,
        )
        request = AddOrReplaceModelRequest()
        request.model.name = "added"
        request.model.base_path = str(folder / "other")
        request.model.model_platform = "tensorflow"
        collector = request.model.logging_config.log_collector_config
        collector.filename_prefix = str(outside)
        with pytest.raises(grpc.RpcError) as caught:
            admin(request, timeout=60)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "outside the allowed folders" in caught.value.details()
        collector.filename_prefix = str(folder / "of-added")
        admin(request, timeout=60)
    assert post(server, "added", "added-1", {"instances": [[1, 2, 3]]}) == 200
    assert line_of(folder, "of-added", "added-1")["model"] == "added"
    with urllib.request.urlopen(server.url + "/v1/config", timeout=20) as response:
        configs = json.load(response)["model_config_list"]["config"]
    (added,) = [config for config in configs if config["name"] == "added"]
    assert added["logging_config"]["log_collector_config"]["filename_prefix"] == str(folder / "of-added")
    assert not outside.parent.exists()


def test_what_is_queued_at_the_stop_is_written(start_server: StartServer, tmp_path: Path) -> None:
    write_scale_model(tmp_path / "scale", 1, 2.0)
    server = start_server(
        "--model_name=scale", f"--model_base_path={tmp_path / 'scale'}", f"--request_log_file={tmp_path}/log"
    )
    for number in range(50):
        assert post(server, "scale", f"id-{number}", {"instances": [[1, 2, 3]]}) == 200
    assert server.stop() == 0
    assert [line["request_id"] for line in lines(tmp_path)] == [f"id-{number}" for number in range(50)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--request_log_file=/tmp/x", "--request_log_sampling_rate=2"], "must be between 0 and 1, it is 2"),
        (["--request_log_file=/"], "'/' is no prefix"),
    ],
)
def test_flags_that_make_no_sense(start_server: StartServer, tmp_path: Path, flags: list[str], message: str) -> None:
    server = start_server(f"--model_base_path={tmp_path}", *flags, wait=False)
    assert server.process.wait(60) == 255
    assert message in server.log.read_text()

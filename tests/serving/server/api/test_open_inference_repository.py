"""Statistics, loading and unloading by the Open Inference Protocol: Triton's own clients against real servers."""

import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.observability.metrics import Metrics, merged
from model_servers import Server, StartServer, server_starter, wait_until, write_graph, write_scale_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, version, factor in (("scale", 1, 2.0), ("scale", 2, 3.0), ("other", 1, 5.0)):
        write_scale_model(root / name, version, factor)
    (root / "models.config").write_text(
        f'model_config_list {{ config {{ name: "scale" base_path: "{root}/scale" model_platform: "tensorflow"'
        ' model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }'
    )
    return root


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two processes, which look for versions when they are told to."""
    with server_starter(tmp_path_factory.mktemp("log")) as start:
        yield start(
            f"--model_root={root}", "--workers=2", "--file_system_poll_wait_seconds=0", "--max_num_load_retries=0"
        )


Api = tuple[ModuleType, Any]  # the client's module, and a client


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest, server: Server) -> Iterator[Api]:
    module = tritonclient.http if request.param == "http" else tritonclient.grpc
    with module.InferenceServerClient(port_of(server, module)) as client:
        yield module, client


def port_of(server: Server, module: ModuleType) -> str:
    return f"127.0.0.1:{server.rest_port if module is tritonclient.http else server.grpc_port}"


def x_of(module: ModuleType, rows: int, width: int = 3) -> Any:
    tensor = module.InferInput("x", (rows, width), "FP32")
    tensor.set_data_from_numpy(np.ones((rows, width), np.float32))
    return tensor


def factor_of(api: Api, name: str, version: str = "") -> float:
    module, client = api
    return float(client.infer(name, [x_of(module, 1)], version).as_numpy("y")[0, 0])


def statistics(api: Api, name: str = "", version: str = "") -> dict[tuple[str, str], dict[str, Any]]:
    """By model and version; the numbers are strings over gRPC, where protobuf writes 64 bits so."""
    module, client = api
    as_json = {"as_json": True} if module is tritonclient.grpc else {}
    answer = client.get_inference_statistics(name, version, **as_json)
    return {(entry["name"], entry["version"]): entry for entry in answer["model_stats"]}


def index(api: Api) -> dict[tuple[str, str], tuple[str, str]]:
    module, client = api
    as_json = {"as_json": True} if module is tritonclient.grpc else {}
    answer = client.get_model_repository_index(**as_json)
    return {
        (entry["name"], entry.get("version", "")): (entry["state"], entry.get("reason", ""))
        for entry in (answer.get("models", []) if as_json else answer)
    }


# Statistics


def test_statistics_are_those_of_all_processes(server: Server, api: Api) -> None:
    module, _ = api
    before = statistics(api, "scale", "2")["scale", "2"]
    began = time.time() * 1000
    for rows in (1, 2, 3, 4):
        with module.InferenceServerClient(port_of(server, module)) as another:  # so that every process gets some
            another.infer("scale", [x_of(module, rows)])
            after = statistics((module, another), "scale", "2")["scale", "2"]
    counts = {key: int(after.get(key, 0)) - int(before.get(key, 0)) for key in ("inference_count", "execution_count")}
    assert counts == {"inference_count": 10, "execution_count": 4}
    assert began - 1000 <= int(after["last_inference"]) <= time.time() * 1000 + 1000
    for part in ("success", "queue", "compute_infer"):
        old, new = before["inference_stats"][part], after["inference_stats"][part]
        assert int(new["count"]) - int(old.get("count", 0)) == 4
        assert int(new["ns"]) > int(old.get("ns", 0))
    success, queue, run = (int(after["inference_stats"][part]["ns"]) for part in ("success", "queue", "compute_infer"))
    assert success == queue + run
    assert int(after["inference_stats"]["fail"].get("count", 0)) == 0


def test_which_versions_statistics_are_of(api: Api) -> None:
    assert statistics(api).keys() == {("other", "1"), ("scale", "1"), ("scale", "2")}
    assert statistics(api, "scale").keys() == {("scale", "1"), ("scale", "2")}
    assert statistics(api, "scale", "1").keys() == {("scale", "1")}
    for name, version, message in (
        ("nobody", "", r"Servable not found for request: Latest\(nobody\)"),
        ("scale", "9", r"Servable not found for request: Specific\(scale, 9\)"),
        ("scale", "one", "model version 'one' is no version"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            statistics(api, name, version)


def test_statistics_count_what_other_protocols_ask(server: Server, api: Api) -> None:
    before = statistics(api, "other")["other", "1"]
    body = b'{"instances": [[1, 2, 3], [4, 5, 6]]}'
    urllib.request.urlopen(f"{server.url}/v1/models/other:predict", body, timeout=20).close()
    after = statistics(api, "other")["other", "1"]
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 2
    assert int(after["execution_count"]) - int(before.get("execution_count", 0)) == 1


def test_a_request_that_the_model_refuses_counts_as_failed(server: Server, root: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "threes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([-1, 3]), "shape")],
    )
    write_graph(root / "threes", 1, graph)
    with tritonclient.http.InferenceServerClient(port_of(server, tritonclient.http)) as client:
        client.load_model("threes")
        client.infer("threes", [x_of(tritonclient.http, 1)])
        with pytest.raises(InferenceServerException):
            client.infer("threes", [x_of(tritonclient.http, 1, width=2)])
        counts = statistics((tritonclient.http, client), "threes")["threes", "1"]
        client.unload_model("threes")
    assert counts["inference_stats"]["success"]["count"] == 1
    assert counts["inference_stats"]["fail"]["count"] == 1
    assert counts["inference_stats"]["fail"]["ns"] > 0
    assert counts["inference_count"] == 1


def test_statistics_of_a_version_that_nobody_asked() -> None:
    (entry,) = open_inference.statistics([("m", 1)], merged([Metrics().snapshot()]))
    assert (entry["last_inference"], entry["inference_count"], entry["execution_count"]) == (0, 0, 0)


# The repository


def test_a_model_is_unloaded_and_comes_back_as_it_was(api: Api) -> None:
    _, client = api
    client.unload_model("scale")
    assert not client.is_model_ready("scale")
    wait_until(lambda: index(api)["scale", "2"] == ("UNAVAILABLE", "unloaded"), "its versions have ended")
    assert index(api)["other", "1"] == ("READY", "")
    with pytest.raises(InferenceServerException, match="no model 'scale' is configured"):
        client.unload_model("scale")
    client.load_model("scale")
    assert factor_of(api, "scale") == 3
    assert factor_of(api, "scale", "1") == 2  # its policy is the same
    assert index(api)["scale", "1"] == ("READY", "")


def test_a_folder_becomes_a_model(api: Api, root: Path) -> None:
    _, client = api
    write_scale_model(root / "late", 1, 7.0)
    with pytest.raises(InferenceServerException, match="Servable not found"):
        factor_of(api, "late")
    client.load_model("late")
    assert factor_of(api, "late") == 7
    write_scale_model(root / "late", 2, 8.0)
    client.load_model("late")
    assert factor_of(api, "late") == 8
    client.unload_model("late")
    shutil.rmtree(root / "late")
    with pytest.raises(InferenceServerException, match="1 model\\(s\\) did not become available"):
        client.load_model("late")  # it is remembered, and its folder is gone
    client.unload_model("late")


def test_what_failed_is_tried_again(api: Api, root: Path) -> None:
    module, client = api
    name = f"mended-{module.__name__.rpartition('.')[2]}"
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InferenceServerException, match=f"{{name: {name} version: 1}} due to error"):
        client.load_model(name)
    assert index(api)[name, "1"][0] == "UNAVAILABLE"
    (root / name / "1" / "model.onnx").unlink()
    (root / name / "1").rmdir()
    write_scale_model(root / name, 1, 9.0)
    client.load_model(name)
    assert factor_of(api, name) == 9
    client.unload_model(name)


def test_what_is_not_loaded(api: Api) -> None:
    module, client = api
    for name in ("nobody", "models.config", "a b", ".."):
        with pytest.raises(InferenceServerException, match=r"there is no folder|is not accepted"):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="parameter 'config' is not supported"):
        client.load_model("scale", config='{"max_batch_size": 8}')
    with pytest.raises(InferenceServerException, match=r"parameter '(config|file:1/model\.onnx)' is not supported"):
        client.load_model("scale", config="{}", files={"file:1/model.onnx": b"x"})
    client.unload_model("scale", unload_dependents=True)
    client.load_model("scale")
    assert factor_of((module, client), "scale") == 3


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "JSON Parse error"),
        (b"[]", 400, "Is not object"),
        (b'{"parameters": []}', 400, "'parameters' must be an object"),
        (b'{"parameters": {"config": {}}}', 400, "parameter 'config' is not supported"),
        (b'{"parameters": null}', 200, ""),
        (b"", 200, ""),
    ],
)
def test_bodies_of_a_load(server: Server, body: bytes, status: int, message: str) -> None:
    given, answer = post(server, "/v2/repository/models/scale/load", body)
    assert given == status
    assert message in answer


def post(server: Server, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(server.url + path, body, headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_who_may_load_and_unload(start_server: StartServer, root: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    server = start_server(
        f"--model_base_path={root / 'other'}", "--model_name=other", f"--admin_token_file={tmp_path / 'token'}"
    )
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        for method in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="authorization: Bearer TOKEN"):
                method("other")
        assert post(server, "/v2/repository/models/other/unload")[0] == 403
        assert client.is_model_ready("other")
        client.unload_model("other", headers={"authorization": "Bearer s3cret"})
        assert not client.is_model_ready("other")
    assert post(server, "/v2/repository/models/other/load", headers={"Authorization": "Bearer s3cret"})[0] == 200


def test_a_web_page_loads_nothing(server: Server) -> None:
    assert post(server, "/v2/repository/models/other/unload", headers={"Origin": "http://evil.example"})[0] == 403
    assert '"READY"' in post(server, "/v2/repository/index")[1]

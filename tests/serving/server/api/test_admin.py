"""Models that are changed while the server runs: by the official stubs, by ModelAdminService and over REST."""

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from bookserve.serving.server.api.admin import Access, is_local
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import model_admin_pb2, tensorflow_serving_pb2
from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model

LOADS = "/tensorflow/cc/saved_model/load_attempt_count"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of two versions each; version n of model k multiplies by 10 * k + n."""
    root = tmp_path_factory.mktemp("shared") / "models"
    for number, name in enumerate(("a", "b", "c")):
        for version in (1, 2):
            write_scale_model(root / name, version, 10.0 * number + version)
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[Server]:
    with server_starter(models.parent) as start:
        yield start("--model_name=a", f"--model_base_path={models / 'a'}", "--load_retry_interval_micros=1000000000")


@pytest.fixture
def server(shared: Server, models: Path) -> Server:
    """The shared server with model `a` alone."""
    reload(shared, config(models, "a"))
    return shared


def config(models: Path, *names: str, more: str = "") -> str:
    return "".join(
        f'config {{ name: "{name}" base_path: "{models / name}" model_platform: "tensorflow" {more} }} '
        for name in names
    )


def reload(server: Server, text: str, metadata: list[tuple[str, str]] | None = None) -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    text_format.Parse(text, request.config.model_config_list)
    with grpc.insecure_channel(server.target) as channel:
        return model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(
            request, timeout=30, metadata=metadata
        )


def refused(server: Server, text: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, text)
    return caught.value.code(), caught.value.details()


def answer(server: Server, name: str, **spec: Any) -> float:
    """What the model makes of 1. Raises grpc.RpcError."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, 3), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)
    return float(response.outputs["y"].float_val[0])


def rest(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def served(server: Server) -> list[str]:
    return [model["name"] for model in rest(server, "GET", "/v1/models")[1]["models"]]


# HandleReloadConfigRequest


def test_a_reload_replaces_the_models_and_waits_for_the_new_ones(server: Server, models: Path) -> None:
    response = reload(server, config(models, "b", "c"))
    assert (response.status.error_code, response.status.error_message) == (0, "")
    assert answer(server, "b") == 12
    assert answer(server, "c") == 22
    with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(a\)"):
        answer(server, "a")
    reload(server, "")
    assert served(server) == []


def test_a_reload_tells_the_increase_of_counters(server: Server, models: Path) -> None:
    request = model_management_pb2.ReloadConfigRequest(
        metric_names=[LOADS, "/unknown", "/bookserve/response_bytes", LOADS]
    )
    text_format.Parse(config(models, "a"), request.config.model_config_list)
    with grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        # The first series is that of the first path which was loaded: model a's.
        metrics = stub.HandleReloadConfigRequest(request, timeout=30).metric
        expected = {LOADS: 0, "/unknown": 0, "/bookserve/response_bytes": 0}
        assert {metric.name: metric.int64_value_increase for metric in metrics} == expected
        assert len(metrics) == 3
        stub.HandleReloadConfigRequest(
            model_management_pb2.ReloadConfigRequest(
                config=model_server_config_pb2.ModelServerConfig(
                    model_config_list=model_server_config_pb2.ModelConfigList()
                )
            ),
            timeout=30,
        )
        metrics = stub.HandleReloadConfigRequest(request, timeout=30).metric
        assert {metric.name: metric.int64_value_increase for metric in metrics} == expected | {LOADS: 1}


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "Via"])
def test_what_a_proxy_passes_on_is_not_of_this_machine(server: Server, models: Path, name: str) -> None:
    status, answer_ = rest(server, "GET", "/v1/config", headers={name: "127.0.0.1"})
    assert (status, "callers on this machine only" in answer_["error"]) == (403, True)
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, config(models, "b"), metadata=[(name.lower(), "127.0.0.1")])
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert served(server) == ["a"]


def test_a_name_that_was_pointed_here_is_refused(server: Server) -> None:
    status, answer_ = rest(server, "DELETE", "/v1/models/a", headers={"Host": "evil.example"})
    assert (status, "--allowed_hosts" in answer_["error"]) == (403, True)
    assert rest(server, "GET", "/v1/config", headers={"Host": "localhost:1"})[0] == 200
    renamed = [("grpc.default_authority", "evil.example:80")]
    with grpc.insecure_channel(server.target, renamed) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=30)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == (
        "the Host 'evil.example:80' is not expected here: use localhost, or name it in --allowed_hosts"
    )
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="ServerModelConfig type not supported"):
            stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=30)
    assert served(server) == ["a"]


def test_a_removed_model_shows_its_end(server: Server, models: Path) -> None:
    reload(server, config(models, "b"))
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "a"

    def ended() -> bool:
        with grpc.insecure_channel(server.target) as channel:
            (status,) = (
                model_service_pb2_grpc.ModelServiceStub(channel)
                .GetModelStatus(request, timeout=10)
                .model_version_status
            )
        return bool(status.state == get_model_status_pb2.ModelVersionStatus.END and status.status.error_code == 0)

    wait_until(ended, "the old model has ended")


def test_policies_come_and_go_with_a_reload(server: Server, models: Path) -> None:
    reload(server, config(models, "b", more="model_version_policy { all {} }"))
    assert answer(server, "b", version=1) == 11
    reload(server, config(models, "b", more="model_version_policy { specific { versions: 1 } }"))
    wait_until(lambda: answer(server, "b") == 11, "version 2 has gone")
    reload(server, config(models, "b", more="model_version_policy { latest { num_versions: 0 } }"))
    wait_until(lambda: answer(server, "b") == 12, "version 2 is back")


@pytest.mark.parametrize(
    ("text", "code", "details"),
    [
        (
            'config { name: "m" base_path: "rel" model_platform: "tensorflow" }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Expected model m to have an absolute path or URI; got base_path()=rel",
        ),
        (
            'config { name: "m" base_path: "/MODELS/b" }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor"
            " ModelServerConfig::model_platform, model name is m",
        ),
        (
            'config { name: "m" base_path: "/MODELS/b" model_platform: "tensorflow" model_type: TENSORFLOW }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform,"
            " model name is m",
        ),
        (
            'config { name: "m" base_path: "/MODELS/b" model_platform: "caffe" }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Model m requests unsupported platform caffe",
        ),
        (
            'config { name: "a" base_path: "/MODELS/a" model_platform: "caffe" }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Illegal to change a model's platform. For model a platform was tensorflow and new platform requested is"
            " caffe",
        ),
        (
            'config { name: "b" base_path: "/MODELS/b" model_platform: "tensorflow" }'
            ' config { name: "b" base_path: "/MODELS/c" model_platform: "tensorflow" }',
            grpc.StatusCode.INVALID_ARGUMENT,
            "Illegal to list model b multiple times in config list",
        ),
        (
            'config { name: "a" base_path: "/MODELS/a" model_platform: "tensorflow"'
            ' version_labels { key: "stable" value: 1 } }',
            grpc.StatusCode.FAILED_PRECONDITION,
            "Request to assign label to version 1 of model a, which is not currently available for inference",
        ),
    ],
)
def test_a_refused_config_changes_nothing(
    server: Server, models: Path, text: str, code: grpc.StatusCode, details: str
) -> None:
    text = text.replace("/MODELS", str(models))
    assert refused(server, config(models, "c") + text) == (code, details)
    assert served(server) == ["a"]
    assert answer(server, "a") == 2


def test_only_a_model_config_list_is_accepted(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        for config_ in (
            model_server_config_pb2.ModelServerConfig(),
            model_server_config_pb2.ModelServerConfig(custom_model_config={}),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(config=config_), timeout=10)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == (
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported"
            )
    assert served(server) == ["a"]


def test_a_model_that_does_not_load_is_an_error_and_the_others_serve(server: Server, models: Path) -> None:
    code, details = refused(server, config(models, "b", "broken", "empty"))
    assert code == grpc.StatusCode.UNKNOWN
    assert details.startswith(
        "2 model(s) did not become available: {{name: broken version: 1} due to error: FAILED_PRECONDITION: "
    )
    assert "}, {name: empty} due to error: NOT_FOUND: No versions of servable empty found under base path" in details
    assert details.endswith("}, }")
    assert answer(server, "b") == 12
    assert served(server) == ["b", "broken", "empty"]


def test_labels_of_available_versions_by_reload(server: Server, models: Path) -> None:
    both = "model_version_policy { all {} }"
    labels = ' version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    reload(server, config(models, "b", more=both))
    reload(server, config(models, "b", more=both + labels))
    assert answer(server, "b", label="stable") == 11
    assert answer(server, "b", label="canary") == 12
    reload(server, config(models, "b", more=both))
    with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: stable"):
        answer(server, "b", label="stable")


# What no caller may do


def test_paths_of_elsewhere_and_strange_names_are_refused(server: Server, models: Path) -> None:
    hits = socket.create_server(("127.0.0.1", 0))
    hits.setblocking(False)
    (models / "inside").unlink(missing_ok=True)
    (models / "inside").symlink_to("/etc")
    paths = {
        "s3://bucket/m": "--allowed_model_roots",
        "gs://bucket/../m": "no URLs",
        "hdfs://host/m": "no URLs",
        f"http://127.0.0.1:{hits.getsockname()[1]}/": "no URLs",
        "file:///etc": "no URLs",
        "file:/etc": "no URLs",
        "/etc": "--allowed_model_roots",
        "/proc/self/root": "--allowed_model_roots",
        f"{models}/../../..": "'..' is not allowed",
        "../..": "absolute path",
        "": "absolute path",
        f"{models}/inside": "--allowed_model_roots",
        f"{models}-other": "--allowed_model_roots",
        f"{models}/a\0/../../etc": "NUL",
        "/" + "x" * 5000: "4096 characters",
    }
    with grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        for path, reason in paths.items():
            request = model_management_pb2.ReloadConfigRequest()
            request.config.model_config_list.config.add(name="m", base_path=path, model_platform="tensorflow")
            with pytest.raises(grpc.RpcError, match=reason) as caught:
                stub.HandleReloadConfigRequest(request, timeout=10)
            expected = "PERMISSION_DENIED" if "roots" in reason else "INVALID_ARGUMENT"
            assert caught.value.code().name == expected, path
            status, answered = rest(server, "PUT", "/v1/models/m", {"base_path": path})
            assert (status, reason in answered["error"]) == (403 if "roots" in reason else 400, True), path
        for name in ("../x", "a/b", "a\0", "x" * 10_000, "", ".hidden", "-flag", "a b", "\x1b[2J", "ü"):
            request = model_management_pb2.ReloadConfigRequest()
            request.config.model_config_list.config.add(
                name=name, base_path=str(models / "b"), model_platform="tensorflow"
            )
            with pytest.raises(grpc.RpcError, match="is not accepted") as caught:
                stub.HandleReloadConfigRequest(request, timeout=10)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(BlockingIOError):
        hits.accept()
    hits.close()
    assert served(server) == ["a"]
    assert "\x1b" not in server.log.read_text()


def test_who_is_on_this_machine() -> None:
    for peer in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", ""):
        assert is_local(peer), peer
    for peer in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "name", "unknown"):
        assert not is_local(peer), peer


def test_without_a_token_only_this_machine_and_no_web_page(tmp_path: Path) -> None:
    access = Access("")
    access.check("127.0.0.1", "localhost:8500", b"")
    access.check("", "whatever", b"")
    for peer, browser in (("192.0.2.1", False), ("127.0.0.1", True), ("unknown", False)):
        with pytest.raises(ServingError, match="PERMISSION_DENIED"):
            access.check(peer, "localhost", b"Bearer x", browser=browser)
    empty = tmp_path / "token"
    empty.write_text("\n")
    with pytest.raises(ServingError, match="is empty"):
        Access(str(empty))
    with pytest.raises(ServingError, match="cannot be read"):
        Access(str(tmp_path / "nowhere"))


def test_a_web_page_cannot_change_models(server: Server, models: Path) -> None:
    body = {"base_path": str(models / "b")}
    for header in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-origin"}):
        assert rest(server, "PUT", "/v1/models/b", body, header)[0] == 403
        assert rest(server, "GET", "/v1/config", headers=header)[0] == 403
    assert served(server) == ["a"]


def test_with_a_token_nothing_goes_without_it(start_server: StartServer, models: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    server = start_server("--model_name=a", f"--model_base_path={models / 'a'}", f"--admin_token_file={token}")
    body = {"base_path": str(models / "b")}
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        assert rest(server, "PUT", "/v1/models/b", body, wrong)[0] == 403
        assert rest(server, "DELETE", "/v1/models/a", headers=wrong)[0] == 403
        assert rest(server, "GET", "/v1/config", headers=wrong)[0] == 403
        metadata = [(key.lower(), value) for key, value in wrong.items()]
        with pytest.raises(grpc.RpcError) as caught:
            reload(server, "", metadata)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert served(server) == ["a"]
    assert answer(server, "a") == 2  # asking needs no token
    right = {"Authorization": "Bearer s3cret"}
    assert rest(server, "PUT", "/v1/models/b", body, right) == (200, {})
    reload(server, config(models, "c"), [("authorization", "Bearer s3cret")])
    assert served(server) == ["c"]
    assert "s3cret" not in server.log.read_text()


def test_a_unix_socket_is_this_machine_and_other_roots_may_be_named(
    start_server: StartServer, models: Path, tmp_path: Path
) -> None:
    write_scale_model(tmp_path / "elsewhere" / "d", 1, 7.0)
    path = tmp_path / "s"
    server = start_server(
        f"--model_base_path={models / 'a'}",
        f"--grpc_socket_path={path}",
        f"--allowed_model_roots=/nowhere,{tmp_path / 'elsewhere'}",
    )
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(config(tmp_path / "elsewhere", "d"), request.config.model_config_list)
    with grpc.insecure_channel(f"unix:{os.path.relpath(path)}") as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=30)
    assert answer(server, "d") == 7
    assert refused(server, config(models, "b"))[0] == grpc.StatusCode.PERMISSION_DENIED


# One model at a time


def test_models_by_rest(server: Server, models: Path) -> None:
    both = {"all": {}}
    assert rest(server, "PUT", "/v1/models/b", {"base_path": str(models / "b"), "version_policy": both}) == (200, {})
    assert answer(server, "b", version=1) == 11
    assert answer(server, "a") == 2  # the others stay
    labels = {"stable": 1, "canary": "2"}
    body = {"base_path": str(models / "b"), "version_policy": both, "version_labels": labels}
    assert rest(server, "PUT", "/v1/models/b", body)[0] == 200
    assert answer(server, "b", label="stable") == 11
    assert rest(server, "GET", "/v1/config") == (
        200,
        {
            "model_config_list": {
                "config": [
                    {
                        "name": "a",
                        "base_path": str(models / "a"),
                        "model_platform": "tensorflow",
                        "model_version_policy": {"latest": {"num_versions": 1}},
                    },
                    {
                        "name": "b",
                        "base_path": str(models / "b"),
                        "model_platform": "tensorflow",
                        "model_version_policy": {"all": {}},
                        "version_labels": {"stable": "1", "canary": "2"},
                    },
                ]
            }
        },
    )
    assert rest(server, "DELETE", "/v1/models/b") == (200, {})
    assert served(server) == ["a"]
    status, error = rest(server, "DELETE", "/v1/models/b")
    assert (status, error) == (404, {"error": "no model 'b' is configured"})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "JSON Parse error"),
        (b"[" * 100_000, "JSON Parse error"),
        ([], "the body must be a JSON object with a 'base_path'"),
        ({}, "the body must be a JSON object with a 'base_path'"),
        ({"base_path": 5}, "the body must be a JSON object with a 'base_path'"),
        ({"base_path": "/x", "policy": {}}, "unknown key 'policy'"),
        ({"base_path": "/x", "version_policy": {"latest": {"num_versions": -1}}}, "num_versions"),
        ({"base_path": "/x", "version_policy": {"newest": {}}}, "newest"),
        ({"base_path": "/x", "version_labels": {"stable": "one"}}, "version_labels"),
        ({"base_path": "/x", "version_labels": 3}, "version_labels"),
        (b'{"base_path": "/\\ud800"}', "base_path"),
    ],
)
def test_a_put_that_makes_no_sense_says_why(server: Server, body: Any, error: str) -> None:
    status, given = rest(server, "PUT", "/v1/models/m", body)
    assert status == 400
    assert error in given["error"]
    assert served(server) == ["a"]


def test_models_by_our_own_service(server: Server, models: Path) -> None:
    with grpc.insecure_channel(server.target) as channel:

        def call(method: str, request: Any, response: Any) -> Any:
            return channel.unary_unary(
                f"/bookserve.ModelAdminService/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )(request, timeout=30)

        add = model_admin_pb2.AddOrReplaceModelRequest(
            model=tensorflow_serving_pb2.ModelConfig(name="c", base_path=str(models / "c"), model_platform="tensorflow")
        )
        call("AddOrReplaceModel", add, model_admin_pb2.AddOrReplaceModelResponse)
        assert answer(server, "c") == 22
        current = call("GetConfig", model_admin_pb2.GetConfigRequest(), model_admin_pb2.GetConfigResponse)
        assert [model.name for model in current.config.model_config_list.config] == ["a", "c"]
        call("RemoveModel", model_admin_pb2.RemoveModelRequest(name="c"), model_admin_pb2.RemoveModelResponse)
        assert served(server) == ["a"]
        with pytest.raises(grpc.RpcError) as caught:
            call("RemoveModel", model_admin_pb2.RemoveModelRequest(name="c"), model_admin_pb2.RemoveModelResponse)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/bookserve.ModelAdminService/RemoveModel")(b"\xff", timeout=10)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_below_a_root_a_change_by_hand_outlives_a_publication(
    start_server: StartServer, models: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    write_scale_model(root / "a", 1, 1.0)
    write_scale_model(root / "b", 1, 2.0)
    server = start_server(f"--model_root={root}", "--file_system_poll_wait_seconds=0.05")
    assert rest(server, "DELETE", "/v1/models/a")[0] == 200
    assert rest(server, "PUT", "/v1/models/z", {"base_path": str(root / "b")})[0] == 200
    write_scale_model(root / "new", 1, 3.0)
    wait_until(lambda: "new" in served(server), "the new model is found")
    assert served(server) == ["b", "new", "z"]


# The config file


def write_config(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(f"model_config_list {{ {text} }}")
    path.with_suffix(".new").rename(path)


def test_a_polled_config_file_overrules_what_was_changed_otherwise(
    start_server: StartServer, models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "models.config"
    write_config(path, config(models, "a"))
    server = start_server(f"--model_config_file={path}", "--model_config_file_poll_wait_seconds=1")
    reload(server, config(models, "b"))
    wait_until(lambda: served(server) == ["a"], "the file, though it has not changed, is applied again")
    path.unlink()
    wait_until(lambda: "Failed to read ModelServerConfig file" in server.log.read_text(), "its loss is told")
    assert answer(server, "a") == 2
    labels = ' version_labels { key: "x" value: 9 }'
    write_config(path, config(models, "a", more=labels) + config(models, "b"))
    wait_until(
        lambda: "PollFilesystemAndReloadConfig failed to ReloadConfig: FAILED_PRECONDITION" in server.log.read_text(),
        "the label is refused",
    )
    assert served(server) == ["a"]
    write_config(path, config(models, "a", "b"))
    wait_until(lambda: served(server) == ["a", "b"], "the mended file is applied")


def test_labels_in_the_first_config_need_the_flag(start_server: StartServer, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    write_config(path, config(models, "a", more='version_labels { key: "stable" value: 2 }'))
    server = start_server(f"--model_config_file={path}", wait=False)
    assert server.process.wait(60) == 255
    assert (
        "Failed to start server. Error: FAILED_PRECONDITION: Request to assign label to version 2 of model a,"
        " which is not currently available for inference" in server.log.read_text()
    )
    server = start_server(f"--model_config_file={path}", "--allow_version_labels_for_unavailable_models")
    assert answer(server, "a", label="stable") == 2


def test_labels_of_a_store_need_no_flag(start_server: StartServer, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for version in (1, 2):
        write_scale_model(root / "a", version, float(version))
    labels = ' version_labels { key: "stable" value: 1 }'
    policy = " model_version_policy { specific { versions: 1 versions: 2 } }"
    write_config(root / "models.config", config(root, "a", more=policy + labels))
    server = start_server(f"--model_root={root}", "--file_system_poll_wait_seconds=0.05")
    assert (answer(server, "a"), answer(server, "a", label="stable")) == (2, 1)
    write_scale_model(root / "a", 3, 3.0)
    policy = " model_version_policy { specific { versions: 2 versions: 3 } }"
    write_config(root / "models.config", config(root, "a", more=policy + labels.replace("1", "3")))

    def moved() -> bool:
        try:
            return answer(server, "a", label="stable") == 3
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017 - still loading
            return False

    wait_until(moved, "the label has moved")

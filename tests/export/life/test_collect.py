"""`bookserve models gc` never takes a version that anybody is served."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import Result
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from bookserve.export import staging
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from model_servers import StartServer, server_starter

Invoke = Callable[..., Result]


@pytest.fixture
def seven(store: ModelStore, publish: Callable[..., Manifest]) -> ModelStore:
    for _ in range(5):
        publish(store)
    return store


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    with server_starter(tmp_path) as starter:
        yield starter


def collect(invoke: Invoke, store: ModelStore, *arguments: str) -> Result:
    return invoke("models", "gc", *arguments, "--models-dir", store.root)


def test_the_newest_the_labelled_and_the_rolled_back_to_stay(seven: ModelStore, invoke: Invoke) -> None:
    seven.label("score", "stable", 2)
    seven.roll_back("score", 4)
    size = sum(path.stat().st_size for path in seven.path("score", 1).rglob("*") if path.is_file())
    told = collect(invoke, seven, "score", "--keep", "1", "--dry-run")
    assert told.exit_code == 0, told.output
    assert "score version 2 stays: it is 'stable'" in told.output
    assert "score version 4 stays: it is served by default" in told.output
    assert f"score version 1 would be removed, {size} bytes" in told.output
    assert seven.versions("score") == [1, 2, 3, 4, 5, 6, 7]
    done = collect(invoke, seven, "--all", "--keep", "1")
    assert done.exit_code == 0, done.output
    assert f"score version 1 is removed, {size} bytes" in done.output
    assert seven.versions("score") == [2, 4, 7]
    assert seven.default_version("score") == 4
    assert sorted(path.name for path in (seven.root / "score").iterdir()) == ["2", "4", "7"]
    assert collect(invoke, seven, "score", "--keep", "1").output.endswith("0 bytes are freed\n")


@pytest.mark.parametrize(
    ("policy", "left"),
    [("specific { versions: 1 versions: 3 }", [1, 3, 7]), ("latest { num_versions: 3 }", [5, 6, 7]), ("all {}", None)],
)
def test_what_models_config_loads_stays(seven: ModelStore, invoke: Invoke, policy: str, left: list[int] | None) -> None:
    path = seven.root / "models.config"
    config = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    text_format.Parse(policy, config.model_config_list.config[0].model_version_policy)
    path.write_text(text_format.MessageToString(config))
    result = collect(invoke, seven, "score", "--keep", "1")
    assert result.exit_code == 0, result.output
    assert seven.versions("score") == (left or [1, 2, 3, 4, 5, 6, 7])
    assert "models.config loads it" in result.output


def test_what_a_server_has_stays(seven: ModelStore, invoke: Invoke, start: StartServer, tmp_path: Path) -> None:
    own = tmp_path / "own.config"
    own.write_text(
        f'model_config_list {{ config {{ name: "score" base_path: "{seven.root}/score" model_platform: "tensorflow"'
        " model_version_policy { specific { versions: 3 } } } }"
    )
    server = start(f"--model_config_file={own}")
    result = collect(invoke, seven, "score", "--keep", "2", "--server", server.target)
    assert result.exit_code == 0, result.output
    assert f"score version 3 stays: {server.target} has it" in result.output
    assert seven.versions("score") == [3, 6, 7]
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            messages.GetModelStatusRequest.SerializeToString,
            messages.GetModelStatusResponse.FromString,
        )
        request = messages.GetModelStatusRequest()
        request.model_spec.name = "score"
        assert [status.version for status in call(request, timeout=10).model_version_status] == [3]


def test_a_server_that_does_not_answer_stops_it(seven: ModelStore, invoke: Invoke) -> None:
    result = collect(invoke, seven, "score", "--keep", "1", "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "127.0.0.1:1 says: UNAVAILABLE" in result.output
    assert len(seven.versions("score")) == 7


def test_a_version_that_is_labelled_meanwhile_stays(seven: ModelStore) -> None:
    seven.label("score", "canary", 1)
    assert seven.remove("score", 1) == "it is 'canary'"
    assert 1 in seven.versions("score")


def test_what_a_killed_collector_left_is_removed_by_the_next_writer(
    seven: ModelStore, publish: Callable[..., Manifest]
) -> None:
    left = staging.take_away(seven.path("score", 1))
    assert left.is_dir()
    assert seven.versions("score")[0] == 2
    publish(seven)
    assert not left.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "1"], "give NAME, or --all"),
        (["score", "--all", "--keep", "1"], "give NAME, or --all"),
        (["score", "--keep", "0"], "x>=1"),
        (["score"], "--keep"),
        (["none", "--keep", "1"], "(models: score)"),
    ],
)
def test_what_cannot_be_collected_is_named(
    store: ModelStore, invoke: Invoke, arguments: list[str], message: str
) -> None:
    result = collect(invoke, store, *arguments)
    assert result.exit_code
    assert message in result.output

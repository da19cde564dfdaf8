"""`bookserve models promote` moves a label only to a version that is no worse."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from bookserve.clients.errors import InvalidArgument
from bookserve.clients.grpc_client import GrpcClient
from bookserve.export.life import promote
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.store import ModelStore
from model_servers import StartServer, server_starter

Invoke = Callable[..., Result]
Publish = Callable[..., Manifest]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    with server_starter(tmp_path) as starter:
        yield starter


def labelled(store: ModelStore) -> dict[str, int]:
    return dict(store.release("score").labels)


def move(invoke: Invoke, store: ModelStore, *arguments: str) -> Result:
    return invoke("models", "promote", "score", *arguments, "--models-dir", store.root)


def test_a_version_that_is_better_takes_the_label(store: ModelStore, invoke: Invoke) -> None:
    store.label("score", "stable", 1)
    store.label("score", "canary", 2)
    result = move(invoke, store, "canary")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:4] == [
        "score: version 2 instead of version 1",
        "  accuracy 0.92, now 0.91",
        "  loss 0.3, now 0.31",
        "score: 'stable' is version 2",
    ]
    assert labelled(store) == {"canary": 2, "stable": 2}
    assert "'stable' is version 2 already" in move(invoke, store, "canary").output


def test_a_version_that_is_worse_does_not(store: ModelStore, publish: Publish, invoke: Invoke) -> None:
    publish(store, metrics={"test": {"accuracy": 0.919, "loss": 0.29, "rows": 500.0}})
    store.label("score", "canary", 3)
    store.label("score", "stable", 2)
    result = move(invoke, store, "canary")
    assert result.exit_code == 1
    assert "  accuracy 0.919, now 0.92: worse" in result.output
    assert "nothing is changed: 1 of 2 checks speak against version 3" in result.output
    assert labelled(store) == {"canary": 3, "stable": 2}
    assert move(invoke, store, "canary", "--margin", "0.2").exit_code == 0
    assert labelled(store) == {"canary": 3, "stable": 3}
    store.label("score", "stable", 2)
    assert move(invoke, store, "canary", "--force").exit_code == 0
    assert labelled(store) == {"canary": 3, "stable": 3}


def test_without_the_label_it_is_compared_with_the_default(store: ModelStore, invoke: Invoke) -> None:
    store.label("score", "canary", 1)
    result = move(invoke, store, "canary", "--to", "live")
    assert result.exit_code == 1
    assert "version 1 instead of version 2" in result.output
    assert "labels: canary" in move(invoke, store, "cannery").output


@pytest.mark.parametrize(
    ("ours", "theirs", "worse"),
    [
        ({"perplexity": 110.0}, {"perplexity": 112.0}, []),
        ({"perplexity": 112.0}, {"perplexity": 110.0}, ["perplexity"]),
        ({"forest_auc": 0.71, "auc": 0.8}, {"forest_auc": 0.72, "auc": 0.8}, ["forest_auc"]),
        ({"lost_lines": 4.0, "rows": 10.0}, {"lost_lines": 0.0, "rows": 20.0}, ["lost_lines"]),
        ({"r2": -0.1}, {"r2": -0.05}, ["r2"]),
        ({"speed": 1.0, "loss": float("nan")}, {"speed": 2.0, "loss": 0.1}, ["loss"]),
        ({"accuracy": 0.9}, {"auc": 0.99}, []),
    ],
)
def test_figures_are_compared_the_right_way(
    manifest_of: Callable[..., Manifest], ours: dict[str, float], theirs: dict[str, float], worse: list[str]
) -> None:
    checks = promote.figures(manifest_of(ours), manifest_of(theirs), 0.0)
    assert [check.told.split()[0] for check in checks if check.worse] == worse


@pytest.fixture
def manifest_of(store: ModelStore) -> Callable[..., Manifest]:
    return lambda figures: replace(store.manifest("score"), metrics={"test": figures})


def test_figures_of_other_data_are_not_comparable(manifest_of: Callable[..., Manifest]) -> None:
    real = replace(manifest_of({"accuracy": 0.9}), data=DataOrigin("real", "scores", "a" * 64))
    sample = replace(manifest_of({"accuracy": 0.99}), data=DataOrigin("sample", "drawn", "b" * 64))
    (first, _) = promote.figures(sample, real, 0.0)
    assert first.worse
    assert "measured on other data (sample drawn bbbbbbbbbbbb instead of real scores aaaaaaaaaaaa)" in first.told


def test_a_version_that_fails_more_often_does_not_take_the_label(
    store: ModelStore, publish: Publish, invoke: Invoke, start: StartServer
) -> None:
    publish(store, fragile=True)
    store.label("score", "stable", 2)
    store.label("score", "canary", 3)
    server = start(f"--model_root={store.root}", "--file_system_poll_wait_seconds=0.05")
    named = ("canary", "--server", server.target, "--min-requests", "4")
    result = move(invoke, store, *named)
    assert result.exit_code == 1
    assert "version 3 was asked 0 times, fewer than --min-requests 4" in result.output
    with GrpcClient(server.target) as client:
        for label in ("stable", "canary"):
            for _ in range(4):
                client.predict("score", {"x": np.array([[1.0, 2.0, 3.0]], np.float32)}, label=label)
        with pytest.raises(InvalidArgument):
            client.predict("score", {"x": np.array([[1.0, 2.0, 9.0]], np.float32)}, label="canary")
    result = move(invoke, store, *named)
    assert result.exit_code == 1
    assert "20.0000% of 5 requests failed, now 0.0000% of 4 requests failed: worse" in result.output
    assert labelled(store) == {"canary": 3, "stable": 2}
    result = move(invoke, store, *named, "--error-margin", "25")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"served by {server.target}\n")
    assert labelled(store) == {"canary": 3, "stable": 3}

"""`bookserve batch --server`: a real model server over gRPC and REST, also one that goes away in the middle."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import small_networks
from click.testing import Result

from batch_models import DIGITS, FLATS
from bookserve.clients import errors
from bookserve.clients.answers import Prediction
from bookserve.clients.ask_server import Asked
from bookserve.serving.batch import run, served_model
from bookserve.serving.batch.model import ModelLost, Pace, RowsRefused
from bookserve.serving.batch.served_model import ServedModel
from model_servers import Server, server_starter

Batch = Callable[..., Result]


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_starter(tmp_path_factory.mktemp("server")) as start:
        yield start(f"--model_root={store}")


def write_flats(path: Path, rows: int, bad: int = 0) -> Path:
    path.write_text("area,rooms\n" + "".join(f"{place},2\n" for place in range(rows)) + "x,2\n" * bad)
    return path


def prices(path: Path) -> list[tuple[int, float]]:
    return [(row["line"], row["price"]) for row in map(json.loads, path.read_text().splitlines())]


def wanted(rows: int) -> list[tuple[int, float]]:
    return [(place + 2, 1000.0 * place + 1000) for place in range(rows)]


@pytest.mark.parametrize("rest", [False, True])
def test_a_server_answers_in_order(batch: Batch, server: Server, tmp_path: Path, rest: bool) -> None:
    source = write_flats(tmp_path / "in.csv", 500, bad=1)
    address = server.url if rest else server.target
    done = batch("flats", source, tmp_path / "out.ndjson", "--server", address)
    assert done.exit_code == 3, done.output
    assert f"on {address}, 4096 rows a run, 16 at once" in done.output
    assert prices(tmp_path / "out.ndjson") == wanted(500)


def test_the_server_and_this_process_give_the_same(batch: Batch, server: Server, tmp_path: Path) -> None:
    images, _ = small_networks.pictures(200, 2)
    (tmp_path / "in.ndjson").write_text("\n".join(json.dumps(image.tolist()) for image in images))
    assert batch("digits", tmp_path / "in.ndjson", tmp_path / "a.ndjson").exit_code == 0
    done = batch("digits", tmp_path / "in.ndjson", tmp_path / "b.ndjson", "--server", server.target)
    assert done.exit_code == 0, done.output
    texts = [(tmp_path / name).read_text() for name in ("a.ndjson", "b.ndjson")]
    here, there = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert [row["class"] for row in here] == [row["class"] for row in there]
    difference = [
        abs(one["probabilities"][label] - other["probabilities"][label])
        for one, other in zip(here, there, strict=True)
        for label in DIGITS.labels
    ]
    assert max(difference) < 2e-6


def test_without_the_store_rows_are_tensors_asked_one_by_one(
    server: Server, batch: Batch, tmp_path: Path, store: Path
) -> None:
    (tmp_path / "in.ndjson").write_text("[1, 2]\n[3, 4]\n")
    (tmp_path / "models").mkdir()
    done = batch(
        "flats", tmp_path / "in.ndjson", tmp_path / "out.ndjson", "--server", server.target,
        models_dir=tmp_path / "models",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "note: INPUT is read as tensors" in done.output
    assert "one row a run" in done.output
    assert [price for _, price in prices_of_tensors(tmp_path / "out.ndjson")] == [[2000.0], [5000.0]]
    (tmp_path / "in.txt").write_text("the stock\n")
    done = batch(
        "next", tmp_path / "in.txt", tmp_path / "text.csv", "--server", server.target, models_dir=tmp_path / "models"
    )
    assert done.exit_code == 1
    assert "INPUT is lines of text, and next takes words: int64" in done.output


def prices_of_tensors(path: Path) -> list[tuple[int, list[float]]]:
    return [(row["line"], row["price"]) for row in map(json.loads, path.read_text().splitlines())]


def test_nobody_there_and_an_unknown_model(batch: Batch, server: Server, tmp_path: Path) -> None:
    source = write_flats(tmp_path / "in.csv", 2)
    done = batch("flats", source, tmp_path / "out.csv", "--server", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "nothing answers over gRPC at 127.0.0.1:1" in done.output
    done = batch("nobody", source, tmp_path / "out.csv", "--server", server.target)
    assert done.exit_code == 1
    assert "Error: " in done.output


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_anew_loses_no_row(
    batch: Batch, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 1500
    source = write_flats(tmp_path / "in.csv", rows)
    monkeypatch.setattr(run, "_PART_ROWS", 64)
    output = tmp_path / "out.ndjson"
    parts = tmp_path / "out.ndjson.parts"
    outcome: list[Result] = []
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={store}", "--supervise=false")

        def ask() -> None:
            options = ("--server", server.target, "--batch-size", 1, "--parallel", 2)
            outcome.append(batch("flats", source, output, *options))

        asking = threading.Thread(target=ask)
        asking.start()
        end = time.monotonic() + 60
        while len(list(parts.glob("*.part"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.005)
        server.process.kill()
        server.process.wait()
        done_before = len(list(parts.glob("*.part")))
        assert not outcome
        assert done_before < rows // 64
        again = start(
            f"--model_root={store}", "--supervise=false", f"--port={server.grpc_port}",
            f"--rest_api_port={server.rest_port}", wait=False,
        )  # fmt: skip
        asking.join(120)
        assert again.process.poll() is None
    assert outcome
    assert outcome[0].exit_code == 0, outcome[0].output
    assert prices(output) == wanted(rows)


class Client:
    """Fails as it is told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def predict(self, model: str, inputs: dict[str, np.ndarray], **_: object) -> Prediction:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return Prediction(model, 1, {"price": inputs["x"][:, :1]})


def served(client: Client, retry_seconds: float = 5.0) -> ServedModel:
    return ServedModel(client, Asked(FLATS, 1, ""), Pace(4, 1), 1.0, retry_seconds)


ROWS = {"x": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize("error", [errors.Unavailable, errors.DeadlineExceeded, errors.ResourceExhausted])
def test_a_momentary_failure_is_asked_again_with_growing_pauses(
    error: type[errors.PredictError], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    model = served(client := Client(*[error("away")] * 5), retry_seconds=60)
    monkeypatch.setattr(model._closed, "wait", lambda seconds: pauses.append(seconds))
    monkeypatch.setattr(served_model.random, "uniform", lambda low, high: high)
    assert model.run(ROWS)["price"].shape == (2, 1)
    assert client.calls == 6
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6]


def test_a_server_that_stays_away_ends_the_run() -> None:
    model = served(Client(*[errors.Unavailable("nobody")] * 100), retry_seconds=0.3)
    with pytest.raises(ModelLost, match=r"nobody \(asked again for 0\.3 s: --retry-seconds\)"):
        model.run(ROWS)


def test_what_the_values_are_refused_for_is_not_asked_again() -> None:
    client = Client(errors.InvalidArgument("out of bounds"))
    with pytest.raises(RowsRefused, match="out of bounds"):
        served(client).run(ROWS)
    assert client.calls == 1


def test_what_nothing_will_mend_ends_the_run_at_once() -> None:
    client = Client(errors.PermissionDenied("not you"))
    with pytest.raises(ModelLost, match="not you"):
        served(client).run(ROWS)
    assert client.calls == 1


def test_a_run_that_is_stopped_waits_no_longer() -> None:
    model = served(Client(*[errors.Unavailable("nobody")] * 100), retry_seconds=100)
    model.close()
    began = time.monotonic()
    with pytest.raises(ModelLost, match="stopped"):
        model.run(ROWS)
    assert time.monotonic() - began < 5

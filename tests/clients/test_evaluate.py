"""`bookserve evaluate` as its user runs it: on files, on a server, and with what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_networks
from click.testing import CliRunner, Result

from bookserve.clients.command_line import main
from bookserve.export import contracts, drift, manifest
from bookserve.export.manifest import Manifest
from model_servers import server_starter

DIGITS = contracts.Contract(
    "digits",
    1,
    (contracts.Tensor("images", "uint8", (None, 16, 16)),),
    (contracts.Tensor("probabilities", "float32", (None, 10), unit="probability"),),
    labels=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    task="image-classification",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of `digits` with a manifest; version 2 with a graph alone."""
    root = tmp_path_factory.mktemp("store")
    for number in (1, 2):
        small_networks.write_convolutional(root / f"digits/{number}/assets.extra/model.onnx")
    described = Manifest("digits", 1, "2026-01-02T03:04:05+00:00", DIGITS, {}, manifest.digests(root / "digits/1"), {})
    (root / "digits/1" / manifest.LOCATION).write_text(described.to_json())
    return root


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Noisy pictures, a tenth of which have another's label."""
    images, labels = small_networks.pictures(700, 9)
    labels[:70] = (labels[:70] + 1) % 10
    np.savez(tmp_path / "rows.npz", images=images, labels=labels)
    return tmp_path / "rows.npz"


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_rows_that_are_unlike_the_training_rows_are_told_of(store: Path, rows: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(store, root)
    images, _ = small_networks.pictures(700, 5)
    known = drift.distributions(DIGITS, {"images": images})
    card = manifest.DataCard({"train": 700}, {}, {}, {}, {}, "", 0, [], known)
    described = Manifest(
        "digits", 1, "2026-01-02T03:04:05+00:00", DIGITS, {}, manifest.digests(root / "digits/1"), {}, data_card=card
    )
    (root / "digits/1" / manifest.LOCATION).write_text(described.to_json())
    told = evaluate("digits", "--version", 1, "--data", rows, "--models-dir", root)
    assert "The inputs have not drifted from the training rows" in told.output, told.output
    with np.load(rows) as content:
        np.savez(tmp_path / "dark.npz", images=content["images"] // 2, labels=content["labels"])
    told = evaluate("digits", "--version", 1, "--data", tmp_path / "dark.npz", "--models-dir", root)
    assert "2 of 2 quantities of the inputs drifted" in told.output, told.output
    assert "| images: brightness |" in told.output
    as_json = evaluate("digits", "--version", 1, "--data", tmp_path / "dark.npz", "--models-dir", root, "--json")
    assert [one["drifted"] for one in json.loads(as_json.output)["drift"]] == [True, True]


def test_files_and_a_server_give_the_same_figures(store: Path, rows: Path, tmp_path: Path) -> None:
    told = evaluate("digits", "--version", 1, "--data", rows, "--models-dir", store, "--json")
    assert told.exit_code == 0, told.output
    from_files = json.loads(told.output)
    assert (from_files["model"], from_files["version"], from_files["rows"]) == ("digits", 1, 700)
    assert from_files["value"] == pytest.approx(0.9, abs=0.01)
    low, high = from_files["interval"]
    assert low < from_files["value"] < high
    assert [sum(counts) for counts in from_files["confusion"]] == [one["positives"] for one in from_files["classes"]]
    shutil.copytree(store / "digits/1", tmp_path / "served/1")
    with server_starter(tmp_path) as start:
        server = start("--model_name=digits", f"--model_base_path={tmp_path / 'served'}")
        told = evaluate(
            *("digits", "--version", 1, "--data", rows, "--models-dir", store, "--json"),
            *("--server", f"127.0.0.1:{server.grpc_port}"),
        )
    assert told.exit_code == 0, told.output
    from_server = json.loads(told.output)
    for name in ("value", "interval", "confusion", "classes"):
        assert from_server[name] == from_files[name]
    assert from_server["calibration"]["ece"] == pytest.approx(from_files["calibration"]["ece"], abs=1e-5)


def test_a_version_without_a_manifest_is_read_from_its_graph(store: Path, rows: Path) -> None:
    told = evaluate("digits", "--data", rows, "--models-dir", store)
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"digits version 2, {store / 'digits/2'}:\n\naccuracy 0.9")
    assert ", 95 % interval 0." in told.output


def test_what_cannot_be_evaluated_is_told_in_one_line(store: Path, rows: Path, tmp_path: Path) -> None:
    images, _ = small_networks.pictures(30, 1)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "wrong.npz", images=images, labels=np.full(30, 10))
    (tmp_path / "text.npz").write_text("no archive")
    for arguments, message in (
        (("cats", "--data", rows), "cats"),
        (("digits", "--version", 7, "--data", rows), "7"),
        (("digits",), "give rows with --data"),
        (("digits", "--data", tmp_path / "none.npz"), "there is no file"),
        (("digits", "--data", tmp_path / "text.npz"), "cannot be read"),
        (("digits", "--data", tmp_path / "bare.npz"), "add an array or column 'targets' or 'labels'"),
        (("digits", "--version", 1, "--data", tmp_path / "wrong.npz"), "a right answer is class 10: the model has 10"),
        (("digits", "--data", rows, "--engine", "saved-model"), "has none of saved_model.pb"),
        (("digits", "--data", rows, "--engine", "onnx", "--server", "127.0.0.1:1"), "exclude each other"),
        (("digits", "--targets", "labels"), "--data, which is not given"),
        (("digits", "--data", rows, "--server", "127.0.0.1:1"), "127.0.0.1:1"),
    ):
        told = evaluate(*arguments, "--models-dir", store)
        assert told.exit_code in (1, 2), (arguments, told.output)
        assert message in told.output, (arguments, told.output)
        assert "Traceback" not in told.output
        assert "pickle" not in told.output
        assert isinstance(told.exception, SystemExit), told.exception

"""`bookserve doctor` on machines that lack something, or have something broken."""

import importlib.metadata
import os
import socket
import subprocess
import sys
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from book_contracts import CONTRACTS
from bookserve.clients import doctor
from bookserve.clients.doctor import Places
from bookserve.export.manifest import DataOrigin, Manifest, Source, digests
from bookserve.export.store import ModelStore

NVIDIA_SMI = "#!/bin/sh\necho 'NVIDIA T4, 15360 MiB, 570.86'\n"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((doctor.HOST, 0))
        return int(probe.getsockname()[1])


def publish(root: Path) -> Manifest:
    """A `linear` of one file, version 1."""

    def describe(version: int) -> Manifest:
        return Manifest(
            model="linear",
            version=version,
            created="2026-01-02T03:04:05+00:00",
            contract=CONTRACTS["linear"],
            data=DataOrigin("sample", "drawn points", "0" * 64),
            profile="smoke",
            seed=0,
            metrics={},
            parity={},
            files=digests(folder),
            made_with={},
        )

    store = ModelStore(root)
    with store.staging("linear") as folder:
        (folder / "assets.extra").mkdir()
        (folder / "saved_model.pb").write_text("graph")
        return store.publish("linear", folder, describe)


def places(folder: Path, port: int = 1) -> Places:
    return Places(folder / "models", None, {"the gateway": port})


def options(folder: Path, port: int) -> list[str]:
    ports = [f"--{name}-port={port + place}" for place, name in enumerate(("gateway", "grpc", "rest"))]
    return [f"--models-dir={folder}", *ports]


def test_a_fresh_machine_is_not_broken(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOKSERVE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DATA_DIR", raising=False)
    done = CliRunner().invoke(doctor.main, options(tmp_path / "models", free_port))
    assert done.exit_code == 0, done.output
    assert "ok    packages   training: all installed" in done.output
    assert "note  gpu        no NVIDIA GPU" in done.output
    assert "note  data       tox21: will be downloaded" in done.output
    assert f"note  models     none in {tmp_path / 'models'}: 'bookserve train-all' makes them" in done.output
    assert f"ok    ports      {free_port} for the gateway is free" in done.output
    assert not (tmp_path / "models").exists()


def test_it_runs_without_tensorflow_in_sight(tmp_path: Path, free_port: int) -> None:
    program = f"""
import sys
from click.testing import CliRunner
from bookserve.clients.doctor import main
done = CliRunner().invoke(main, {options(tmp_path, free_port)!r})
assert done.exit_code == 0, done.output
assert "tensorflow" not in sys.modules
"""
    environment = {"PATH": str(tmp_path), "BOOKSERVE_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_data_dir_that_is_not_there(tmp_path: Path, free_port: int) -> None:
    missing = tmp_path / "nowhere"
    done = CliRunner().invoke(doctor.main, [*options(tmp_path, free_port), f"--data-dir={missing}"])
    assert done.exit_code == 1
    assert f"bad   data       DATA_DIR {missing} is not a folder: name another, or none" in done.output
    assert "Error: 1 of these is bad" in done.output


def test_a_tilde_in_data_dir_and_a_file_as_models_dir(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "models").touch()
    done = CliRunner().invoke(doctor.main, [*options(tmp_path / "models", free_port), "--data-dir=~/data"])
    assert "is not a folder: name another, or none" not in done.output
    assert f"bad   models     {tmp_path / 'models'} is a file, not a folder: name another" in done.output


def test_data_is_found_where_the_training_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, cache = tmp_path / "data", tmp_path / "cache"
    monkeypatch.setenv("BOOKSERVE_CACHE", str(cache))
    for path in (
        data_dir / "cifar-10-batches-bin/data_batch_1.bin",
        data_dir / "tox21/tox21.csv.gz",
        cache / "ptb/ptb.train.txt",
        cache / "ptb/ptb.valid.txt",
        data_dir / "ptb/ptb.test.txt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {finding.text for finding in doctor.data(Places(tmp_path, data_dir, {}))}
    assert f"cifar10: in {data_dir / 'cifar-10-batches-bin'}" in found
    assert f"tox21: in {data_dir / 'tox21'}" in found
    assert any(text.startswith("ptb: will be downloaded") for text in found)  # in part here, in part there


def test_a_package_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "rdkit":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.9" if name == "flask" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {(finding.status, finding.text) for finding in doctor.packages(places(tmp_path))}
    assert ("bad", "serving: flask is 0.9, needed is >=3.1") in found
    assert ("note", "clients: not installed (rdkit)") in found
    assert ("ok", "tensorflow: all installed") in found


def test_a_gpu_that_tensorflow_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(NVIDIA_SMI)
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "DEVICES", "print()")
    first, second = doctor.gpus(places(tmp_path))
    assert (first.status, first.text) == ("ok", "NVIDIA T4, 15360 MiB, 570.86")
    assert (second.status, second.text) == ("bad", "TensorFlow sees 0 of 1")
    monkeypatch.setattr(doctor, "DEVICES", "print('GPU:0')")
    assert [finding.status for finding in doctor.gpus(places(tmp_path))] == ["ok", "ok"]


def test_a_model_with_a_changed_file_is_named(tmp_path: Path) -> None:
    store = tmp_path / "models"
    published = publish(store)
    good, _missing = doctor.models(places(tmp_path))
    assert (good.status, good.text) == ("ok", "linear: version 1, profile smoke")
    (store / "linear/1/saved_model.pb").write_text("another graph")
    changed, _missing = doctor.models(places(tmp_path))
    assert changed.status == "bad"
    assert changed.text == "linear: version 1, profile smoke: missing or changed: saved_model.pb"
    (store / "linear/1/saved_model.pb").write_text("graph")
    path = store / "linear/1/assets.extra/manifest.json"
    added = replace(published, profile="", data=None, source=Source("ONNX", "line.onnx", "0" * 64))
    path.write_text(added.to_json())
    own, _missing = doctor.models(places(tmp_path))
    assert (own.status, own.text) == ("ok", "linear: version 1, from ONNX")
    path.unlink()
    bare, _missing = doctor.models(places(tmp_path))
    assert bare.status == "bad"
    assert "has no manifest" in bare.text


def test_models_that_a_stopped_training_has_left_out_are_named(tmp_path: Path) -> None:
    for name in ("linear", "mnist"):
        (tmp_path / name / "1").mkdir(parents=True)
    found = list(doctor.models(Places(tmp_path, None, {})))
    assert found[-1].text == "not trained yet: logistic tox21 ptb cifar10 tictactoe"
    assert found[-1].advice == "'bookserve train-all logistic tox21 ptb cifar10 tictactoe' trains them"


def test_a_healthy_server_may_have_its_port(tmp_path: Path, http_fake: Any) -> None:
    http_fake.answer("GET", "/healthz", {})
    port = int(http_fake.url.rpartition(":")[2])
    (finding,) = doctor.ports(places(tmp_path, port))
    assert (finding.status, finding.text) == ("ok", f"{port} for the gateway: a healthy server answers there")


def test_a_server_of_grpc_may_have_its_port(tmp_path: Path) -> None:
    """What it answers to an HTTP/1 client is a frame of HTTP/2."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{doctor.HOST}:0")
    server.start()
    try:
        (finding,) = doctor.ports(places(tmp_path, port))
    finally:
        server.stop(None)
    assert (finding.status, finding.text) == ("ok", f"{port} for the gateway: a gRPC server answers there")


def test_two_servers_cannot_share_a_port(tmp_path: Path, free_port: int) -> None:
    done = CliRunner().invoke(doctor.main, [*options(tmp_path, free_port), f"--rest-port={free_port}"])
    shared = f"bad   ports      {free_port} is for the model server's REST, and for the gateway: name two ports"
    assert shared in done.output
    assert done.exit_code == 1


def test_a_foreign_program_on_a_port_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.1)
    with socket.create_server((doctor.HOST, 0)) as foreign:
        port = foreign.getsockname()[1]
        (finding,) = doctor.ports(places(tmp_path, port))
    assert (finding.status, finding.text) == ("note", f"{port} for the gateway is in use")

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.export.figures import Figure, Measurement
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.training import held_out_rows


def test_a_version_of_an_older_contract_is_asked_what_it_takes() -> None:
    rows = {"fingerprint": np.eye(3), "counts": np.ones((3, 2)), "descriptors": np.zeros((3, 4))}
    figure = Figure("auc", rows, lambda outputs, places: float(len(places)))
    older = CONTRACTS["tox21"].inputs[:1]
    for inputs in (older, CONTRACTS["tox21"].inputs):
        contract = replace(CONTRACTS["tox21"], inputs=inputs)
        found = held_out_rows._of_inputs(Measurement(rows, figure), contract)
        names = [tensor.name for tensor in inputs]
        assert list(found.figure.rows) == list(found.calibration) == names
        assert found.figure.count == 3


def version(config: dict[str, Any]) -> Manifest:
    return Manifest(
        model="tox21",
        version=1,
        created="",
        contract=CONTRACTS["tox21"],
        parity={},
        files={},
        made_with={},
        data=DataOrigin("real", "tox21", "0" * 64),
        config=config,
        profile="default",
        seed=1,
    )


def test_the_rows_are_those_of_the_split_that_the_version_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that differ in nothing but --set split_seed, another one would hand out training rows."""
    origin = DataOrigin("real", "tox21", "0" * 64)
    runs = {
        name: SimpleNamespace(data=origin, seed=1, profile="default", configuration="standard", config=config)
        for name, config in {"a": {"split_seed": 0}, "b": {"split_seed": 1}, "c": {"split_seed": 2}}.items()
    }
    for name in runs:
        (tmp_path / "tox21" / name).mkdir(parents=True)
    monkeypatch.setattr(held_out_rows.run_reader, "read", lambda path, name: runs[path.name])
    for name, run in runs.items():
        found: Any = held_out_rows._run_of(version(run.config), tmp_path)
        assert found is runs[name]
    assert held_out_rows._run_of(version({"split_seed": 3}), tmp_path) is None


def test_without_its_run_the_manifest_tells_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    rows = {tensor.name: np.zeros((1, 1)) for tensor in CONTRACTS["tox21"].inputs}
    measured = Measurement(rows, Figure("auc", rows, lambda outputs, places: 1.0))
    monkeypatch.setattr(held_out_rows, "_read", lambda *arguments: asked.append(arguments[2]) or measured)
    held_out_rows.measurement(version({"split_seed": 7, "hidden": [8, 4], "gone": 1}), None, tmp_path)
    assert (asked[0].split_seed, asked[0].hidden) == (7, (8, 4))

"""Drift of rows from the training rows: which quantities a contract has, and when one has drifted."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2

from bookserve.export import drift
from bookserve.export.contracts import Contract, Tensor

HOUSES = Contract(
    "houses",
    1,
    (Tensor("x", "float32", (None, 3)),),
    (Tensor("y", "float32", (None,)),),
    task="regression",
    columns=("area", "rooms", "lift"),
)
PETS = replace(HOUSES, inputs=(Tensor("images", "uint8", (None, 8, 8, 3)),), columns=(), task="image-classification")


def houses(rows: int, seed: int, larger: float = 0.0) -> dict[str, npt.NDArray[Any]]:
    """Area in square metres, rooms in whole numbers, and a lift, which no house has."""
    chance = np.random.default_rng(seed)
    area = chance.normal(90 + larger, 25, rows)
    return {"x": np.stack([area, chance.integers(1, 6, rows), np.zeros(rows)], axis=1).astype(np.float32)}


def found(rows: dict[str, npt.NDArray[Any]], before: int = 800) -> dict[str, drift.Drift]:
    known = drift.distributions(HOUSES, houses(before, 0))
    return {one.quantity: one for one in drift.drifts(HOUSES, known, rows)}


@pytest.mark.parametrize("rows", [20, 100, 2_000])
def test_rows_of_the_same_kind_have_not_drifted(rows: int) -> None:
    alarms = sum(one.drifted for seed in range(1, 51) for one in found(houses(rows, seed)).values())
    assert alarms <= 3  # of 150


def test_the_column_that_drifted_is_named_and_stands_first() -> None:
    known = drift.distributions(HOUSES, houses(800, 0))
    report = drift.drifts(HOUSES, known, houses(300, 1, larger=40.0))
    assert [one.quantity for one in report if one.drifted] == ["area"]
    assert report[0].quantity == "area"
    assert report[0].expected[1] == pytest.approx(90, abs=4)
    assert report[0].found[1] == pytest.approx(130, abs=4)
    words = drift.text(report)
    assert words[0].startswith("1 of 3 quantities of the inputs drifted from the training rows")
    assert words[4].startswith("| area ")
    assert words[4].endswith(" | drifted |")
    assert drift.text(drift.drifts(HOUSES, known, houses(300, 1)))[0].startswith("The inputs have not drifted")


@pytest.mark.parametrize("value", [-1.0, 1.0, np.nan])
def test_a_column_that_was_constant_drifts_to_either_side(value: float) -> None:
    rows = houses(200, 1)
    rows["x"][:, 2] = value
    assert {name: one.drifted for name, one in found(rows).items()} == {"area": False, "rooms": False, "lift": True}


def test_the_index_is_that_of_its_definition_and_chance_is_chi_squared() -> None:
    one = found(houses(5_000, 3, larger=10.0), before=5_000)["area"]
    edges = np.quantile(houses(5_000, 0)["x"][:, 0].astype(np.float64), np.linspace(0, 1, 11))
    new, _ = np.histogram(houses(5_000, 3, larger=10.0)["x"][:, 0], [-np.inf, *edges[1:-1], np.inf])
    shares = new / 5_000
    assert one.psi == pytest.approx(float(((shares - 0.1) * np.log(shares / 0.1)).sum()), rel=0.06)
    assert one.chance == pytest.approx(chi2.ppf(0.99, 10) * (2 / 5_000), rel=0.02)


def test_what_is_looked_at_follows_from_the_contract() -> None:
    chance = np.random.default_rng(0)
    images = {"images": chance.integers(0, 200, (500, 8, 8, 3)).astype(np.uint8)}
    known = drift.distributions(PETS, images)
    assert list(known) == ["images: brightness", "images: contrast"]
    assert all(one.drifted for one in drift.drifts(PETS, known, {"images": images["images"] // 2}))
    bits = {"bits": (chance.random((500, 64)) < 0.2).astype(np.uint8)}
    molecules = replace(HOUSES, inputs=(Tensor("bits", "uint8", (None, 64)),), columns=(), task="molecules")
    assert list(drift.distributions(molecules, bits)) == ["bits: bits set"]
    assert drift.distributions(replace(molecules, task="board"), bits) == {}
    words = replace(HOUSES, inputs=(Tensor("tokens", "int32", (None, None)),), columns=(), task="text")
    tokens = {"tokens": np.minimum(chance.geometric(0.01, (300, 20)), 999).astype(np.int32)}
    known = drift.distributions(words, tokens)
    (one,) = drift.drifts(words, known, {"tokens": 999 - tokens["tokens"]})
    assert (one.quantity, one.drifted) == ("tokens: place in the vocabulary", True)
    wide = replace(HOUSES, inputs=(Tensor("x", "float32", (None, 101)),), columns=(), task="tensors")
    assert drift.distributions(wide, {"x": np.zeros((5, 101), np.float32)}) == {}

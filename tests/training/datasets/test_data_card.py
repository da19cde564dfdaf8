import json
from dataclasses import asdict
from typing import Any

import made_up_molecules
import numpy as np
import pytest

from bookserve.training.datasets.data_card import duplicates, row_bytes, spread
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.datasets.splits import LabelledImages, Splits, divide
from bookserve.training.models import MODELS
from bookserve.training.run import book_model


def test_rows_in_two_splits_are_counted_for_each_two() -> None:
    splits = {"train": [b"a", b"b", b"b"], "valid": [b"b", b"c"], "test": [b"a", b"a", b"c", b"d"]}
    assert duplicates(splits) == {"valid in train": 1, "test in train": 2, "test in valid": 1}


def test_a_row_is_all_of_its_inputs() -> None:
    first, second = np.arange(4, dtype=np.uint8).reshape(2, 2), np.array([1.0, 1.0])
    rows = row_bytes({"a": first, "b": second})
    assert len(set(rows)) == 2
    assert rows[1] == bytes([2, 3]) + second[1:].tobytes()
    assert len(set(row_bytes({"b": second}))) == 1


def test_missing_labels_are_no_zeros() -> None:
    results = np.array([[1, np.nan], [0, np.nan], [1, 0]], np.float32)
    part = made_up_molecules.split(np.eye(3, 1024, dtype=np.uint8), results)
    card = Splits(part, part, part, Origin("own", "made up", "")).card(("a", "b"))
    assert card.classes["train"] == {"a": 2, "b": 0}
    assert card.missing["train"] == {"a": 0, "b": 2}
    assert card.duplicates == {"valid in train": 3, "test in train": 3, "test in valid": 3}


def test_a_class_without_rows_is_on_the_card() -> None:
    images = LabelledImages(np.zeros((2, 4, 4), np.uint8), np.array([0, 2]))
    card = Splits(images, images, images, Origin("own", "made up", "")).card(("a", "b", "c"))
    assert card.classes["train"] == {"a": 1, "b": 0, "c": 1}
    assert spread(np.array([])) == []


@pytest.mark.parametrize("rows", [3, 4, 20, 1_000])
def test_every_row_is_in_one_split(rows: int) -> None:
    parts = divide(rows, seed=5)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert all(len(part) for part in parts)
    if rows >= 20:
        assert [len(part) for part in parts] == [rows * 8 // 10, rows // 10, rows // 10]


@pytest.mark.parametrize(
    ("model", "rows", "classes"),
    [
        ("linear", {"train": 100, "valid": 100, "test": 100}, 0),
        ("logistic", {"train": 100, "valid": 100, "test": 100}, 2),
        ("tictactoe", {"positions": 4520}, 0),
    ],
)
def test_the_books_data_have_a_card(model: str, rows: dict[str, int], classes: int) -> None:
    module = book_model(model)
    data: Any = module.load_data(module.CONFIGS["standard"]["smoke"], DataRequest("sample"), 0)
    card = data.card(module.CONTRACT.labels)
    assert model in MODELS
    assert card.rows == rows
    assert len(card.classes.get("train", {})) == classes
    assert card.division
    json.dumps(asdict(card), allow_nan=False)

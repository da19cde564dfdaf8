from pathlib import Path

import numpy as np
import pytest

from bookserve.training.datasets import point_table
from bookserve.training.datasets.files import DataError
from bookserve.training.datasets.own_data import PointTable


def write(path: Path, rows: list[tuple[object, ...]], head: str = "length,width,price,sold") -> PointTable:
    path.write_text("\n".join([head, *(",".join(str(cell) for cell in row) for row in rows)]) + "\n")
    return PointTable(path, ("length", "width"), "price")


def flats(count: int) -> list[tuple[object, ...]]:
    return [(number, number % 7, 100 * number + 3, "yes" if number % 4 else "no") for number in range(count)]


@pytest.mark.parametrize("count", [19, 20, 21])
def test_rows_are_divided_by_the_seed_and_twenty_are_needed(tmp_path: Path, count: int) -> None:
    own = write(tmp_path / "flats.csv", flats(count))
    if count < 20:
        with pytest.raises(DataError, match="has 19 rows; 20 at least are needed to train, validate and test"):
            point_table.read_numbers(own, 0)
        return
    data = point_table.read_numbers(own, 0)
    assert data.columns == ("length", "width")
    assert data.card(()).rows == {"train": count - 4, "valid": 2, "test": 2}
    everything = np.concatenate([part.y for part in (data.train, data.valid, data.test)])
    assert sorted(everything) == [100 * number + 3 for number in range(count)]
    assert np.array_equal(data.train.y, 100 * data.train.x[:, 0] + 3)
    assert not np.array_equal(data.test.y, point_table.read_numbers(own, 1).test.y)


def test_the_card_of_a_table_counts_equal_rows(tmp_path: Path) -> None:
    own = write(tmp_path / "flats.csv", [*flats(20), *flats(20)])
    data = point_table.read_numbers(own, 3)
    known = {tuple(row) for row in data.train.x.tolist()}
    card = data.card(())
    assert card.duplicates["test in train"] == sum(tuple(row) in known for row in data.test.x.tolist()) > 0
    assert card.ranges == {"the value to predict": [data.train.y.min(), np.median(data.train.y), data.train.y.max()]}
    assert card.division == "80, 10 and 10 percent, drawn by seed 3"


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-inf", "", "n/a", "12,5", "1e16", "1_000", "0x10", "twelve"])
def test_a_cell_that_is_no_number_is_named(tmp_path: Path, cell: str) -> None:
    rows = flats(30)
    rows[4] = (4, f'"{cell}"', 403, "yes")
    own = write(tmp_path / "flats.csv", rows)
    with pytest.raises(DataError) as error:
        point_table.read_numbers(own, 0)
    assert f"line 6: 'width' is {cell!r}: a number below 1e+15, such as 12.5, has to stand there" in str(error.value)


def test_of_many_faults_the_first_are_named(tmp_path: Path) -> None:
    own = write(tmp_path / "flats.csv", [(number, "?", 1, "yes") for number in range(30)])
    with pytest.raises(DataError, match=r"line 2: 'width' is '\?'; line 3: .*; and 25 more: a number"):
        point_table.read_numbers(own, 0)


def test_a_value_that_never_changes_is_refused(tmp_path: Path) -> None:
    own = write(tmp_path / "flats.csv", [(number, 1, 7, "yes") for number in range(30)])
    with pytest.raises(DataError, match="the column 'price' is 7 in every row: there is nothing to learn from it"):
        point_table.read_numbers(own, 0)
    both = PointTable(own.file, ("length", "price"), "price")
    with pytest.raises(DataError, match="'price' is both a column to predict from and the column to predict"):
        point_table.read_numbers(both, 0)


def test_two_values_are_the_classes_in_their_order(tmp_path: Path) -> None:
    rows = [(number, number % 7, 10 if number % 4 else 9, "x") for number in range(40)]
    own = write(tmp_path / "flats.csv", rows)
    data = point_table.read_classes(own, 0)
    assert data.labels == ("9", "10")
    assert data.card(data.labels).classes == {
        "train": {"9": 8, "10": 24},
        "valid": {"9": 1, "10": 3},
        "test": {"9": 1, "10": 3},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["yes"] * 30, "has 1 different values ('yes'); two classes are learnt, so it must have two"),
        (["a", "b", "c"] * 10, "has 3 different values ('a', 'b', 'c')"),
        ([str(number) for number in range(30)], "has 30 different values ('0', '1', '2', '3', '4' …)"),
        (["yes"] * 28 + ["no"] * 2, "'no' stands in 2 rows of 'price'; a class needs 3"),
        (["yes"] * 27 + ["", "no", "no"], "line 29: the column 'price' is empty: fill or remove these rows"),
    ],
)
def test_classes_that_cannot_be_learnt_are_refused(tmp_path: Path, values: list[str], message: str) -> None:
    own = write(tmp_path / "flats.csv", [(number, 1, value, "x") for number, value in enumerate(values)])
    with pytest.raises(DataError) as error:
        point_table.read_classes(own, 0)
    assert message in str(error.value)

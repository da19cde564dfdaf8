"""Values of the REST form: what is written is read again, bit by bit, in few digits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bookserve.export import example_inputs
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError


@pytest.mark.parametrize(("dtype", "bits"), [("float16", "uint16"), ("float32", "uint32")])
def test_floats_have_few_digits_and_lose_none(dtype: str, bits: str) -> None:
    patterns = np.random.default_rng(0).integers(0, np.iinfo(bits).max, 20_000, bits, endpoint=True)
    values = patterns.view(dtype)
    values = values[np.isfinite(values)].reshape(1, -1)
    told = json.loads(json.dumps(example_inputs.to_rest(values)))
    again = np.array(told, dtype)
    assert again.tobytes() == values.tobytes()
    assert example_inputs.to_rest(np.array([70.1, 0.1, -3.0], dtype)) == [70.1, 0.1, -3.0]


def test_other_types_are_as_numpy_lists_them() -> None:
    assert example_inputs.to_rest(np.array([[1, 2]], np.int64)) == [[1, 2]]
    assert example_inputs.to_rest(np.float64(0.1)[None]) == [0.1]
    assert example_inputs.to_rest(np.array([b"a", b"\xff"], object)) == ["a", {"b64": "/w=="}]


TABLE = Contract(
    "flowers", 1, (Tensor("x", "float32", (None, 3)),), (Tensor("y", "float32", (None, 1)),), columns=("a", "b", "c")
)


def test_the_columns_of_a_table_are_found_by_name() -> None:
    for text in ("c,a,other,b\n3,1,9,2\n", "a,b,c\n1,2,3\n", "1,2,3\n", "p,q,r\n1,2,3\n"):
        rows = example_inputs.read_csv(text, TABLE, "rows.csv")
        np.testing.assert_array_equal(rows["x"], np.float32([[1, 2, 3]]))


def test_a_table_as_mlflow_writes_it_is_found_by_name() -> None:
    text = '{"dataframe_split": {"columns": ["c", "a", "b"], "data": [[3, 1, 2], [6, null, 5.5]]}}'
    rows = example_inputs.read_json(text, TABLE, "example.json")
    np.testing.assert_array_equal(rows["x"], np.float32([[1, 2, 3], [np.nan, 5.5, 6]]))
    columns = (Tensor("c", "float32", (None, 1)), Tensor("b", "object", (None, 1)))
    contract = Contract("flowers", 1, columns, (Tensor("y", "float32", (None, 1)),))
    text = '{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, "Zürich", 3], [4, null, 6]]}}'
    rows = example_inputs.read_json(text, contract, "example.json")
    assert {name: array.tolist() for name, array in rows.items()} == {
        "c": [[3.0], [6.0]],
        "b": [["Zürich".encode()], [b""]],
    }
    with pytest.raises(ExportError, match=r"example\.json cannot be read as an example: it has no column 'c'"):
        example_inputs.read_json(
            '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"]]}}', contract, "example.json"
        )


def test_a_table_with_a_short_line_or_of_another_form_is_told() -> None:
    with pytest.raises(ExportError, match=r"rows\.csv .*: line 3 has 2 columns, the first 3"):
        example_inputs.read_csv("a,b,c\n1,2,3\n4,5\n", TABLE, "rows.csv")
    with pytest.raises(ExportError, match=r"rows\.json .*: line 2 has 1 columns, the first 3"):
        example_inputs.read_json('{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1]]}}', TABLE, "rows.json")
    for other in ("7", '{"columns": ["a"]}', '{"columns": ["a"], "data": 5}', '{"columns": ["a"], "data": [5]}'):
        with pytest.raises(ExportError, match='"dataframe_split" has no "columns", a list of names, and "data"'):
            example_inputs.read_json(f'{{"dataframe_split": {other}}}', TABLE, "rows.json")


def test_a_table_that_has_only_some_of_the_columns_is_refused() -> None:
    """By their places they would be taken for others."""
    with pytest.raises(ExportError, match=r"rows\.csv .*: it has no column 'b'; its columns are a, c, d"):
        example_inputs.read_csv("a,c,d\n1,3,4\n", TABLE, "rows.csv")


@pytest.mark.parametrize("shape", [(None, 8, 4), (1, 8, 4, 3), (None, 3, 8, 4), (None, 1, 8, 4)])
def test_a_picture_fills_an_input_of_pixels(shape: tuple[int | None, ...], tmp_path: Path) -> None:
    Image.new("RGB", (20, 40), (255, 0, 0)).save(tmp_path / "red.gif")
    contract = Contract("reds", 1, (Tensor("x", "float32", shape),), (Tensor("y", "float32", (None, 1)),))
    (rows,) = example_inputs.read(tmp_path / "red.gif", contract).values()
    assert rows.shape == (1, *shape[1:])
    grey = round(0.299 * 255) / 255
    colour_axis = {(8, 4, 3): -1, (3, 8, 4): 1}.get(rows.shape[1:])
    expected = [grey] if colour_axis is None else [1.0, 0.0, 0.0]
    found = rows.reshape(-1, 1) if colour_axis is None else np.moveaxis(rows, colour_axis, -1).reshape(-1, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


def test_a_picture_of_no_known_size_is_refused(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    contract = Contract(
        "free", 1, (Tensor("x", "float32", (None, 3, None, None)),), (Tensor("y", "float32", (None, 1)),)
    )
    with pytest.raises(ExportError, match=r"'x' is float32 .*: give .npz, or the size of its pictures with --prepro"):
        example_inputs.read(tmp_path / "a.png", contract)

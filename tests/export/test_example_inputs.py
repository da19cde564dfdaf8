"""Values of the REST form: what is written is read again, bit by bit, in few digits."""

import json

import numpy as np
import pytest

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


def test_a_table_that_has_only_some_of_the_columns_is_refused() -> None:
    """By their places they would be taken for others."""
    with pytest.raises(ExportError, match=r"rows\.csv .*: it has no column 'b'; its columns are a, c, d"):
        example_inputs.read_csv("a,c,d\n1,3,4\n", TABLE, "rows.csv")

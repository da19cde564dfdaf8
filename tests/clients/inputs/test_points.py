import numpy as np
import pytest

from bookserve.clients.inputs import points


@pytest.mark.parametrize(
    ("text", "values"), [("1.5", [1.5]), ("-2", [-2]), (" 1e3 ", [1000]), ("0.2,-0.8", [0.2, -0.8]), ("1, 2", [1, 2])]
)
def test_numbers_are_read(text, values) -> None:
    row = points.row(text, len(values))
    assert row.dtype == np.float32
    np.testing.assert_array_equal(row, np.array(values, np.float32))


@pytest.mark.parametrize("text", ["", "x", "1,2,3", "1", "nan,1", "1,inf", "1e39,0", "0x10,1", "1;2", "1,"])
def test_what_is_no_pair_of_numbers_is_refused_with_an_example(text) -> None:
    with pytest.raises(points.NumberError, match=r"give it as 1\.5,-0\.8"):
        points.row(text, 2)


@pytest.mark.parametrize("value", [True, None, "1", [1], float("nan"), float("inf"), 1e39, 10**400, np.float32(1)])
def test_only_plain_finite_numbers_are_numbers(value) -> None:
    with pytest.raises(points.NumberError):
        points.number(value)


@pytest.mark.parametrize("value", [0, -1, 1.5, 3.4e38])
def test_plain_numbers_stay_as_they_are(value) -> None:
    assert points.number(value) == value

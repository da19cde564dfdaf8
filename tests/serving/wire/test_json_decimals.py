"""Decimals of REST answers, compared with the rule of TensorFlow Serving, one number at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.wire.json_decimals import rows, texts


def original(value: np.floating) -> str:
    """WriteDecimal of TensorFlow Serving's util/json_tensor.cc."""
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{float(value):.6g}"
    if type(value)(text) != value:
        text = f"{float(value):.{9 if isinstance(value, np.float32) else 17}g}"
    return text if "." in text or "e" in text else text + ".0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # Of the original's own tests (util/json_tensor_test.cc):
        (9000000, "9e+06"),
        (999999, "999999.0"),
        (0.5, "0.5"),
        (0.0003, "0.0003"),
        (0.00003, "3e-05"),
        (555557.5, "555557.5"),
        (0.1234567, "0.123456702"),
        (1e6, "1e+06"),
        (1234567, "1234567.0"),
        (123456789, "123456792.0"),
        (2**31, "2.14748365e+09"),
        (-0.0, "-0.0"),
        (0.00012345678, "0.000123456775"),
        (1.2345678e-5, "1.23456784e-05"),
        (1e-45, "1.4013e-45"),
        (3.4028235e38, "3.40282347e+38"),
    ],
)
def test_numbers_of_the_original(value: float, text: str) -> None:
    many = np.full(2048, value, np.float32)
    assert texts(many[:1]) == [text] == [original(many[0])]
    assert rows(many) == [text] * 2048


def test_float64_has_seventeen_digits() -> None:
    values = np.array([0.1, 1 / 3, 1e6, 1234567.0, 1e300, np.nan, -np.inf])
    assert texts(values) == [*("0.1", "0.33333333333333331", "1e+06", "1234567.0", "1e+300", "NaN", "-Infinity")]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["bits", "short", "unit", "softmax"]))
def test_many_numbers_are_written_as_one(seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    if kind == "bits":
        values = random.integers(0, 2**32, 2500, np.uint32).view(np.float32)
    elif kind == "short":
        values = (random.integers(0, 10**6, 2500) * 10.0 ** random.integers(-12, 12, 2500)).astype(np.float32)
    elif kind == "unit":
        values = random.random(2500, np.float32)
    else:
        values = np.exp(random.normal(-8, 6, 2500)).astype(np.float32)
    expected = [original(value) for value in values]
    assert texts(values) == expected
    assert rows(values) == expected


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0), (0, 3), (700, 5), (70, 3, 40), (5, 2, 0, 9), (3000,)])
def test_rows_are_nested_on_one_line(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(5).integers(0, 9, shape).astype(np.float32)
    assert rows(values) == [repr(row) for row in values.tolist()]

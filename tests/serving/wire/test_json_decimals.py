"""Decimals of REST answers, compared with the rule of TensorFlow Serving and with the fewest digits, one at a time."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.wire.json_decimals import joined, rows


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
        (1e6, "1e+06"),
        (1234567, "1234567.0"),
        (123456789, "123456792.0"),
        (2**31, "2.14748365e+09"),
        (-0.0, "-0.0"),
        (1.2345678e-5, "1.23456784e-05"),
        (1e-45, "1.4013e-45"),
        (3.4028235e38, "3.40282347e+38"),
    ],
)
def test_numbers_of_the_original(value: float, text: str) -> None:
    one = np.array([value], np.float32)
    assert rows(one) == [text] == [original(one[0])]


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234567, "0.1234567"), (1 / 3, "0.33333334"), (0.00012345678, "0.00012345678")]
)
def test_in_between_the_fewest_digits(value: float, text: str) -> None:
    assert rows(np.array([value], np.float32)) == [text]


def test_float64() -> None:
    values = np.array([0.1, 1 / 3, 1e6, 1234567.1, 1e300, 1e-5 / 3, np.nan, -np.inf])
    expected = ["0.1", "0.3333333333333333", "1e+06", "1234567.1000000001", "1e+300", "3.3333333333333337e-06"]
    assert rows(values) == [*expected, "NaN", "-Infinity"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["bits", "short", "unit", "softmax"]), st.sampled_from([1, 10]))
def test_every_number_is_told_and_in_its_notation(seed: int, kind: str, width: int) -> None:
    random = np.random.default_rng(seed)
    if kind == "bits":
        values = random.integers(0, 2**32, 500, np.uint32).view(np.float32)
    elif kind == "short":
        values = (random.integers(0, 10**6, 500) * 10.0 ** random.integers(-12, 12, 500)).astype(np.float32)
    elif kind == "unit":
        values = random.random(500, np.float32)
    else:
        values = np.exp(random.normal(-8, 6, 500)).astype(np.float32)
    texts = [text for row in rows(values.reshape(-1, width)) for text in row[1:-1].split(", ")]
    for value, text in zip(values, texts, strict=True):
        if 1e-4 <= abs(value) < 1e6 or value == 0:
            assert np.float32(text) == value
            assert len(text) <= len(original(value))
        else:
            assert text == original(value)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0), (0, 3), (700, 5), (70, 3, 40), (5, 2, 0, 9), (3000,)])
def test_rows_are_nested_on_one_line(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(5).integers(0, 9, shape).astype(np.float32)
    assert rows(values) == [repr(row) for row in values.tolist()]
    assert joined(values) == repr(values.tolist())[1:-1]
    values[..., :1] = 3e-5
    assert joined(values) == ", ".join(rows(values))
    assert np.array_equal(np.array([json.loads(row) for row in rows(values)], np.float32).reshape(shape), values)


def random_small(count: int) -> np.ndarray:
    """Float32 numbers between 0 and 1e-4, of either sign: any bits, and such as few decimals tell."""
    random = np.random.default_rng(1)
    bits = random.integers(1, np.float32(1e-4).view(np.uint32), count, np.uint32).view(np.float32)
    short = (random.integers(1, 10**6, count) * 10.0 ** -random.integers(10, 40, count)).astype(np.float32)
    values = np.concatenate([bits, short[(short > 0) & (short < np.float32(1e-4))]])
    return np.where(random.random(values.size) < 0.5, values, -values)


def test_many_small_numbers_are_those_of_printf() -> None:
    """They are written all at once, as the probabilities of ten thousand words are."""
    values = np.concatenate([random_small(50_000), np.array([1e-45, 9.9999e-5, 2.0**-30, 3e-5, 1e-38], np.float32)])
    assert rows(values) == [original(value) for value in values]


def test_numbers_of_every_size_in_blocks() -> None:
    """Arrays of many numbers are written block by block; each row is what it is alone."""
    random = np.random.default_rng(2)
    wide = np.concatenate([random_small(100_000)[:100_000], np.array([np.nan, np.inf, 1e9, 0.25, 0], np.float32)])
    wide = random.permutation(wide)[None]
    (row,) = rows(wide)
    assert row == "[" + ", ".join(rows(wide[0])) + "]" == f"[{joined(wide[0])}]"
    narrow = random.permutation(wide[0]).reshape(-1, 3)
    assert rows(narrow) == ["[" + ", ".join(rows(row)) + "]" for row in narrow]
    assert joined(narrow) == ", ".join(rows(narrow))
    deep = narrow[:64].reshape(2, 4, 8, 3)
    assert json.loads(rows(deep[:, :, :, :0])[0]) == [[[]] * 8] * 4
    assert rows(deep)[1] == "[" + ", ".join("[" + ", ".join(rows(part)) + "]" for part in deep[1]) + "]"

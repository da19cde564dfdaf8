"""Values of the REST form: what is written is read again, bit by bit, in few digits."""

import json

import numpy as np
import pytest

from bookserve.export import example_inputs


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

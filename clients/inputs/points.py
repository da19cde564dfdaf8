"""From plain numbers to the rows that a model of a table takes."""

import numpy as np
import numpy.typing as npt

LARGEST = float(np.finfo(np.float32).max)


class NumberError(ValueError):
    """A value that is no number a float32 can hold; the message says why and what would do."""


def number(value: object) -> float:
    """`value` itself, when it is a finite int or float that float32 can hold. NumberError otherwise; bool is none."""
    if type(value) not in (int, float):
        raise NumberError("expected a number")
    assert isinstance(value, int | float)
    if not -LARGEST <= value <= LARGEST:
        raise NumberError(f"expected a finite number of at most {LARGEST:.2g}")
    return float(value)


def row(text: str, size: int) -> npt.NDArray[np.float32]:
    """Reads "0.2,-0.8" as float32 [size]. NumberError for another count or for what is no number."""
    example = ",".join(["1.5", "-0.8"][:size])
    parts = text.split(",")
    if len(parts) != size:
        wanted = "one number" if size == 1 else f"{size} numbers with commas between them"
        raise NumberError(f"expected {wanted}, got {text[:80]!r}: give it as {example}")
    values = []
    for part in parts:
        try:
            values.append(number(float(part)))
        except ValueError as error:
            raise NumberError(f"{part[:40]!r} is no finite number: give it as {example}") from error
    return np.array(values, np.float32)

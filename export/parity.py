"""The proof that the graphs of a version compute the same: SavedModel against the others, or a source against all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import engines
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError

LOCATION = "assets.extra/model.onnx"  # inside the version folder
TOLERANCE = 1e-5  # largest accepted difference of a float output, as a fraction of the output's largest value
DOUBLE_SOURCE = 1e-4  # the same where the source computes in float64 and the graph in float32
HALF_SOURCE = {"float16": 8 * 2.0**-10, "bfloat16": 8 * 2.0**-7}  # where the source rounds each layer's values so
_LEAST = 1e-3  # an output whose values are all smaller is compared as if this were its largest: rounding around 0
Rows = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Rows], Rows]
_SOURCE = "the SavedModel"
_ENGINES = (_SOURCE, "the ONNX graph")


def check(folder: Path, contract: Contract, rows: Rows, others: Mapping[str, Run] | None = None) -> dict[str, float]:
    """Output -> largest absolute difference of the SavedModel in `folder` from the others, by name, over all rows.

    The others are the ONNX graph and the same SavedModel in TensorFlow 1's loader, unless said otherwise. Rows are
    asked as one batch, the first row once more alone, and where the contract leaves more than the batch free, cut to a
    single step and to half of them.

    For an output of class numbers the value is the fraction of rows whose numbers differ, which is accepted only where
    the output that the numbers point into is tied within the tolerance.

    Raises:
        ExportError: a difference is above the tolerance, the engines give other shapes or types, or one refuses rows.
    """
    run_saved_model = engines.saved_model(folder, contract.signature)
    if others is None:
        others = {
            _ENGINES[1]: engines.onnx_graph(folder / LOCATION),
            "the SavedModel in TensorFlow 1's loader": engines.saved_model_session(folder, contract.signature),
        }
    differences = dict.fromkeys((tensor.name for tensor in contract.outputs), 0.0)
    sizes: Mapping[str, float] = {}
    for batch in _batches(contract, rows):
        expected = run_saved_model(batch)
        sizes = sizes or largest(expected)
        for engine, run in others.items():
            actual = _ask(engine, run, batch)
            for tensor in contract.outputs:
                worst = difference(tensor, expected, actual, (_SOURCE, engine), sizes=sizes)
                differences[tensor.name] = max(differences[tensor.name], worst)
    return differences


def _ask(engine: str, run: Run, batch: Rows) -> Rows:
    try:
        return run(batch)
    except ExportError:
        raise
    except Exception as error:  # the engines' own errors share no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{engine} refuses the rows: {' '.join(lines)[:300]}") from error


def _batches(contract: Contract, rows: Rows) -> list[Rows]:
    """The batches that `check` asks for."""
    batches = [rows, {name: array[:1] for name, array in rows.items()}]
    if any(None in tensor.shape[1:] for tensor in contract.inputs):
        for fraction in (0.0, 0.5):
            batches.append({tensor.name: _cut(rows[tensor.name], tensor, fraction) for tensor in contract.inputs})
    return batches


def _cut(array: npt.NDArray[Any], tensor: Tensor, fraction: float) -> npt.NDArray[Any]:
    """The array with each free dimension but the batch cut to `fraction` of its size, at least to one."""
    for axis, size in enumerate(tensor.shape):
        if axis and size is None:
            array = array.take(range(max(1, int(array.shape[axis] * fraction))), axis)
    return array


def difference(
    tensor: Tensor,
    expected: Rows,
    actual: Rows,
    engines: tuple[str, str] = _ENGINES,
    tolerance: float = TOLERANCE,
    nan_expected: bool = False,
    sizes: Mapping[str, float] | None = None,
) -> float:
    """The difference of one output as `check` defines it; `engines` name who gave `expected` and `actual`.

    A float output may differ by `tolerance` of its largest finite value, one of 16 bits by two units in the last place
    of that value; `sizes` has the largest values of a larger batch, where these are a part of one. Infinity must be the
    same in both. NaN is refused, for an engine that fails may give it everywhere; with `nan_expected`, because the
    inputs hold it, it must be the same in both.

    Raises:
        ExportError: types, shapes or values disagree; the message has the worst value.
    """
    left, right = expected[tensor.name], actual[tensor.name]
    for engine, array in zip(engines, (left, right), strict=True):
        if _type_name(array) != tensor.dtype:
            raise ExportError(f"'{tensor.name}' of {engine} is {_type_name(array)}, not {tensor.dtype}")
    if left.shape != right.shape:
        raise ExportError(f"'{tensor.name}' is {left.shape} from {engines[0]}, {right.shape} from {engines[1]}")
    if left.dtype.kind in "fc":
        if not nan_expected and np.isnan(left).any():
            raise ExportError(
                f"'{tensor.name}' of {engines[0]} is NaN for {int(np.isnan(left).sum())} of {left.size} values, which"
                " cannot be compared: give inputs with --example that it answers. NaN in the example's inputs says that"
                " NaN may be an answer"
            )
        allowed = _allowed(tensor.name, expected, sizes, tolerance)
        return _float_difference(tensor.name, left, right, engines, allowed)
    differs = _as_bytes(left) != _as_bytes(right)
    if not differs.any():
        return 0.0
    if tensor.ranks:
        gaps = np.abs(_values_at(expected[tensor.ranks], left) - _values_at(expected[tensor.ranks], right))
        if gaps.max() <= _allowed(tensor.ranks, expected, sizes, tolerance):
            return float(differs.mean())
    place = tuple(int(axis) for axis in np.argwhere(differs)[0])
    raise ExportError(
        f"{engines[0]} and {engines[1]} differ in '{tensor.name}' for {int(differs.sum())} of {differs.size} values, "
        f"first {left[place]} and {right[place]} at {list(place)}"
    )


def largest(outputs: Rows) -> dict[str, float]:
    """Output -> its largest finite size, of those that are numbers; 0 where none is finite."""
    found = {}
    for name, values in outputs.items():
        if values.dtype.kind in "fciu":
            sizes = np.abs(values.astype(np.complex128 if values.dtype.kind == "c" else np.float64))
            found[name] = float(np.max(sizes, initial=0.0, where=np.isfinite(sizes)))
    return found


def _allowed(name: str, expected: Rows, sizes: Mapping[str, float] | None, tolerance: float) -> float:
    """How far a float output may be off."""
    values = expected[name]
    if values.dtype == np.float16:
        tolerance = max(tolerance, 2 * float(np.finfo(np.float16).eps))
    return tolerance * max(_LEAST, largest({name: values})[name], (sizes or {}).get(name, 0.0))


def _float_difference(
    name: str, left: npt.NDArray[Any], right: npt.NDArray[Any], engines: tuple[str, str], allowed: float
) -> float:
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    a, b = left.astype(wide), right.astype(wide)
    if a.size and not np.isfinite(a).any():
        raise ExportError(
            f"'{name}' of {engines[0]} has no finite value, so nothing can be compared:"
            " give inputs with --example that it answers"
        )
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(a - b))
    if not bool((gaps <= allowed).all()):
        place = tuple(
            int(axis) for axis in np.unravel_index(int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps))), gaps.shape)
        )
        raise ExportError(
            f"{engines[0]} and {engines[1]} differ in '{name}' by {float(gaps[place]):g}, more than {allowed:g}: "
            f"{left[place]:.9g} and {right[place]:.9g} at {list(place)}"
        )
    return float(np.max(gaps, initial=0.0))


def _type_name(array: npt.NDArray[Any]) -> str:
    return "object" if array.dtype.kind in "SUO" else array.dtype.name


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Strings as bytes, whoever gave them; other arrays as they are."""
    if array.dtype.kind not in "SUO":
        return array
    flat = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    return np.array(flat, dtype=object).reshape(array.shape)


def _values_at(scores: npt.NDArray[Any], numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The scores [n, classes] that class numbers [n] or [n, k] point at; scores [n] are those of class 1 of two."""
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    picked = np.take_along_axis(scores, numbers.reshape(len(numbers), -1).astype(np.int64), axis=1)
    return picked.astype(np.float64)

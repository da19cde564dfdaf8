"""How far new rows are from the training rows: a few quantities of a row, and how they are spread.

What is looked at follows from the contract: each column of a table, brightness and contrast of an image, the bits of a
molecule's fingerprint, the place of each word of a text in the vocabulary. Boards, and rows of more than 100 numbers of
which nothing is known, have no quantities.

The spread of the training rows travels with the version, in its data card. New rows are compared with it by the
population stability index, PSI: the sum over tenths of the training rows of (new - old) * ln(new / old), where new and
old are the fractions that lie in the tenth. From 0.25 on a population has shifted by the usual rule (Siddiqi, "Credit
Risk Scorecards", 2006). Few rows have a PSI by chance alone, which is about chi-squared * (1 / old rows + 1 / new rows)
(Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020), so that a drift also has to be
above its 99 % quantile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import table
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.figures import Rows

DRIFTED = 0.25  # PSI from which rows are said to have drifted
MAX_ROWS = 20_000  # of which a spread is taken, at even steps
MAX_COLUMNS = 100
SHOWN = 10  # quantities of a report, the farthest first
_PARTS = 10
_Z_99 = 2.326348
_IMAGE = 3  # axes of the tensor of an image, at least

Floats = npt.NDArray[np.float64]
Distributions = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Drift:
    """One quantity: its PSI, and the PSI that chance alone reaches in 1 of 100 cases.

    `expected` and `found` are the 10 %, 50 % and 90 % quantiles of the training rows and of the new ones, of which
    there are none where no value is finite.
    """

    quantity: str
    psi: float
    chance: float
    expected: tuple[float, float, float]
    found: tuple[float, ...]
    drifted: bool


def distributions(contract: Contract, rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Quantity -> how the training rows are spread: `edges` [k] and `counts` [k + 1] of rows between them.

    The first and the last edge are the smallest and the largest value, so that the first and last counts are 0.
    """
    found = {}
    for name, values in _quantities(contract, rows).items():
        edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _PARTS + 1)))
        found[name] = {"edges": edges.tolist(), "counts": _counts(edges, values).tolist()}
    return found


def drifts(contract: Contract, known: Distributions, rows: Rows) -> list[Drift]:
    """Each quantity of which the training's spread is known, the farthest first."""
    found = []
    for name, values in _quantities(contract, rows).items():
        if name not in known or not values.size:
            continue
        edges, before = (np.array(known[name][part], np.float64) for part in ("edges", "counts"))
        after = _counts(edges, values)
        psi, chance = _index(before, after.astype(np.float64))
        finite = values[np.isfinite(values)]
        seen = tuple(np.quantile(finite, (0.1, 0.5, 0.9)).tolist()) if finite.size else ()
        drifted = psi >= DRIFTED and psi > chance
        found.append(Drift(name, psi, chance, _quantiles(edges, before), seen, drifted))
    return sorted(found, key=lambda one: -one.psi)


def text(found: Sequence[Drift], width: int | None = None) -> list[str]:
    """A sentence, and a table of the farthest quantities: in Markdown, or for a terminal of `width` characters."""
    if not found:
        return []
    count = sum(one.drifted for one in found)
    what = f"{count} of {len(found)} quantities of the inputs drifted" if count else "The inputs have not drifted"
    lines = [f"{what} from the training rows (population stability index from {DRIFTED:g}, and beyond chance).", ""]
    rows = [("quantity", "PSI", "99 % chance", "training: 10, 50, 90 %", "these rows", "")]
    for one in found[:SHOWN]:
        expected, seen = (", ".join(f"{value:.4g}" for value in values) for values in (one.expected, one.found))
        verdict = "drifted" if one.drifted else ""
        rows.append((one.quantity, f"{one.psi:.3f}", f"{one.chance:.3f}", expected, seen, verdict))
    lines += table.markdown(rows) if width is None else table.lines(rows, width)
    if len(found) > SHOWN:
        lines += ["", f"{len(found) - SHOWN} quantities with a smaller PSI are left out; --json has them."]
    return lines


def _index(before: Floats, after: Floats) -> tuple[float, float]:
    """PSI of two counts [k], half a row added to each, and its 99 % quantile by chance (Wilson and Hilferty, 1931)."""
    old, new = ((counts + 0.5) / (counts.sum() + len(counts) / 2) for counts in (before, after))
    free = max(1, int(((before + after) > 0).sum()) - 1)
    root = np.sqrt(2 / (9 * free))
    chi_squared = free * (1 - 2 / (9 * free) + _Z_99 * root) ** 3
    psi = float(((new - old) * np.log(new / old)).sum())
    return psi, float(chi_squared * (1 / before.sum() + 1 / after.sum()))


def _counts(edges: Floats, values: Floats) -> npt.NDArray[np.int64]:
    """How many values lie below the first edge, in each part between two, and above the last; NaN lies above.

    A part holds its upper edge, the first one both.
    """
    places = np.searchsorted(edges, values, side="left")
    places[values == edges[0]] = 1
    if len(edges) == 1:
        places = np.where(values == edges[0], 1, np.where(values < edges[0], 0, 2))
        return np.bincount(places, minlength=3)
    return np.bincount(places, minlength=len(edges) + 1)


def _quantiles(edges: Floats, counts: Floats) -> tuple[float, float, float]:
    """The edges that are nearest to the 10 %, 50 % and 90 % quantiles."""
    shares = counts[: len(edges)].cumsum() / max(1.0, counts.sum())
    low, middle, high = (float(edges[int(np.abs(shares - share).argmin())]) for share in (0.1, 0.5, 0.9))
    return low, middle, high


def _quantities(contract: Contract, rows: Rows) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for tensor in contract.inputs:
        if tensor.name in rows and np.dtype(tensor.dtype).kind in "iufb" and len(rows[tensor.name]):
            values = rows[tensor.name]
            step = max(1, -(-len(values) // MAX_ROWS))
            found |= _of_tensor(contract, tensor, np.asarray(values[::step]))
    return found


def _of_tensor(contract: Contract, tensor: Tensor, values: npt.NDArray[Any]) -> dict[str, Floats]:
    if contract.task == "board":
        return {}
    if contract.task == "text" and values.dtype.kind in "iu":
        return {f"{tensor.name}: place in the vocabulary": values.reshape(-1).astype(np.float64)}
    if contract.task == "molecules":
        return {f"{tensor.name}: bits set": (values != 0).reshape(len(values), -1).sum(axis=1).astype(np.float64)}
    if contract.task == "image-classification" and values.ndim >= _IMAGE:
        pixels = values.reshape(len(values), -1).astype(np.float64)
        return {f"{tensor.name}: brightness": pixels.mean(axis=1), f"{tensor.name}: contrast": pixels.std(axis=1)}
    columns = values.reshape(len(values), -1).astype(np.float64)
    if columns.shape[1] > MAX_COLUMNS:
        return {}
    named = contract.columns if len(contract.columns) == columns.shape[1] else ()
    names = named or tuple(f"{tensor.name}[{place}]" for place in range(columns.shape[1]))
    return {name: columns[:, place] for place, name in enumerate(names)}

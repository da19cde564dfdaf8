"""How good a graph is, as one number over rows, and how sure the difference of two graphs is.

For the int8 graph of a version beside its float graph, a new version beside the served one, and a model beside its
baseline. The figure is the user's (from targets), the model's own (from `training/models/`), or how often two graphs
agree.

Sources: paired percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13);
interval of the difference of two paired fractions (Bonett and Price, "Adjusted Wald Confidence Interval for a
Difference of Binomial Proportions Based on Paired Data", 2012).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError

Rows = Mapping[str, npt.NDArray[Any]]
Places = npt.NDArray[np.int64]
Score = Callable[[Rows, Places], float]
Right = Callable[[Rows], npt.NDArray[np.bool_]]
RESAMPLES = 1_000
ACCURACY = "accuracy"  # of a Figure that is the fraction of rows whose class is right
_SEED = 0
_Z = 1.959964  # standard errors that hold 95 %
_CLASS_TASKS = ("image-classification", "tabular", "text", "board")  # whose scores [n, classes] exclude each other


@dataclass(frozen=True)
class Figure:
    """A number that says how good outputs are.

    `rows` are the inputs, held out from calibration, whose outputs are judged. `score(outputs, places)` is the number
    for the rows at `places`, among which a row may be repeated. `resamples` is how often rows are drawn anew for the
    interval; 0 where the number is no matter of chance, as for all games of a tree. `truth` are the right answers where
    they are classes, whole numbers [n], or labels [n, labels] that are 1, 0 or NaN where that is not known. `right`
    says of each row whether its answer is right, bool [n], where the number is the fraction of such rows.
    """

    name: str
    rows: Rows
    score: Score
    higher_is_better: bool = True
    resamples: int = RESAMPLES
    truth: npt.NDArray[Any] | None = None
    right: Right | None = None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class Baseline:
    """A simpler model of the same training rows: `outputs` trains it and gives its outputs for a figure's rows."""

    name: str
    outputs: Callable[[], Rows]


@dataclass(frozen=True)
class Measurement:
    """What judges a trained model: training rows that calibrate, the figure of its test rows, and its baseline."""

    calibration: Rows
    figure: Figure
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Difference:
    """A figure of two models on the same rows.

    `value` is `second` less `first`, `interval` its 95 % interval; None where chance has no part in it. `worse` and
    `better` say whether the second is that by more than chance.
    """

    figure: str
    rows: int
    first: float
    second: float
    value: float
    interval: tuple[float, float] | None
    worse: bool
    better: bool

    @property
    def text(self) -> str:
        """The difference with its interval, in words."""
        if self.interval is None:
            return f"difference {self.value:+.4g}"
        low, high = self.interval
        return f"difference {self.value:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}"


@dataclass(frozen=True)
class Comparison:
    """A figure of the float graph and of the int8 graph on the same rows.

    `difference` is int8 less float, `interval` its 95 % interval by resampling the rows in pairs; None where nothing is
    resampled. `loss` is how much worse int8 is, as a fraction of the float figure; below 0 it is better.
    """

    figure: str
    rows: int
    float32: float
    int8: float
    difference: float
    interval: tuple[float, float] | None
    loss: float


def paired(figure: Figure, first: Rows, second: Rows) -> Difference:
    """The figure of two models' outputs for all rows of the figure, and how sure their difference is.

    Of fractions of right rows the interval is Bonett and Price's, which also holds where few rows differ; of other
    figures both are taken of the same rows, drawn anew `resamples` times.
    """
    everything = np.arange(figure.count)
    before, after = figure.score(first, everything), figure.score(second, everything)
    interval = _interval(figure, first, second)
    low, high = interval or (after - before, after - before)
    falls, rises = high < 0, low > 0
    worse, better = (falls, rises) if figure.higher_is_better else (rises, falls)
    return Difference(figure.name, figure.count, before, after, after - before, interval, worse, better)


def compare(figure: Figure, float32: Rows, int8: Rows) -> Comparison:
    """The figure of both graphs' outputs on all rows of the figure."""
    found = paired(figure, float32, int8)
    loss = _loss(figure, found.first, found.second)
    return Comparison(found.figure, found.rows, found.first, found.second, found.value, found.interval, loss)


def _interval(figure: Figure, first: Rows, second: Rows) -> tuple[float, float] | None:
    if not figure.resamples:
        return None
    if figure.right is not None:
        before, after = figure.right(first), figure.right(second)
        won, lost = int((after & ~before).sum()), int((before & ~after).sum())
        return _of_paired_fractions(won, lost, figure.count)
    chance = np.random.default_rng(_SEED)
    differences = []
    for _ in range(figure.resamples):
        places = chance.integers(0, figure.count, figure.count)
        differences.append(figure.score(second, places) - figure.score(first, places))
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


def _of_paired_fractions(won: int, lost: int, rows: int) -> tuple[float, float]:
    """Of rows that only the second (`won`) and only the first (`lost`) has right: one of each is added to them."""
    up, down = (won + 1) / (rows + 2), (lost + 1) / (rows + 2)
    reach = _Z * float(np.sqrt((up + down - (up - down) ** 2) / (rows + 2)))
    return max(-1.0, up - down - reach), min(1.0, up - down + reach)


def _loss(figure: Figure, before: float, after: float) -> float:
    worse = before - after if figure.higher_is_better else after - before
    if worse == 0 or before == 0:
        return 0.0 if worse <= 0 else float("inf")
    return worse / abs(before)


def accuracy(contract: Contract, rows: Rows, labels: npt.NDArray[Any]) -> Figure:
    """The fraction of rows whose class is that of `labels` [n], whole numbers.

    Raises:
        ExportError: the contract has no output of classes, or of scores for them.
    """
    classes = _classes(contract) or _only_scores(contract)
    if classes is None:
        shapes = ", ".join(f"'{tensor.name}'" for tensor in contract.outputs)
        raise ExportError(f"the targets are classes, and no output is one of classes or of scores for them: {shapes}")
    return of_classes(classes, rows, labels)


def of_classes(classes: Callable[[Rows], npt.NDArray[Any]], rows: Rows, labels: npt.NDArray[Any]) -> Figure:
    """The fraction of rows whose class, which `classes` finds in the outputs, is that of `labels` [n]."""
    return Figure(
        ACCURACY,
        rows,
        lambda outputs, places: float((classes(outputs)[places] == labels[places]).mean()),
        truth=labels,
        right=lambda outputs: classes(outputs) == labels,
    )


def from_targets(contract: Contract, rows: Rows, targets: npt.NDArray[Any]) -> Figure:
    """The figure that the user's targets ask for: accuracy for classes [n], R² for numbers of an output's shape.

    Raises:
        ExportError: no output fits them.
    """
    count = len(next(iter(rows.values())))
    if targets.shape == (count, 1):
        targets = targets[:, 0]
    if targets.dtype.kind in "iub" and targets.ndim == 1:
        return accuracy(contract, rows, targets)
    if targets.dtype.kind not in "iubf":
        raise ExportError(f"the targets are {targets.dtype}: give whole numbers (classes) or numbers")
    for tensor in contract.outputs:
        sizes = tensor.shape[1:] if tensor.shape[1:] != (1,) else ()
        fits = len(sizes) == targets.ndim - 1 and all(
            wanted in (None, size) for wanted, size in zip(sizes, targets.shape[1:], strict=True)
        )
        if np.dtype(tensor.dtype).kind == "f" and fits:
            return _r2(tensor.name, rows, targets.astype(np.float64))
    raise ExportError(f"no output has the shape of the targets, {list(targets.shape)}: rows, then sizes of one row")


def agreement(contract: Contract, rows: Rows, float32: Rows) -> Figure:
    """How far outputs are those of the float graph, 1 for the same.

    For classes the fraction of rows with the same class; else 1 less the mean difference, as a fraction of the float
    outputs' mean size.
    """
    classes = _classes(contract)
    if classes is not None:
        expected = classes(float32)
        return Figure(
            "agreement", rows, lambda outputs, places: float((classes(outputs)[places] == expected[places]).mean())
        )
    names = [tensor.name for tensor in contract.outputs if np.dtype(tensor.dtype).kind == "f"]
    if not names:
        raise ExportError("no output is a number or a class: give targets")

    def closeness(outputs: Rows, places: Places) -> float:
        return 1.0 - divergence({name: float32[name][places] for name in names}, outputs, places)

    return Figure("closeness", rows, closeness)


def divergence(expected: Rows, outputs: Rows, places: Places | slice = slice(None)) -> float:
    """The mean difference of the float outputs named in `expected`, as a fraction of their mean size."""
    shares = []
    for name, wanted in expected.items():
        if wanted.dtype.kind == "f" and wanted.size:
            gap = np.abs(outputs[name][places].astype(np.float64) - wanted).mean()
            shares.append(float(gap) / max(float(np.abs(wanted).mean(dtype=np.float64)), 1e-30))
    return float(np.mean(shares)) if shares else 0.0


def _r2(name: str, rows: Rows, targets: npt.NDArray[np.float64]) -> Figure:
    """1 less the squared errors as a fraction of those of the mean."""

    def score(outputs: Rows, places: Places) -> float:
        wanted = targets[places]
        errors = (outputs[name][places].reshape(wanted.shape) - wanted) ** 2
        return 1.0 - float(errors.sum()) / max(float(((wanted - wanted.mean(axis=0)) ** 2).sum()), 1e-30)

    return Figure("r2", rows, score)


def _classes(contract: Contract) -> Callable[[Rows], npt.NDArray[Any]] | None:
    """Outputs -> the class of each row [n]; None where no output tells of classes."""
    for tensor in contract.outputs:
        if tensor.ranks and np.dtype(tensor.dtype).kind in "iu":
            return lambda outputs, name=tensor.name: outputs[name].reshape(len(outputs[name]), -1)[:, 0]  # type: ignore[misc]
    for tensor in contract.outputs:
        if _scores(tensor, contract):
            return lambda outputs, name=tensor.name: outputs[name].argmax(axis=1)  # type: ignore[misc]
    for tensor in contract.outputs:
        if tensor.unit == "probability" and tensor.shape[1:] in ((), (1,)):
            return lambda outputs, name=tensor.name: outputs[name].reshape(-1) > 0.5  # type: ignore[misc]
    return None


def _only_scores(contract: Contract) -> Callable[[Rows], npt.NDArray[Any]] | None:
    """The classes of the one output that could be scores for them: float [n, classes], where nothing else is said."""
    likely = [one for one in contract.outputs if np.dtype(one.dtype).kind == "f" and len(one.shape) == 2]
    if len(likely) != 1 or likely[0].shape[1] == 1:
        return None
    return lambda outputs: outputs[likely[0].name].argmax(axis=1)


def _scores(tensor: Tensor, contract: Contract) -> bool:
    if np.dtype(tensor.dtype).kind != "f" or len(tensor.shape) != 2 or tensor.shape[1] == 1:
        return False
    return contract.task in _CLASS_TASKS or (contract.task == "tensors" and bool(contract.labels))

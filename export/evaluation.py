"""How good a version is on labelled rows, and how far that can be trusted.

One figure with its 95 % interval; where the rows have right answers in classes also how often each class is found and
falsely seen (the book's tables 5-1 to 5-4), which class is taken for which, and how honest the probabilities are.

Sources: interval of a share (Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927);
percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13); expected calibration
error (Guo et al., "On Calibration of Modern Neural Networks", 2017); Brier, "Verification of Forecasts Expressed in
Terms of Probability" (1950).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import figures, table
from bookserve.export.contracts import SIMILARITY, Contract, Tensor
from bookserve.export.errors import ExportError
from bookserve.export.figures import Figure, Measurement, Rows

CUTOFF = 0.5  # from which a probability of its own counts as yes
_MAX_CLASSES = 10_000  # of a table where nothing says how many there are
UNLIKE = 0.1  # of the rows are less like a training row than what is told to be unlike
BINS = 15  # of the calibration, as in Guo et al.
_SEED = 0
_Z = 1.959964  # standard errors that hold 95 %

_RATES = ("precision", "recall", "specificity", "false_positive_rate", "false_negative_rate")

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassFigures:
    """One class, or one yes-or-no label, against all others.

    `rows` are those whose answer is known, `positives` those of the class. The rates are None where they divide by 0:
    `precision` of what was seen as the class the fraction that is, `recall` of the class the fraction that was seen
    (1 less the false negative rate), `specificity` of the others the fraction that was not (1 less the false positive
    rate).
    """

    name: str
    rows: int
    positives: int
    precision: float | None
    recall: float | None
    specificity: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None


@dataclass(frozen=True)
class Bin:
    """Answers whose probability lies in one range: how many, their mean probability, and how often it came true."""

    count: int
    probability: float
    true: float


@dataclass(frozen=True)
class Calibration:
    """How honest probabilities are.

    `ece` is the mean distance of probability and truth over the bins, weighted by their counts. `brier` is the mean
    squared distance of the probabilities of a row from 0 and 1, summed over the classes where they exclude each other.
    """

    ece: float
    brier: float
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Against:
    """A model beside its baseline on the same rows: the baseline's `value`, and `difference`, the model's less it.

    `verdict` is "better", "worse", or "no different" where the 95 % `interval` of the difference holds 0.
    """

    name: str
    value: float
    difference: float
    interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Evaluation:
    """One version on labelled rows.

    `interval` is None where chance has no part in the figure. `cutoff` is None where the likeliest class counts. Of the
    rows whose likeliest class had a probability below `doubt`, half or more are of another class; None without any.
    A row is unlike the training rows whose similarity to the nearest one is below `unlike`, as that of one row in ten
    is here; None where the graph tells no similarity.
    `confusion[true][predicted]` are counts of rows; empty where labels do not exclude each other.
    """

    figure: str
    value: float
    rows: int
    interval: tuple[float, float] | None
    cutoff: float | None = None
    classes: Sequence[ClassFigures] = ()
    confusion: Sequence[Sequence[int]] = ()
    calibration: Calibration | None = None
    labels: Sequence[str] = field(default=())
    baseline: Against | None = None
    doubt: float | None = None
    unlike: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What a report keeps: plain numbers, lists and texts; what does not apply is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, (), [])}


def read(path: Path) -> Evaluation:
    """What `to_json` gave, from a file.

    Raises:
        OSError, ValueError, TypeError: it cannot be read, or is no evaluation.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    classes = [ClassFigures(**dict.fromkeys(_RATES) | one) for one in content.pop("classes", [])]
    honest = content.pop("calibration", None)
    if honest is not None:
        honest = Calibration(honest["ece"], honest["brier"], [Bin(**one) for one in honest["bins"]])
    against = content.pop("baseline", None)
    if against is not None:
        against = Against(**against | {"interval": _bounds(against["interval"])})
    bounds = _bounds(content.pop("interval", None))
    return Evaluation(**content, classes=classes, calibration=honest, interval=bounds, baseline=against)


def _bounds(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (ends[0], ends[1])


def evaluate(figure: Figure, outputs: Rows, contract: Contract) -> Evaluation:
    """Judge the outputs of a graph for the rows of `figure`, in their order.

    Classes, confusion and calibration need the figure's `truth`, and an output of classes or of probabilities.

    Raises:
        ExportError: a right answer is no class of the model.
    """
    everything = np.arange(figure.count)
    found = Evaluation(
        figure.name,
        figure.score(outputs, everything),
        figure.count,
        interval(figure, outputs),
        unlike=unlike(contract, outputs),
    )
    truth = figure.truth
    if truth is None:
        return found
    probabilities = _probabilities(contract, outputs, truth)
    if truth.ndim == 1 and (probabilities is None or probabilities.shape[1] > 1):
        return _of_classes(found, contract, outputs, truth, probabilities)
    if probabilities is None:
        return found
    return _of_labels(found, contract, truth.astype(np.float64).reshape(len(truth), -1), probabilities)


def interval(figure: Figure, outputs: Rows) -> tuple[float, float] | None:
    """The 95 % interval of the figure; None where it is no matter of chance.

    Of an accuracy it is Wilson's, which says something of few rows that are all right, too; of others the rows are
    drawn anew.
    """
    if not figure.resamples:
        return None
    if figure.right is not None:
        return _wilson(figure.score(outputs, np.arange(figure.count)), figure.count)
    chance = np.random.default_rng(_SEED)
    scores = [figure.score(outputs, chance.integers(0, figure.count, figure.count)) for _ in range(figure.resamples)]
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


def _wilson(share: float, rows: int) -> tuple[float, float]:
    square = _Z**2 / rows
    middle = (share + square / 2) / (1 + square)
    reach = _Z / (1 + square) * float(np.sqrt(share * (1 - share) / rows + square / (4 * rows)))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def beside(found: Evaluation, measurement: Measurement, outputs: Rows) -> Evaluation:
    """The evaluation of `outputs` with the paired comparison with the baseline, where the model has one."""
    if measurement.baseline is None:
        return found
    name = measurement.baseline.name
    gap = figures.paired(measurement.figure, measurement.baseline.outputs(), outputs)
    verdict = "better" if gap.better else "worse" if gap.worse else "no different"
    return dataclasses.replace(found, baseline=Against(name, gap.first, gap.value, gap.interval, verdict))


def calibration(probabilities: Floats, true: Bools, brier: float) -> Calibration:
    """The calibration of yes-or-no answers: probabilities [n] of what came `true` [n] or not."""
    places = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        if count:
            bins.append(Bin(count, float(probabilities[inside].mean()), float(true[inside].mean())))
    total = max(1, sum(one.count for one in bins))
    ece = sum(one.count * abs(one.probability - one.true) for one in bins) / total
    return Calibration(ece, brier, bins)


def doubt(probabilities: Floats, right: Bools) -> float | None:
    """The highest probability below which half or more of the answers are wrong: `probabilities` [n] of what was the
    likeliest class, and whether it was `right` [n]. None where no answer, however unlikely, is wrong as often.

    Source: the reject rule of Chow, "On optimum recognition error and reject tradeoff" (1970), with its threshold taken
    from rows that the model has not learned from.
    """
    order = np.argsort(probabilities, kind="stable")
    sorted_, wrong = probabilities[order], np.cumsum(~right[order])
    last = np.append(np.diff(sorted_) > 0, True)  # of equal probabilities the last, as all or none are below
    often = np.flatnonzero(last & (2 * wrong >= np.arange(1, len(right) + 1)))
    if not often.size:
        return None
    place = int(often[-1])
    return float(sorted_[place : place + 2].mean())


def unlike(contract: Contract, outputs: Rows) -> float | None:
    """The similarity below which a row is unlike the training rows: one in ten of these rows, drawn as they were, is.

    Source: a k-nearest-neighbour applicability domain, whose threshold is a quantile of the molecules at hand (Sahigara
    et al., "Defining a novel k-nearest neighbours approach to assess the applicability domain of a QSAR model", 2013).
    """
    for tensor in contract.outputs:
        if tensor.unit == SIMILARITY and tensor.name in outputs:
            return float(np.quantile(np.asarray(outputs[tensor.name], np.float64), UNLIKE))
    return None


def figures_of(found: Evaluation) -> dict[str, float]:
    """The numbers that a manifest keeps: the figure, its interval as `_low` and `_high`, `ece`, `brier`, `rows`.

    `cutoff` is the probability from which a label of its own counts as yes, `baseline` the baseline's figure,
    `less_baseline` the difference with its interval, and `unlike` the similarity below which a row is unlike the
    training rows.
    """
    numbers = {found.figure: found.value}
    if found.interval is not None:
        numbers[f"{found.figure}_low"], numbers[f"{found.figure}_high"] = found.interval
    if found.cutoff is not None:
        numbers["cutoff"] = found.cutoff
    if found.unlike is not None:
        numbers["unlike"] = found.unlike
    if found.calibration is not None:
        numbers |= {"ece": found.calibration.ece, "brier": found.calibration.brier}
    if found.baseline is not None:
        numbers |= {"baseline": found.baseline.value, "less_baseline": found.baseline.difference}
        if found.baseline.interval is not None:
            numbers["less_baseline_low"], numbers["less_baseline_high"] = found.baseline.interval
    return numbers | {"rows": float(found.rows)}


def text(found: Evaluation, width: int | None = None) -> list[str]:
    """The evaluation as a sentence and tables of the classes: in Markdown, or for a terminal of `width` characters."""
    line = f"{found.figure} {found.value:.4g}"
    if found.interval is not None:
        low, high = found.interval
        line += f", 95 % interval {low:.4g} to {high:.4g}"
    lines = [f"{line}, on {found.rows:,} rows."]
    if found.calibration is not None:
        honest = found.calibration
        lines[0] += f" Probabilities: calibration error (ECE) {honest.ece:.3f}, Brier score {honest.brier:.3f}."
    if found.doubt is not None:
        lines[0] += f" Of those below {found.doubt:.2f}, half or more are of another class."
    if found.unlike is not None:
        lines[0] += f" For one row in ten the nearest training row has a similarity below {found.unlike:.2f}."
    if found.baseline is not None:
        lines += ["", _beside(found.baseline)]
    if not found.classes:
        return lines
    how = f"from a probability of {found.cutoff:g}" if found.cutoff is not None else "the likeliest class counts"
    lines += ["", f"Each class against the others ({how}):", ""]
    heads = ("class", "rows", "of it", "precision", "recall", "specificity", "false positives", "false negatives")
    cells = [
        (
            one.name,
            f"{one.rows:,}",
            f"{one.positives:,}",
            *[_percent(getattr(one, rate)) for rate in _RATES],
        )
        for one in found.classes
    ]
    lines += _table(heads, cells, width)
    if found.confusion:
        lines += ["", "Rows by their class (down) and the class that was seen (across):", ""]
        rows = [
            (name, *[f"{count:,}" if count else "" for count in counts])
            for name, counts in zip(found.labels, found.confusion, strict=True)
        ]
        lines += _table(("", *found.labels), rows, width)
    return lines


def _beside(against: Against) -> str:
    line = (
        f"The baseline, {against.name}, has {against.value:.4g} on the same rows: difference {against.difference:+.4g}"
    )
    if against.interval is not None:
        low, high = against.interval
        line += f", 95 % interval {low:+.4g} to {high:+.4g}"
    words = {"better": "The model is better.", "worse": "The model is worse."}
    return f"{line}. {words.get(against.verdict, 'That is within chance.')}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.1%}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    both = [tuple(heads), *rows]
    return table.markdown(both) if width is None else list(table.lines(both, width))


def _of_classes(
    found: Evaluation, contract: Contract, outputs: Rows, truth: npt.NDArray[Any], probabilities: Floats | None
) -> Evaluation:
    """Classes that exclude each other; the likeliest counts."""
    predicted = _predicted(contract, outputs) if probabilities is None else probabilities.argmax(axis=1)
    if predicted is None:
        return found
    truth = truth.astype(np.int64)
    count = _count(contract, probabilities, predicted, truth)
    names = _names(contract, count)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    classes = [_class(name, truth == place, predicted == place) for place, name in enumerate(names)]
    honest = unsure = None
    if probabilities is not None:
        unsure = doubt(probabilities.max(axis=1), predicted == truth)
        right = np.zeros_like(probabilities)
        right[np.arange(len(truth)), truth] = 1.0
        brier = float(((probabilities - right) ** 2).sum(axis=1).mean())
        honest = calibration(probabilities.max(axis=1), predicted == truth, brier)
    return dataclasses.replace(
        found, classes=classes, confusion=confusion.tolist(), calibration=honest, labels=list(names), doubt=unsure
    )


def _count(
    contract: Contract, probabilities: Floats | None, predicted: npt.NDArray[Any], truth: npt.NDArray[np.int64]
) -> int:
    """How many classes there are. Raises ExportError for a right answer that is none of them."""
    known = probabilities.shape[1] if probabilities is not None else len(contract.labels)
    count = known or min(_MAX_CLASSES, int(max(truth.max(initial=0), predicted.max(initial=0))) + 1)
    wrong = truth[(truth < 0) | (truth >= count)]
    if wrong.size:
        raise ExportError(f"a right answer is class {int(wrong[0])}: the model has {count}, from 0 to {count - 1}")
    return count


def _of_labels(found: Evaluation, contract: Contract, truth: Floats, probabilities: Floats) -> Evaluation:
    """Labels [n, labels] of which each is yes, no or NaN for not known, at the cut-off."""
    names = _names(contract, truth.shape[1]) if truth.shape[1] > 1 else (contract.labels[-1:] or ("yes",))
    known = ~np.isnan(truth)
    classes = [
        _class(name, truth[known[:, place], place] > 0.5, probabilities[known[:, place], place] > CUTOFF)
        for place, name in enumerate(names)
    ]
    said, true = probabilities[known], truth[known] > 0.5
    honest = calibration(said, true, float(((said - true) ** 2).mean()) if said.size else 0.0)
    confusion: list[list[int]] = []
    shown = names
    if len(names) == 1:
        shown = contract.labels if len(contract.labels) == 2 else ("no", "yes")
        counts = np.zeros((2, 2), np.int64)
        np.add.at(counts, (true.astype(np.int64), (said > CUTOFF).astype(np.int64)), 1)
        confusion = counts.tolist()
    return dataclasses.replace(
        found, cutoff=CUTOFF, classes=classes, confusion=confusion, calibration=honest, labels=list(shown)
    )


def _class(name: str, true: Bools, seen: Bools) -> ClassFigures:
    hits, positives, guesses, rows = int((true & seen).sum()), int(true.sum()), int(seen.sum()), len(true)
    recall, specificity = _share(hits, positives), _share(rows - positives - guesses + hits, rows - positives)
    return ClassFigures(
        name,
        rows,
        positives,
        _share(hits, guesses),
        recall,
        specificity,
        None if specificity is None else 1.0 - specificity,
        None if recall is None else 1.0 - recall,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _names(contract: Contract, count: int) -> tuple[str, ...]:
    return contract.labels if len(contract.labels) == count else tuple(str(place) for place in range(count))


def _probabilities(contract: Contract, outputs: Rows, truth: npt.NDArray[Any]) -> Floats | None:
    """The first output of probabilities that has one for each class or label: float64 [n, classes]."""
    for tensor in contract.outputs:
        if tensor.unit != "probability" or np.dtype(tensor.dtype).kind != "f" or tensor.name not in outputs:
            continue
        values = np.asarray(outputs[tensor.name], np.float64)
        values = values.reshape(len(values), -1)
        if truth.ndim == 2 and values.shape[1] != truth.shape[1]:
            continue
        if _ranked(contract, tensor) or truth.ndim == 2 or values.shape[1] == 1:
            return values
    return None


def _ranked(contract: Contract, tensor: Tensor) -> bool:
    """Whether the output has a probability for every class: one of all, not of the likeliest ones."""
    return len(tensor.shape) == 2 and (not contract.labels or tensor.shape[1] in (None, len(contract.labels)))


def _predicted(contract: Contract, outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64] | None:
    """The classes that the graph names itself: int64 [n]."""
    for tensor in contract.outputs:
        if np.dtype(tensor.dtype).kind in "iu" and tensor.name in outputs and np.ndim(outputs[tensor.name]) == 1:
            return np.asarray(outputs[tensor.name], np.int64)
    return None

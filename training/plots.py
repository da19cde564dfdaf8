"""The images of a report: training curves, confusion matrix, bars of fractions, trials of a search, as PNG."""

import textwrap
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

DPI = 120

matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})


def curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """One panel a figure of `history` (epoch -> value), each with its `val_` twin where there is one."""
    names = [name for name in history if not name.startswith("val_")]
    figure = Figure(figsize=(4.5 * max(1, len(names)), 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, max(1, len(names)), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=False):
        epochs = np.arange(1, len(history[name]) + 1)
        panel.plot(epochs, history[name], marker=".", label="training")
        if f"val_{name}" in history:
            panel.plot(epochs, history[f"val_{name}"], marker=".", label="validation")
        panel.set(xlabel="epoch", title=name.replace("_", " "))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend()
    figure.savefig(path)


def learning_rates(
    rates: npt.NDArray[np.float64],
    losses: npt.NDArray[np.float64],
    smooth: npt.NDArray[np.float64],
    suggested: float,
    path: Path,
) -> None:
    """The losses [n] of steps with rising learning rates [n], the same smoothed, and the rate that is suggested."""
    figure = Figure(figsize=(5.6, 3.8), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    panel.plot(rates, losses, ".", markersize=3, color="grey", label="loss of a step")
    panel.plot(rates, smooth, color="tab:blue", label="smoothed")
    panel.axvline(suggested, color="tab:red", linestyle="--", label=f"suggested: {suggested:g}")
    spread = float(np.ptp(smooth[: smooth.argmin() + 1])) or 1.0
    panel.set_ylim(smooth.min() - 0.2 * spread, smooth[: smooth.argmin() + 1].max() + 0.6 * spread)
    panel.set(xscale="log", xlabel="learning rate", ylabel="loss")
    panel.legend()
    figure.savefig(path)


def confusion_matrix(
    labels: npt.NDArray[Any], predicted: npt.NDArray[Any], names: Sequence[str], path: Path
) -> npt.NDArray[np.int64]:
    """Draw how often each class was taken for each, and return the counts: int64 [true, predicted].

    `labels` and `predicted` are integer class numbers [n]; `names` are the classes in order.
    """
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    side = 2.0 + 0.45 * len(names)
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    panel.grid(False)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            colour = "white" if fractions[row, column] > 0.5 else "black"
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    panel.set_xticks(range(len(names)), names)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlabel="predicted", ylabel="true", title="test rows")
    figure.savefig(path)
    return counts


def reliability(bins: Sequence[tuple[int, float, float]], ece: float, path: Path) -> None:
    """How often answers came true beside how probable they were said to be; honest ones lie on the diagonal.

    `bins` are (count, mean probability, fraction that came true) of answers with like probabilities; `ece` is the mean
    distance from the diagonal.
    """
    figure = Figure(figsize=(4.6, 4.4), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    counts, said, true = (np.array(column, np.float64) for column in zip(*bins, strict=True))
    panel.plot([0, 1], [0, 1], color="grey", linewidth=1, label="honest")
    panel.plot(said, true, color="tab:blue", linewidth=1)
    panel.scatter(said, true, s=12 + 160 * counts / counts.max(), color="tab:blue", label="answers; area: how many")
    panel.set(xlabel="probability", ylabel="came true", title=f"test rows, calibration error {ece:.3f}")
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.legend(loc="upper left")
    figure.savefig(path)


def predicted(true: npt.NDArray[Any], found: npt.NDArray[Any], path: Path) -> None:
    """What was predicted, float [n], against what is true, float [n], with the line on which they agree."""
    figure = Figure(figsize=(4.6, 4.4), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    panel.scatter(true, found, s=14)
    ends = [float(min(true.min(), found.min())), float(max(true.max(), found.max()))]
    panel.plot(ends, ends, color="black", linestyle="--", label="right")
    panel.set(xlabel="true", ylabel="predicted", title="test rows")
    panel.legend()
    figure.savefig(path)


def fractions(rows: Mapping[str, Sequence[float]], parts: Sequence[str], title: str, path: Path) -> None:
    """One bar a row of `rows`, split into its fractions of `parts`, which add up to 1, each with its percentage."""
    figure = Figure(figsize=(6.5, 1.2 + 0.5 * len(rows)), dpi=DPI, layout="constrained")
    panel = figure.subplots()
    panel.grid(False)
    values = np.array(list(rows.values()))  # (rows, parts)
    starts = values.cumsum(axis=1) - values
    for number, part in enumerate(parts):
        bars = panel.barh(range(len(rows)), values[:, number], left=starts[:, number], label=part)
        panel.bar_label(
            bars, [f"{fraction:.1%}" if fraction >= 0.05 else "" for fraction in values[:, number]], label_type="center"
        )
    panel.set_yticks(range(len(rows)), list(rows))
    panel.invert_yaxis()
    panel.set(xlim=(0, 1), title=title)
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=len(parts))
    figure.savefig(path)


def trials(
    numbers: Sequence[int],
    objectives: Sequence[float],
    parameters: Mapping[str, Sequence[float | str]],
    logarithmic: Set[str],
    label: str,
    higher_is_better: bool,
    path: Path,
) -> None:
    """What a search found: the objective by trial with the best so far, and by each parameter of `parameters`.

    Parameters named in `logarithmic` get such an axis; texts stand side by side in the order of their first trial.
    """
    panels = 1 + len(parameters)
    columns = min(4, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    best = (np.maximum if higher_is_better else np.minimum).accumulate(np.array(objectives, float))
    axes[0].scatter(numbers, objectives, s=14)
    axes[0].step(numbers, best, where="post", color="tab:orange", label="best so far")
    axes[0].set(xlabel="trial")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(loc="best")
    for panel, (name, values) in zip(axes[1:], parameters.items(), strict=False):
        panel.scatter(values, objectives, s=14, c=numbers, cmap="viridis")
        panel.set(xlabel=name.replace("_", " "))
        if name in logarithmic:
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
        elif any(isinstance(value, str) for value in values):
            panel.tick_params("x", rotation=30)
    for panel in axes[panels:]:
        panel.set_axis_off()
    for row in range(rows):
        axes[row * columns].set(ylabel=label.replace("_", " "))
    figure.savefig(path)


def images(images: npt.NDArray[np.uint8], captions: Sequence[str], title: str, path: Path) -> None:
    """Small colour images [n, height, width, 3], eight in a row, each with its caption."""
    columns, rows = 8, max(1, -(-len(images) // 8))
    figure = Figure(figsize=(1.1 * columns, 0.4 + 1.5 * rows), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, image, caption in zip(panels, images, captions, strict=False):
        panel.imshow(image)
        panel.set_title(caption, fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], path: Path, width: int = 38) -> None:
    """A table of texts, each wrapped inside its column of `width` letters."""
    wrapped = [[textwrap.fill(cell, width) for cell in row] for row in rows]
    heights = [1 + max(cell.count("\n") + 1 for cell in row) for row in wrapped]
    figure = Figure(figsize=(width / 12 * len(heads), 0.8 + 0.16 * sum(heights)), dpi=DPI)
    panel = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    panel.set_axis_off()
    panel.set(xlim=(0, len(heads)), ylim=(sum(heights), -2))
    for column, head in enumerate(heads):
        panel.text(column, -1.2, head, fontsize=9, fontweight="bold", va="top")
    top = 0
    for row, height in zip(wrapped, heights, strict=True):
        panel.axhline(top, color="lightgrey", linewidth=0.8)
        for column, cell in enumerate(row):
            panel.text(column, top + 0.4, cell.replace("$", r"\$"), fontsize=8, va="top", linespacing=1.1)
        top += height
    figure.savefig(path)

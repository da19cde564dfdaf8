"""The model card of a version, `assets.extra/report/card.md`: what it is, how good it is, how to ask it."""

import html
import json
from pathlib import Path

from bookserve.export import evaluation
from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.manifest import DataCard
from bookserve.export.run_format import EVALUATION
from bookserve.export.run_reader import TrainingRun


def write(path: Path, run: TrainingRun, parity: dict[str, float]) -> None:
    """Write the card and refer to the images that lie beside it."""
    contract = run.contract
    lines = [f"# {contract.model}", "", run.purpose, "", "## Data", ""]
    if run.data.source != "sample":
        lines.append(f"The data set `{run.data.name}`, SHA-256 `{run.data.sha256}`.")
    else:
        lines.append(
            f"**A sample ({run.data.name}), not the real data set**: the figures below say nothing about the real one. "
            f"SHA-256 `{run.data.sha256}`."
        )
    if run.data_card is not None:
        lines += ["", *_data(run.data_card)]
    lines += ["", "## Figures", "", *_metrics(run), ""]
    told = path.parent / EVALUATION
    if told.is_file():
        lines += ["The served graph on the test rows:", "", *evaluation.text(evaluation.read(told)), ""]
    lines.append(
        f"Trained with the configuration `{run.configuration}`, profile `{run.profile}`, seed {run.seed}, on "
        f"{run.made_with['devices']}."
    )
    worst = max(parity.values(), default=0.0)
    lines += ["", f"SavedModel and ONNX graph agree: the largest difference on test rows is {worst:.1g}.", ""]
    for image in sorted(path.parent.glob("*.png")):
        lines += [f"![{image.stem}]({image.name})", ""]
    lines += ["## Limits", "", run.limits, "", "## How to ask", "", f"Signature `{SIGNATURE}`:", ""]
    lines += table(contract)
    lines += ["", "```", f"bookserve predict {contract.model} --help", "```", "", "## Numbers of the training", ""]
    lines += ["```json", json.dumps(run.config, indent=2), "```", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _data(card: DataCard) -> list[str]:
    """The rows of each split and, where there are classes or labels, of each of them; then what else is known."""
    splits = card.splits
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    lines.append("| rows | " + " | ".join(f"{card.rows[split]:,}" for split in splits) + " |")
    for label in card.classes.get("train", ()):
        cells = [f"{card.classes[split][label]:,}" for split in splits]
        if card.missing:
            cells = [
                f"{cell}, missing {card.missing[split][label]:,}" for cell, split in zip(cells, splits, strict=True)
            ]
        lines.append(f"| {html.escape(label).replace('|', '&#124;')} | " + " | ".join(cells) + " |")
    lines += ["", f"Splits: {card.division}."] if card.division else []
    if card.duplicates:
        told = ", ".join(f"{name} {count:,}" for name, count in card.duplicates.items())
        lines += ["", f"Rows that stand in two splits: {told}."]
    for name, values in card.ranges.items():
        if values:
            lines += ["", f"{name}: {values[0]:g} to {values[2]:g}, median {values[1]:g} (training rows)."]
    if card.left_out:
        lines += ["", f"Left out: {card.left_out:,}.", ""]
        lines += [f"- {html.escape(line)}" for line in card.left_out_first]
        lines += ["- …"] if card.left_out > len(card.left_out_first) else []
    return lines


def _metrics(run: TrainingRun) -> list[str]:
    names = list(dict.fromkeys(name for figures in run.metrics.values() for name in figures))
    lines = ["| split | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for split, figures in run.metrics.items():
        cells = [f"{figures[name]:.6g}" if name in figures else "" for name in names]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return lines


def table(contract: Contract) -> list[str]:
    """A table with a line for each tensor."""
    lines = ["| tensor | type | shape |", "|---|---|---|"]
    lines += [_row("in", tensor) for tensor in contract.inputs]
    return lines + [_row("out", tensor) for tensor in contract.outputs]


def _row(direction: str, tensor: Tensor) -> str:
    free = iter(tensor.free)
    shape = ", ".join(next(free) if size is None else str(size) for size in tensor.shape)
    return f"| {direction} `{tensor.name}` | {tensor.dtype} | [{shape}] |"

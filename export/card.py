"""The model card of a version, `assets.extra/report/card.md`: what it is, how good it is, how to ask it."""

import json
from pathlib import Path

from bookserve.export.contracts import SIGNATURE, Tensor
from bookserve.export.run_reader import TrainingRun

# model -> what it is for and where its answers end
PURPOSE: dict[str, tuple[str, str]] = {
    "linear": (
        "The line through a hundred points: linear regression of chapter 3.",
        "It has seen x from 0 to 1 only, of one made-up line, y = 5 x + 2.",
    ),
    "logistic": (
        "Tells two clouds of points apart: logistic regression of chapter 3.",
        "It has seen two made-up clouds only, around (-1, -1) and (1, 1). The clouds do not overlap, so its "
        "probabilities are surer the longer it is trained, and say little about points far from both.",
    ),
    "tox21": (
        "Says in which of twelve laboratory assays a molecule is likely to be active: the multitask network of "
        "chapters 4 and 5 on Morgan fingerprints.",
        "It ranks molecules that resemble those of Tox21, drugs and chemicals of commerce; its probabilities come from "
        "a training that weighs actives and inactives alike and are higher than the fraction of actives. It sees "
        "fingerprints of 1,024 bits, in which different molecules may look the same. But for the configuration `book` "
        "it holds the fingerprints of its training molecules and compares with them. No ground for a decision on "
        "anyone's safety.",
    ),
    "mnist": (
        "Reads one handwritten digit: LeNet-5 of chapter 6.",
        "It knows only digits: white on black, 28 x 28, centred, about 20 pixels high. It gives any other image one "
        "of the ten digits too, often with a high probability. Rotated, cut or touching digits are read badly.",
    ),
    "ptb": (
        "Says which word comes next: the recurrent network over words of chapter 7.",
        "It knows 10,000 words of American business news of 1989, in lower case, numbers as `N`, everything else as "
        "`<unk>`. It repeats the prejudices of its text, knows no facts and forgets what lies many words back.",
    ),
    "cifar10": (
        "Says which of ten kinds of things a small image shows: the convolutional network of chapter 9.",
        "It has seen 32 x 32 pixels only, each with one thing in the middle. It gives any other image one of the ten "
        "kinds too, often with a high probability.",
    ),
    "tictactoe": (
        "Plays tic-tac-toe: the policy of chapter 8, trained by A3C against itself and against slips of its own hand.",
        "It was checked on every position that play can reach, and knows no others: a board with too many stones of "
        "one side gets an answer, too. Its value is what it may expect, in the book's rewards, from an opponent that "
        "plays like it but moves at random half of the time.",
    ),
}


def write(path: Path, run: TrainingRun, parity: dict[str, float]) -> None:
    """Write the card and refer to the images that lie beside it."""
    contract = run.contract
    purpose, limits = PURPOSE[contract.model]
    lines = [f"# {contract.model}", "", purpose, "", "## Data", ""]
    if run.data.source == "real":
        lines.append(f"The data set `{run.data.name}`, SHA-256 `{run.data.sha256}`.")
    else:
        lines.append(
            f"**A sample ({run.data.name}), not the real data set**: the figures below say nothing about the real one. "
            f"SHA-256 `{run.data.sha256}`."
        )
    lines += ["", "## Figures", "", *_metrics(run), ""]
    lines.append(
        f"Trained with the configuration `{run.configuration}`, profile `{run.profile}`, seed {run.seed}, on "
        f"{run.made_with['devices']}."
    )
    worst = max(parity.values(), default=0.0)
    lines += ["", f"SavedModel and ONNX graph agree: the largest difference on test rows is {worst:.1g}.", ""]
    for image in sorted(path.parent.glob("*.png")):
        lines += [f"![{image.stem}]({image.name})", ""]
    lines += ["## Limits", "", limits, "", "## How to ask", "", f"Signature `{SIGNATURE}`:", ""]
    lines += ["| tensor | type | shape |", "|---|---|---|"]
    lines += [_row("in", tensor) for tensor in contract.inputs] + [_row("out", tensor) for tensor in contract.outputs]
    lines += ["", "```", f"bookserve predict {contract.model} --help", "```", "", "## Numbers of the training", ""]
    lines += ["```json", json.dumps(run.config, indent=2), "```", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _metrics(run: TrainingRun) -> list[str]:
    names = list(dict.fromkeys(name for figures in run.metrics.values() for name in figures))
    lines = ["| split | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for split, figures in run.metrics.items():
        cells = [f"{figures[name]:.6g}" if name in figures else "" for name in names]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return lines


def _row(direction: str, tensor: Tensor) -> str:
    sizes = ["n", *("any" if size is None else str(size) for size in tensor.shape[1:])]
    shape = ", ".join(sizes)
    return f"| {direction} `{tensor.name}` | {tensor.dtype} | [{shape}] |"

"""`bookserve models add`: from anybody's model to the next version in the model store.

The model is converted and tried in a child process (`converters/trial.py`). What is published appears whole or not at
all.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bookserve.export import confined, contracts, evaluation, labelled_rows, manifest, replacement
from bookserve.export.contracts import Contract
from bookserve.export.errors import ConfinedError, ExportError, StoreError
from bookserve.export.manifest import Manifest, Metrics, Source
from bookserve.export.run_format import EVALUATION
from bookserve.export.store import ModelStore
from bookserve.serving.wire import version_folder
from bookserve.serving.wire.store_servers import RunningServer

SERVED_ALONE = RunningServer("127.0.0.1:8500", "http://127.0.0.1:8501")
_TRIAL = "bookserve.export.converters.trial:run"


@dataclass(frozen=True)
class Wishes:
    """What the user said of the model; see `bookserve models add --help`."""

    task: str | None = None
    labels: Path | None = None
    example: Path | None = None
    trust: bool = False
    rows_independent: bool | None = None
    evaluate: Path | None = None
    preprocessor: Path | None = None
    require_better: bool = False  # than the served version, on the rows of `evaluate`


def add(
    store: ModelStore, model: str, path: Path, wishes: Wishes, limits: confined.Limits, say: Callable[[str], None]
) -> Manifest:
    """Make the next version of `model` from the file or folder at `path`; `say` takes a line a step.

    Raises:
        ExportError: the model cannot be converted, or a graph does not compute what the source computes; or the store
            cannot be written. WorseError where it shall not be worse than the served version, and is. Nothing is
            published.
    """
    if not path.exists():
        raise ExportError(f"there is no {path}")
    source = path.resolve()
    try:
        with store.staging(model) as folder:
            job = {
                "path": str(source),
                "folder": str(folder),
                "model": model,
                "task": wishes.task,
                "labels": None if wishes.labels is None else _labels(wishes.labels),
                "example": None if wishes.example is None else str(wishes.example.resolve()),
                "trust": wishes.trust,
                "preprocessor": None if wishes.preprocessor is None else str(wishes.preprocessor.resolve()),
            }
            say(f"{model}: converting {path}, and trying it")
            try:
                made = confined.call(_TRIAL, job, limits)
            except ConfinedError as error:
                raise ExportError(f"{path}: {error}".replace(f"{path}: {source}", str(path))) from error
            contract = contracts.from_json(made["contract"])
            for note in made["notes"]:
                say(f"{model}: {note}")
            worst = max(made["parity"].values(), default=0.0)
            graphs = " and ".join(made["graphs"])
            answers = "answers" if len(made["graphs"]) == 1 else "answer"
            say(f"{model}: {graphs} {answers} as the source does within {worst:.1g}, on {made['rows']} rows")
            metrics = {} if wishes.evaluate is None else _evaluate(folder, contract, wishes.evaluate, limits, say)
            if wishes.evaluate is not None and wishes.require_better:
                rows = wishes.evaluate
                replacement.judge(store, lambda made: labelled_rows.figure(made, rows, None), limits, say)(
                    folder, contract
                )
            origin = Source(made["format"], path.name, _sha256(source))
            files = manifest.digests(folder)

            def describe(number: int) -> Manifest:
                return Manifest(
                    model=model,
                    version=number,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    contract=contract,
                    parity=made["parity"],
                    files=files,
                    made_with=made["made_with"],
                    metrics=metrics,
                    configuration="",
                    source=origin,
                    rows_independent=wishes.rows_independent,
                )

            published = store.publish(model, folder, describe)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error
    say(f"{model}: published as {store.path(model, published.version)}")
    return published


def _evaluate(
    folder: Path, contract: Contract, data: Path, limits: confined.Limits, say: Callable[[str], None]
) -> Metrics:
    """The figures on the user's rows, which the manifest keeps; the whole evaluation goes into report and card."""
    figure = labelled_rows.figure(contract, data, None)
    found = evaluation.evaluate(figure, labelled_rows.answers(folder, None, contract, figure.rows, limits), contract)
    words = evaluation.text(found)
    say(f"{contract.model}: {words[0]}")
    report = folder / "assets.extra" / "report"
    report.mkdir(parents=True, exist_ok=True)
    (report / EVALUATION).write_text(json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    card = folder / version_folder.CARD
    before = card.read_text(encoding="utf-8") if card.is_file() else f"# {contract.model}\n"
    lines = [before.rstrip("\n"), "", "## Figures", "", f"On the rows of `{data.name}`:", "", *words, ""]
    card.write_text("\n".join(lines), encoding="utf-8")
    return {"test": evaluation.figures_of(found)}


def how_to_serve(store: ModelStore) -> str:
    """The line that serves the store as SERVED_ALONE."""
    words = ["bookserve", "model-server", f"--model_root={store.root}"]
    return shlex.join([*words, "--port=8500", "--rest_api_port=8501", "--bind_address=127.0.0.1"])


def how_to_ask(store: ModelStore, published: Manifest, server: RunningServer) -> list[str]:
    """The lines that ask a server for the version's example."""
    example = str(store.path(published.model, published.version) / "assets.extra" / "example.json")
    words = ["bookserve", "predict", published.model, example]
    if not server.rest:
        return [shlex.join([*words, "--grpc", server.grpc])]
    return [
        shlex.join([*words, "--rest", server.rest]),
        shlex.join(["curl", "-d", f"@{example}", f"{server.rest}/v1/models/{published.model}:predict"]),
    ]


def missing(contract: Contract) -> list[str]:
    """What the user could still say of a model: lines with the option that says it."""
    lines = []
    if contract.task == "tensors":
        lines.append(f"--task says what it is for ({', '.join(contracts.TASKS[1:])})")
    if not contract.labels and contract.task in ("image-classification", "tabular"):
        lines.append("--labels names its classes, one a line")
    means = contract.preprocessing
    if contract.task == "image-classification" and means is not None and not means.mean:
        scaled = "from 0 to 1" if means.scale == 1 / 255 else f"times {means.scale:g}"
        lines.append(
            f"pictures become {means.colour} levels {scaled}: --preprocessor FILE says it otherwise, as with a mean"
        )
    return lines


def _labels(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise ExportError(f"{path} has no labels: one a line")
    return labels


def _sha256(path: Path) -> str:
    """Of a file; of a folder, over the names and sums of its files."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    whole = hashlib.sha256()
    for name, digest in manifest.digests(path).items():
        whole.update(f"{digest}  {name}\n".encode())
    return whole.hexdigest()

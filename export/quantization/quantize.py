"""From a version with a float ONNX graph to the next version, whose graph is int8.

What is published appears whole or not at all; a graph that does not gain is not published.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bookserve.export import card, confined, contracts, description, manifest
from bookserve.export.errors import ConfinedError, ExportError, NoGainError, StoreError
from bookserve.export.figures import Measurement, Rows
from bookserve.export.manifest import Manifest, Quantization
from bookserve.export.quantization import source_version
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.source_version import SourceVersion
from bookserve.export.store import ModelStore

PRECISION = "int8"
_TRIAL = "bookserve.export.quantization.trial:run"


@dataclass(frozen=True)
class Wishes:
    """What the user said; see `bookserve models quantize --help`."""

    targets: str | None = None
    calibration_rows: int = 1_000
    demands: Demands = field(default_factory=Demands)


def quantize(
    store: ModelStore,
    model: str,
    version: int | None,
    data: Path,
    wishes: Wishes,
    limits: confined.Limits,
    say: Callable[[str], None],
) -> Manifest:
    """Make the next version of `model` from `version`, by default the newest that is not int8, and rows of `data`.

    Raises:
        ExportError: there is no such version, the data does not fit, no int8 graph is worth it, or the store cannot be
            written. Nothing is published.
    """
    if not data.is_file():
        raise ExportError(f"there is no file {data}")
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"quantisation needs the package '{missing[0]}': pip install 'bookserve[convert]'")
    try:
        source = source_version.find(store, model, version)
        with store.staging(model) as staged:
            contract = None if source.described is None else source.described.contract
            job = {
                "folder": str(staged),
                "graph": str(source.graph),
                "contract": contracts.to_json(contract) if contract is not None and contract.whole else None,
                "model": model,
                "version": source.number,
                "data": str(data.resolve()),
                "targets": wishes.targets,
                "calibration_rows": wishes.calibration_rows,
                "demands": asdict(wishes.demands),
            }
            say(f"{model}: version {source.number} is quantised and measured")
            try:
                made = confined.call(_TRIAL, job, limits)
            except ConfinedError as error:
                raise ExportError(f"{model} version {source.number}: {error}") from error
            for note in made["notes"]:
                say(f"{model}: {note}")
            if "no_gain" in made:
                raise NoGainError(f"{model} version {source.number}: {made['no_gain']}")
            return publish(
                store,
                staged,
                source,
                contracts.from_json(made["contract"]),
                Quantization(**made["quantization"]),
                made["parity"],
                made["made_with"],
                say,
            )
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error


def from_rows(
    store: ModelStore,
    model: str,
    version: int,
    measurement: Measurement,
    calibration_rows: int,
    demands: Demands,
    say: Callable[[str], None],
) -> Manifest:
    """As `quantize`, of a model trained here: in this process, by its own figure.

    Raises:
        ExportError: as `quantize`; NoGainError where no int8 graph is worth it.
    """
    from bookserve.export.quantization import int8_version

    figure = measurement.figure
    calibration = drawn(measurement.calibration, calibration_rows)
    try:
        source = source_version.find(store, model, version)
        if source.described is None:
            raise ExportError(f"{model} version {version} has no manifest")
        with store.staging(model) as staged:
            made = int8_version.make(
                staged,
                source.graph,
                source.described.contract,
                version,
                calibration,
                figure.rows,
                lambda _: figure,
                demands,
                lambda line: say(f"{model}: {line}"),
            )
            made_of = (made.contract, made.quantization, made.parity, made.made_with)
            return publish(store, staged, source, *made_of, say)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error


def drawn(rows: Rows, count: int) -> Rows:
    """At most `count` of the rows, drawn at random, always the same ones."""
    there = len(next(iter(rows.values())))
    places = np.sort(np.random.default_rng(0).permutation(there)[:count])
    return {name: array[places] for name, array in rows.items()}


def publish(
    store: ModelStore,
    staged: Path,
    source: SourceVersion,
    contract: contracts.Contract,
    quantization: Quantization,
    parity: dict[str, float],
    made_with: dict[str, str],
    say: Callable[[str], None],
) -> Manifest:
    """Publish the staged int8 graph: its assets are those of the float version, which has the SavedModel if any.

    Raises:
        StoreError, OSError: the store cannot be written.
    """
    source_version.copy_assets(source, staged)
    source_version.write_card(source, staged, _card(source, contract, quantization))
    files = manifest.digests(staged)

    def describe(number: int) -> Manifest:
        made = source_version.derived(source, contract, number, PRECISION, parity, files, made_with)
        # A dynamic graph takes its scales from all rows of a run, whatever was said of the float graph.
        rows_independent = made.rows_independent if quantization.method == "static" else None
        metrics = {"test": {quantization.figure: quantization.int8, "rows": float(quantization.rows)}}
        return replace(
            made, metrics=made.metrics | metrics, rows_independent=rows_independent, quantization=quantization
        )

    published = store.publish(contract.model, staged, describe)
    for line in description.quantization(quantization):
        say(f"{contract.model}: {line}")
    say(f"{contract.model}: published as {store.path(contract.model, published.version)}")
    return published


def _card(source: SourceVersion, contract: contracts.Contract, found: Quantization) -> list[str]:
    """The beginning of the model card: what the quantisation did."""
    text = [f"# {contract.model}, int8", "", f"Version {source.number} with int8 weights and activations.", ""]
    text += [f"- {line}" for line in description.quantization(found)]
    text += [f"- measured on {found.processor}", ""]
    if found.method == "dynamic":
        text += ["Scales are taken from all rows of a run: requests of different clients do not share a run.", ""]
    return [*text, *card.table(contract), ""]

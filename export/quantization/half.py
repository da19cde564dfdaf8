"""From a version with a float32 ONNX graph to the next version, whose graph is float16 or bfloat16, for GPUs.

Its answers are compared with the float32 graph's on the CPU, which computes each node in float32 and rounds what comes
of it. A GPU that also adds up in 16 bits may be further off. Speed is not measured: on CPUs there is nothing to gain.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export import card, confined, contracts, description, manifest
from bookserve.export.errors import ConfinedError, ExportError, NoGainError, StoreError
from bookserve.export.manifest import HalfPrecision, Manifest
from bookserve.export.quantization import source_version
from bookserve.export.quantization.source_version import SourceVersion
from bookserve.export.store import ModelStore

PRECISIONS = ("float16", "bfloat16")
_TRIAL = "bookserve.export.quantization.half_trial:run"


def halve(
    store: ModelStore,
    model: str,
    version: int | None,
    precision: str,
    data: Path | None,
    limits: confined.Limits,
    say: Callable[[str], None],
) -> Manifest:
    """Make the next version of `model` from `version`, by default the newest that is float32, in one of PRECISIONS.

    `data` is a file with rows to compare the answers on, such as `.npz`; without it they are drawn at random.

    Raises:
        ExportError: there is no such version, it has no such form, its answers are too far off, or the store cannot
            be written. Nothing is published. NoGainError where the graph would not be smaller.
    """
    if data is not None and not data.is_file():
        raise ExportError(f"there is no file {data}")
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
                "data": None if data is None else str(data.resolve()),
                "precision": precision,
            }
            say(f"{model}: version {source.number} becomes {precision}")
            try:
                made = confined.call(_TRIAL, job, limits)
            except ConfinedError as error:
                raise ExportError(f"{model} version {source.number}: {error}") from error
            if "larger" in made:
                after, before = made["larger"][precision], made["larger"]["float32"]
                raise NoGainError(f"a {precision} graph would not be smaller: {after} bytes, now {before}")
            return _publish(store, staged, source, precision, made, say)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error


def _publish(
    store: ModelStore,
    staged: Path,
    source: SourceVersion,
    precision: str,
    made: dict[str, Any],
    say: Callable[[str], None],
) -> Manifest:
    contract, found = contracts.from_json(made["contract"]), HalfPrecision(**made["compared"])
    parity, made_with = made["parity"], made["made_with"]
    lines = [f"# {contract.model}, {precision}", "", f"Version {source.number} with {precision} weights, for GPUs.", ""]
    lines += [f"- {line}" for line in description.half_precision(precision, found, parity)]
    lines += ["- figures and speed are not measured anew", "", *card.table(contract), ""]
    source_version.copy_assets(source, staged)
    source_version.write_card(source, staged, lines)
    files = manifest.digests(staged)

    def describe(number: int) -> Manifest:
        derived = source_version.derived(source, contract, number, precision, parity, files, made_with)
        return replace(derived, float16=found) if precision == "float16" else replace(derived, bfloat16=found)

    published = store.publish(contract.model, staged, describe)
    for line in description.half_precision(precision, found, parity):
        say(f"{contract.model}: {line}")
    say(f"{contract.model}: published as {store.path(contract.model, published.version)}")
    return published

"""From a version with a float32 ONNX graph to the next version, whose graph is float16.

Its answers are compared with the float32 graph's on the CPU, where ONNX Runtime rounds to float16 between the nodes. A
GPU that also adds up in float16 may be further off. Speed is not measured: on CPUs there is nothing to gain.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export import card, confined, contracts, description, manifest
from bookserve.export.errors import ConfinedError, ExportError, NoGainError, StoreError
from bookserve.export.manifest import Float16, Manifest
from bookserve.export.quantization import source_version
from bookserve.export.quantization.source_version import SourceVersion
from bookserve.export.store import ModelStore

PRECISION = "float16"
_TRIAL = "bookserve.export.quantization.float16_trial:run"


def halve(
    store: ModelStore,
    model: str,
    version: int | None,
    data: Path | None,
    limits: confined.Limits,
    say: Callable[[str], None],
) -> Manifest:
    """Make the next version of `model` from `version`, by default the newest that is float32.

    `data` is a file with rows to compare the answers on, such as `.npz`; without it they are drawn at random.

    Raises:
        ExportError: there is no such version, it has no float16 form, its answers are too far off, or the store cannot
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
            }
            say(f"{model}: version {source.number} becomes float16")
            try:
                made = confined.call(_TRIAL, job, limits)
            except ConfinedError as error:
                raise ExportError(f"{model} version {source.number}: {error}") from error
            if "larger" in made:
                after, before = made["larger"]["float16"], made["larger"]["float32"]
                raise NoGainError(f"a float16 graph would not be smaller: {after} bytes, now {before}")
            return _publish(store, staged, source, made, say)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error


def _publish(
    store: ModelStore, staged: Path, source: SourceVersion, made: dict[str, Any], say: Callable[[str], None]
) -> Manifest:
    contract, found = contracts.from_json(made["contract"]), Float16(**made["float16"])
    parity, made_with = made["parity"], made["made_with"]
    lines = [f"# {contract.model}, float16", "", f"Version {source.number} with float16 weights, for GPUs.", ""]
    lines += [f"- {line}" for line in description.float16(found, parity)]
    lines += ["- figures and speed are not measured anew", "", *card.table(contract), ""]
    source_version.copy_assets(source, staged)
    source_version.write_card(source, staged, lines)
    files = manifest.digests(staged)

    def describe(number: int) -> Manifest:
        derived = source_version.derived(source, contract, number, PRECISION, parity, files, made_with)
        return replace(derived, float16=found)

    published = store.publish(contract.model, staged, describe)
    for line in description.float16(found, parity):
        say(f"{contract.model}: {line}")
    say(f"{contract.model}: published as {store.path(contract.model, published.version)}")
    return published

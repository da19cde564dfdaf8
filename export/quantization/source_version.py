"""The version that a smaller graph is made of, and what the manifest of the smaller one takes over from it."""

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bookserve.export import manifest
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.manifest import Manifest, Metrics
from bookserve.export.store import ModelStore

FLOAT32 = "float32"
CARD = "assets.extra/report/card.md"
_GRAPHS = ("assets.extra/model.onnx", "model.onnx")


@dataclass(frozen=True)
class SourceVersion:
    """A version with a float32 graph: its number, folder, graph, and manifest if it has one."""

    number: int
    folder: Path
    graph: Path
    described: Manifest | None


def find(store: ModelStore, model: str, version: int | None) -> SourceVersion:
    """The version to make a smaller one of, by default the newest whose graph is float32.

    Raises:
        StoreError: there is none, or its manifest is damaged.
        ExportError: it has no ONNX graph, or is of another precision already.
    """
    if version is None:
        store.path(model)
        version = next((n for n in reversed(store.versions(model)) if _precision(store, model, n) == FLOAT32), None)
        if version is None:
            raise ExportError(f"{model} has no version with a float graph")
    folder = store.path(model, version)
    graph = next((folder / name for name in _GRAPHS if (folder / name).is_file()), None)
    if graph is None:
        raise ExportError(f"{model} version {version} has no ONNX graph, which is what is made smaller: {folder}")
    precision = _precision(store, model, version)
    if precision != FLOAT32:
        raise ExportError(f"{model} version {version} is {precision} already")
    if not (folder / manifest.LOCATION).is_file():
        return SourceVersion(version, folder, graph, None)
    described = store.manifest(model, version)  # of a folder that was copied by hand it may name another model
    contract = replace(described.contract, model=model)
    return SourceVersion(version, folder, graph, replace(described, model=model, contract=contract))


def _precision(store: ModelStore, model: str, version: int) -> str:
    if not (store.path(model, version) / manifest.LOCATION).is_file():
        return FLOAT32
    return store.manifest(model, version).precision


def copy_assets(source: SourceVersion, staged: Path) -> None:
    """Give the staged version the assets of the source, whose SavedModel, if any, stays with it."""
    if (source.folder / "assets").is_dir():
        shutil.copytree(source.folder / "assets", staged / "assets")


def write_card(source: SourceVersion, staged: Path, lines: list[str]) -> None:
    """Write the model card of the staged version: `lines`, then the card of the source."""
    before = source.folder / CARD
    if before.is_file():
        lines = [*lines, f"What follows is the card of version {source.number}.", "", before.read_text("utf-8")]
    (staged / CARD).parent.mkdir(parents=True, exist_ok=True)
    (staged / CARD).write_text("\n".join(lines), encoding="utf-8")


def derived(
    source: SourceVersion,
    contract: Contract,
    number: int,
    precision: str,
    parity: dict[str, float],
    files: dict[str, str],
    made_with: dict[str, str],
) -> Manifest:
    """The manifest of version `number`, made of the source: origin as there, figures not measured anew.

    Of the figures it keeps what says which rows are unlike the training rows, as that does not depend on precision.
    """
    before = source.described
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if before is None:
        return Manifest(
            contract.model, number, now, contract, parity, files, made_with, configuration="", precision=precision
        )
    return Manifest(
        model=contract.model,
        version=number,
        created=now if before.source is not None else before.created,
        contract=contract,
        parity=parity,
        files=files,
        made_with=before.made_with | made_with,
        metrics=_unlike(before),
        data=before.data,
        data_card=before.data_card,
        config=before.config,
        profile=before.profile,
        seed=before.seed,
        configuration=before.configuration,
        rows_independent=before.rows_independent,
        precision=precision,
        source=before.source,
    )


def _unlike(before: Manifest) -> Metrics:
    found = before.metrics.get("served", {}).get("unlike")
    return {} if found is None else {"served": {"unlike": found}}

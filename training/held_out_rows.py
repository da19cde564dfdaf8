"""The test rows of a version that was trained here, read again from its data, and the model's own figure of them."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bookserve.export import run_reader
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.figures import Measurement
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.run_reader import TrainingRun
from bookserve.training.datasets import own_data
from bookserve.training.datasets.files import DataError, DataRequest
from bookserve.training.datasets.own_data import OwnData
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS
from bookserve.training.run import book_model
from bookserve.training.tuning.search import config_of


def measurement(described: Manifest, data_dir: Path | None, runs_dir: Path) -> Measurement:
    """Rows and figure of the training that `described` tells of.

    Where a user's own data lies is known from the run below `runs_dir`, and so is the network behind a name of one's
    own.

    Raises:
        DataError: the data cannot be had, or is not what the version was trained with.
        TrainingError: the model or its configuration is not known any more.
    """
    name, origin = described.contract.model, described.data
    run = _run_of(described, runs_dir)
    if run is not None:
        return _of_inputs(of_run(run, data_dir), described.contract)
    if name not in MODELS or origin is None or origin.source == "own" or described.seed is None:
        raise TrainingError(
            f"{name}: nothing in {runs_dir} tells how version {described.version} was trained: give rows with --data"
        )
    config = config_of(name, described.configuration, described.profile, runs_dir)
    config = replace(config, **_numbers(described, config))
    return _of_inputs(_read(name, name, config, described.seed, origin, None, data_dir), described.contract)


def of_run(run: TrainingRun, data_dir: Path | None) -> Measurement:
    """Rows and figure of a complete run.

    Raises:
        DataError, TrainingError: as `measurement`.
    """
    name, network = run.contract.model, run.network_of
    own = None if run.own_data is None else own_data.from_json(run.own_data)
    if network not in MODELS or (run.data.source == "own" and own is None):
        raise TrainingError(f"{name}: {run.folder} does not tell what it was trained with: train again")
    config = config_of(network, run.configuration, run.profile, run.folder.parent.parent)
    return _read(name, network, replace(config, **_as_fields(run)), run.seed, run.data, own, data_dir)


def _read(
    name: str, network: str, config: Any, seed: int, origin: DataOrigin, own: OwnData | None, data_dir: Path | None
) -> Measurement:
    module = book_model(network)
    request = DataRequest("sample" if origin.source == "sample" else "real", data_dir, own)
    data = module.load_data(config, request, seed)
    if data.origin.sha256 != origin.sha256:
        raise DataError(
            f"{name}: the data is not that of the training: {data.origin.name}, SHA-256 {data.origin.sha256}, not "
            f"{origin.sha256}"
        )
    found: Measurement = module.measurement(data)
    return found


def _of_inputs(found: Measurement, contract: Contract) -> Measurement:
    """The same with only the inputs of a contract, which may be an older one of the model."""
    names = [tensor.name for tensor in contract.inputs] or list(found.figure.rows)
    rows, calibration = ({name: of[name] for name in names} for of in (found.figure.rows, found.calibration))
    return replace(found, calibration=calibration, figure=replace(found.figure, rows=rows))


def _run_of(described: Manifest, runs_dir: Path) -> TrainingRun | None:
    """The newest run of the same data, settings and numbers, by which rows may be split; None where there is none."""
    name, folder = described.contract.model, runs_dir / described.contract.model
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        try:
            run = run_reader.read(path, name)
        except ExportError:
            continue  # unfinished, a study, or damaged
        settings = (run.seed, run.profile, run.configuration)
        if run.data != described.data or settings != (described.seed, described.profile, described.configuration):
            continue
        if not described.config or run.config == described.config:  # old manifests have no numbers
            return run
    return None


def _numbers(described: Manifest, config: Any) -> dict[str, Any]:
    """What the manifest tells of the fields of a `Config`, as they are there; the parts of nested ones are left out."""
    names = {field.name for field in fields(config)}
    told = {name: value for name, value in described.config.items() if name in names and not isinstance(value, dict)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}


def _as_fields(run: TrainingRun) -> dict[str, object]:
    """What --set changed, as the fields of a `Config` are; JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in run.settings.items()}

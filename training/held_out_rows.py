"""The test rows of a version that was trained here, read again from its data, and the model's own figure of them."""

from dataclasses import replace
from pathlib import Path

from bookserve.export import run_reader
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.figures import Measurement
from bookserve.export.manifest import Manifest
from bookserve.export.run_reader import TrainingRun
from bookserve.training.datasets import own_data
from bookserve.training.datasets.files import DataError, DataRequest
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
    network = name if run is None else run.network_of
    own = None if run is None or run.own_data is None else own_data.from_json(run.own_data)
    unknown = network not in MODELS or (origin is not None and origin.source == "own" and own is None)
    if origin is None or described.seed is None or unknown:
        raise TrainingError(
            f"{name}: nothing in {runs_dir} tells how version {described.version} was trained: give rows with --data"
        )
    module = book_model(network)
    config = config_of(network, described.configuration, described.profile, runs_dir)
    if run is not None:
        config = replace(config, **_as_fields(run))
    request = DataRequest("sample" if origin.source == "sample" else "real", data_dir, own)
    data = module.load_data(config, request, described.seed)
    if data.origin.sha256 != origin.sha256:
        raise DataError(
            f"{name}: the data is not that of version {described.version}: {data.origin.name}, "
            f"SHA-256 {data.origin.sha256}, not {origin.sha256}"
        )
    return _of_inputs(module.measurement(data), described.contract)


def _of_inputs(found: Measurement, contract: Contract) -> Measurement:
    """The same with only the inputs of a contract, which may be an older one of the model."""
    names = [tensor.name for tensor in contract.inputs] or list(found.figure.rows)
    rows, calibration = ({name: of[name] for name in names} for of in (found.figure.rows, found.calibration))
    return Measurement(calibration, replace(found.figure, rows=rows))


def _run_of(described: Manifest, runs_dir: Path) -> TrainingRun | None:
    """The newest run of the same data and settings; None where there is none."""
    name, folder = described.contract.model, runs_dir / described.contract.model
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        try:
            run = run_reader.read(path, name)
        except ExportError:
            continue  # unfinished, a study, or damaged
        settings = (run.seed, run.profile, run.configuration)
        if run.data == described.data and settings == (described.seed, described.profile, described.configuration):
            return run
    return None


def _as_fields(run: TrainingRun) -> dict[str, object]:
    """What --set changed, as the fields of a `Config` are; JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in run.settings.items()}

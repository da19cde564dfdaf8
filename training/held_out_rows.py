"""The test rows of a version that was trained here, read again from its data, and the model's own figure of them."""

from pathlib import Path

from bookserve.export.figures import Measurement
from bookserve.export.manifest import Manifest
from bookserve.training.datasets.files import DataError, DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS
from bookserve.training.run import book_model
from bookserve.training.tuning.search import config_of


def measurement(described: Manifest, data_dir: Path | None, runs_dir: Path) -> Measurement:
    """Rows and figure of the training that `described` tells of.

    Raises:
        DataError: the data cannot be had, or is not what the version was trained with.
        TrainingError: the model or its configuration is not known any more.
    """
    name, origin = described.contract.model, described.data
    if origin is None or described.seed is None or name not in MODELS:
        raise TrainingError(f"{name}: nothing tells how version {described.version} was trained: give rows with --data")
    module = book_model(name)
    config = config_of(name, described.configuration, described.profile, runs_dir)
    request = DataRequest("sample" if origin.source == "sample" else "real", data_dir)
    data = module.load_data(config, request, described.seed)
    if data.origin.sha256 != origin.sha256:
        raise DataError(
            f"{name}: the data is not that of version {described.version}: {data.origin.name}, "
            f"SHA-256 {data.origin.sha256}, not {origin.sha256}"
        )
    return module.measurement(data)

"""The int8 version of a run: calibrated on its training rows, judged on its test rows by the model's own figure."""

from collections.abc import Callable
from pathlib import Path

from bookserve.export.manifest import Manifest
from bookserve.export.quantization import quantize
from bookserve.export.quantization.demands import Demands
from bookserve.export.run_reader import TrainingRun
from bookserve.export.store import ModelStore
from bookserve.training.held_out_rows import measurement

CALIBRATION_ROWS = 1_000


def publish_int8(
    run: TrainingRun,
    published: Manifest,
    store: ModelStore,
    data_dir: Path | None,
    demands: Demands,
    say: Callable[[str], None],
) -> Manifest:
    """Make the int8 version of `published`, the float version of `run`, whose data is read again.

    Raises:
        DataError: the data cannot be had, or is not what the run was trained with.
        TrainingError: the run's configuration is not known any more.
        ExportError: as `quantize.from_rows`; NoGainError where no int8 graph is worth it.
    """
    name = run.contract.model
    rows = measurement(published, data_dir, run.folder.parent.parent)
    return quantize.from_rows(store, name, published.version, rows, CALIBRATION_ROWS, demands, say)

"""From a complete run to the next version in the model store."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import tensorflow as tf

from bookserve.export import card, engines, golden, manifest, onnx_graph, parity, run_format, savedmodel, warmup
from bookserve.export.errors import ExportError, StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.run_reader import TrainingRun
from bookserve.export.store import ModelStore

PARITY_ROWS = 256
_LIBRARIES = ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx", "bookserve")


def publish(run: TrainingRun, store: ModelStore, say: Callable[[str], None]) -> Manifest:
    """Write both graphs, prove them equal, publish them with warm-up, report and manifest; `say` takes a line a step.

    Raises:
        ExportError: the run is damaged, its network breaks the contract, or the graphs disagree; or the store is
            damaged. Nothing is published.
    """
    contract = run.contract
    rows = run.examples()
    try:
        with store.staging(contract.model) as folder:
            extra = folder / "assets.extra"
            say(f"{contract.model}: SavedModel and ONNX graph")
            servable = savedmodel.load(run.network, contract, run.assets())
            savedmodel.save(servable, folder)
            extra.mkdir()
            onnx_graph.convert(servable, contract, folder / onnx_graph.LOCATION)
            differences = parity.check(folder, contract, {name: array[:PARITY_ROWS] for name, array in rows.items()})
            one = golden.first_row(contract, rows)
            answer = engines.onnx_graph(folder / onnx_graph.LOCATION)(one)
            described = replace(contract, example=golden.example(contract, one, answer))
            warmup.write(folder / warmup.LOCATION, contract.model, rows)
            _copy_report(run.report, extra / "report")
            card.write(extra / "report" / "card.md", run, differences)
            files = manifest.digests(folder)
            made_with = run.made_with | {name: installed_version(name) for name in _LIBRARIES}

            def describe(number: int) -> Manifest:
                return Manifest(
                    model=contract.model,
                    version=number,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    contract=described,
                    data=run.data,
                    configuration=run.configuration,
                    profile=run.profile,
                    seed=run.seed,
                    metrics=run.metrics,
                    parity=differences,
                    files=files,
                    made_with=made_with,
                )

            published = store.publish(contract.model, folder, describe)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except tf.errors.OpError as error:
        raise ExportError(f"cannot write the SavedModel to {store.root}: {error.message.splitlines()[0]}") from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error
    say(f"{contract.model}: published as {store.path(contract.model, published.version)}")
    return published


def _copy_report(source: Path, target: Path) -> None:
    target.mkdir()
    for part in (*sorted(source.glob("*.png")), source / run_format.EVALUATION):
        if part.is_file():  # runs of bookserve 0.1.0 have no evaluation
            shutil.copyfile(part, target / part.name)

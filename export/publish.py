"""From a complete run to the next version in the model store."""

import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

from bookserve.export import card, confined, contracts, manifest, run_format
from bookserve.export.errors import ConfinedError, ExportError, StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.replacement import Judge
from bookserve.export.run_reader import TrainingRun
from bookserve.export.store import ModelStore

FORMATS = ("tflite",)  # that a version has besides the SavedModel and the ONNX graph, where they are asked for
_GRAPHS = "bookserve.export.run_graphs:make"
_LIBRARIES = ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx", "bookserve")


def publish(
    run: TrainingRun,
    store: ModelStore,
    say: Callable[[str], None],
    formats: Sequence[str] = (),
    judge: Judge | None = None,
) -> Manifest:
    """Write the graphs, prove them equal, publish them with warm-up, report and manifest; `say` takes a line a step.

    `formats` are those of FORMATS that are wanted, too. `judge` sees the graphs before they are published and may
    refuse them. The files are the same each time that a run is published.

    Raises:
        ExportError: the run is damaged, its network breaks the contract, the graphs disagree, or a wanted format cannot
            be had; or the store is damaged. WorseError where the judge refuses them. Nothing is published.
    """
    contract = run.contract
    run.examples()
    try:
        with store.staging(contract.model) as folder:
            extra = folder / "assets.extra"
            say(f"{contract.model}: {', '.join(('SavedModel', 'ONNX graph', *formats))}")
            extra.mkdir()
            _copy_report(run.report, extra / "report")
            job = {
                "run": str(run.folder.absolute()),
                "folder": str(folder),
                "contract": contracts.to_json(contract),
                "assets": [str(path.absolute()) for path in run.assets()],
                "formats": list(formats),
            }
            try:
                made = confined.call(_GRAPHS, job, confined.NONE)
            except ConfinedError as error:
                raise ExportError(f"{contract.model}: {error}") from error
            for note in made["notes"]:
                say(f"{contract.model}: {note}")
            if judge is not None:
                judge(folder, contract)
            card.write(extra / "report" / "card.md", run, made["parity"])
            files = manifest.digests(folder)
            made_with = run.made_with | {name: installed_version(name) for name in _LIBRARIES}

            def describe(number: int) -> Manifest:
                return Manifest(
                    model=contract.model,
                    version=number,
                    created=run.started or datetime.now(UTC).isoformat(timespec="seconds"),
                    contract=contracts.from_json(made["contract"]),
                    data=run.data,
                    data_card=run.data_card,
                    configuration=run.configuration,
                    config=run.config,
                    profile=run.profile,
                    seed=run.seed,
                    metrics=run.metrics,
                    parity=made["parity"],
                    files=files,
                    made_with=made_with,
                )

            published = store.publish(contract.model, folder, describe)
    except StoreError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write to {store.root}: {error.strerror or error}") from error
    say(f"{contract.model}: published as {store.path(contract.model, published.version)}")
    return published


def _copy_report(source: Path, target: Path) -> None:
    target.mkdir()
    for part in (*sorted(source.glob("*.png")), source / run_format.EVALUATION):
        if part.is_file():  # runs of bookserve 0.1.0 have no evaluation
            shutil.copyfile(part, target / part.name)

"""A complete run folder as export sees it: files and JSON, none of the training code.

`run_format` describes it, `training/run_writer.py` writes it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import run_format
from bookserve.export.contracts import Contract, from_json
from bookserve.export.errors import ExportError
from bookserve.export.manifest import DataCard, DataOrigin, Metrics


@dataclass(frozen=True)
class TrainingRun:
    """One complete run.

    `made_with` names the libraries and the devices; `config` the numbers of the training; `purpose` and `limits` are
    words for the model card; `started` is the time of the training's start in ISO 8601 with its zone. The network of
    the book's model `network_of` was trained; `own_data` says where a user's own data lies, and is None for the book's.
    `settings` are the numbers that the command line changed.
    """

    folder: Path
    contract: Contract
    configuration: str
    profile: str
    seed: int
    config: dict[str, Any]
    data: DataOrigin
    metrics: Metrics
    made_with: dict[str, str]
    purpose: str = ""
    limits: str = ""
    started: str = ""
    network_of: str = ""
    data_card: DataCard | None = None
    own_data: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> Path:
        """The trained network behind its contract, in Keras's own format."""
        return self.folder / run_format.NETWORK

    @property
    def report(self) -> Path:
        """The folder of images."""
        return self.folder / run_format.REPORT

    def assets(self) -> list[Path]:
        """The files that the contract names.

        Raises:
            ExportError: one is missing.
        """
        paths = [self.folder / run_format.ASSETS / name for name in self.contract.assets]
        for path in paths:
            if not path.is_file():
                raise ExportError(f"{path} is missing, which the contract {self.contract.id} names: train again")
        return paths

    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """Test rows as the contract's inputs.

        Raises:
            ExportError: they are missing, damaged or not what the contract names.
        """
        return examples(self.folder, self.contract)


def examples(folder: Path, contract: Contract) -> dict[str, npt.NDArray[Any]]:
    """The test rows of the run in `folder` as the contract's inputs. Raises ExportError as TrainingRun.examples."""
    path = folder / run_format.EXAMPLES
    try:
        with np.load(path, allow_pickle=False) as content:
            rows = {tensor.name: content[tensor.name] for tensor in contract.inputs}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    for tensor in contract.inputs:
        if rows[tensor.name].dtype.name != tensor.dtype:
            raise ExportError(
                f"{path}: '{tensor.name}' is {rows[tensor.name].dtype.name}, the contract {contract.id} has "
                f"{tensor.dtype}"
            )
    return rows


def latest(runs_dir: Path, model: str) -> Path:
    """The newest complete run of a model.

    Raises:
        ExportError: there is none.
    """
    folder = runs_dir / model
    names = sorted(path.name for path in folder.iterdir() if _is_complete(path)) if folder.is_dir() else []
    if not names:
        known = sorted(path.name for path in runs_dir.iterdir() if path.is_dir()) if runs_dir.is_dir() else []
        raise ExportError(
            f"{folder} holds no complete run: train one with 'bookserve train {model}' (runs of: "
            f"{', '.join(known) or 'nothing'})"
        )
    return folder / names[-1]


def read(folder: Path, model: str, contract_of: Callable[[str], Contract] | None = None) -> TrainingRun:
    """The run in `folder`, which must be a complete one of `model`.

    Runs of bookserve 0.1.0 name their contract only: `contract_of` gives the whole one of a model, or raises KeyError.

    Raises:
        ExportError: it is unfinished, of another model, of another contract, or damaged.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a run folder")
    if not _is_complete(folder):
        raise ExportError(f"{folder} is not complete: its training was stopped or failed. Train again.")
    try:
        config = json.loads((folder / run_format.CONFIG).read_text(encoding="utf-8"))
        metrics = json.loads((folder / run_format.METRICS).read_text(encoding="utf-8"))
        contract = from_json(config["contract"])
        if config["model"] != model:
            raise ExportError(f"{folder} is a run of {config['model']}, not of {model}")
        if not contract.whole:
            contract = _whole(contract, folder, contract_of)
        return TrainingRun(
            folder=folder,
            contract=contract,
            configuration=config["configuration"],
            profile=config["profile"],
            seed=config["seed"],
            config=config["config"],
            data=DataOrigin(**config["data"]),
            metrics=metrics,
            made_with={**config["made_with"], "devices": config["devices"], "mode": config.get("mode", "exact")},
            purpose=config.get("purpose", ""),
            limits=config.get("limits", ""),
            started=config.get("started", ""),
            network_of=config.get("network", model),
            data_card=DataCard(**config["data_card"]) if config.get("data_card") else None,
            own_data=config.get("own_data"),
            settings=config.get("settings", {}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder} is damaged: {error!r}. Train again.") from error


def _whole(named: Contract, folder: Path, contract_of: Callable[[str], Contract] | None) -> Contract:
    """The contract of which a run has only the name."""
    try:
        known = contract_of(named.model) if contract_of else named
    except KeyError:
        known = named
    if not known.whole:
        raise ExportError(f"{folder} is from before runs had their whole contract: train again")
    if known.id != named.id:
        raise ExportError(f"{folder} keeps the contract {named.id}; today's is {known.id}: train again")
    return known


def _is_complete(folder: Path) -> bool:
    finished = folder.is_dir() and not folder.name.endswith(run_format.UNFINISHED)
    return finished and (folder / run_format.METRICS).is_file()

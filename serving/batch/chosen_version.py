"""The version of a store that a run asks, and what of it is read there: contract, vocabulary, independence of rows."""

from dataclasses import dataclass
from pathlib import Path

from bookserve.clients import forms
from bookserve.clients.inputs import words
from bookserve.clients.inputs.words import Vocabulary
from bookserve.export import graph_contract, manifest
from bookserve.export.contracts import Contract
from bookserve.export.errors import StoreError
from bookserve.export.store import ModelStore
from bookserve.serving.batch.records import InputError
from bookserve.serving.server.engines.onnx_rows import graph, walk
from bookserve.serving.server.engines.onnx_rows.values import Mixed
from bookserve.serving.server.models.manifest import rows_independent

_ONNX = ("assets.extra/model.onnx", "model.onnx")


@dataclass(frozen=True)
class Chosen:
    """A version in the store: its folder and its contract."""

    folder: Path
    contract: Contract

    @property
    def version(self) -> int:
        """Its number."""
        return int(self.folder.name)


def in_store(root: Path, name: str, version: int | None, label: str | None) -> Chosen:
    """The version of that number or label; otherwise the one that servers answer from.

    Raises:
        StoreError: there is none.
        ExportError: what it takes cannot be found out.
    """
    store = ModelStore(root)
    if label is not None:
        labels = store.release(name).labels
        if label not in labels:
            known = ", ".join(sorted(labels)) or "none"
            raise StoreError(f"{name} has no label '{label}' in {root} (labels: {known})")
        version = labels[label]
    if version is None and store.versions(name):
        version = store.release(name).rolled_back_to
    folder = store.path(name, version)
    described = manifest.read(folder) if (folder / manifest.LOCATION).is_file() else None
    return Chosen(folder, graph_contract.of_version(folder, name, described))


def has_independent_rows(folder: Path, contract: Contract) -> bool:
    """Whether rows of a version may share a run: its manifest says so, or its ONNX graph proves it."""
    if not all(tensor.shape[:1] == (None,) for tensor in (*contract.inputs, *contract.outputs)):
        return False
    declared = rows_independent(folder)
    if declared is not None:
        return declared
    path = next((folder / name for name in _ONNX if (folder / name).is_file()), None)
    try:
        return path is not None and not walk.refusal(graph.read(path))
    except Mixed:
        return False


def vocabulary(folder: Path | None, contract: Contract) -> Vocabulary | None:
    """The words of a model of texts.

    Raises:
        InputError: there is no store to read them in.
        VocabularyError: they cannot be read.
    """
    if forms.form(contract) != forms.TEXT:
        return None
    assert contract.preprocessing is not None
    if folder is None:
        raise InputError(f"{contract.model} needs its vocabulary, which lies in the model store: give --models-dir")
    return words.read_vocabulary(folder / "assets" / contract.preprocessing.vocabulary)

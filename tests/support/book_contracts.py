"""The contracts of the book's models as they are published, so that a test of serving needs no TensorFlow.

`tests/training/models/test_contracts.py` compares them with those of the trainings.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bookserve.export.contracts import Contract, from_json
from bookserve.export.manifest import LOCATION, DataOrigin, Manifest, Metrics

CONTRACTS = {
    name: from_json(content)
    for name, content in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}


def write_manifests(root: Path, models: Iterable[str] = tuple(CONTRACTS)) -> Path:
    """Makes `root` a store with version 3 of these models, which has a manifest and no graph; returns it."""
    for model in models:
        write_manifest(root, CONTRACTS[model], 3)
    return root


def without_nearest() -> Contract:
    """The second contract of tox21, as versions of bookserve 0.1.0 have it."""
    return replace(CONTRACTS["tox21"], version=2, outputs=CONTRACTS["tox21"].outputs[:1])


def write_manifest(root: Path, contract: Contract, version: int, metrics: Metrics | None = None) -> None:
    """Adds a version that has a manifest and no graph to the store."""
    path = root / contract.model / str(version) / LOCATION
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        model=contract.model,
        version=version,
        created="2026-01-02T03:04:05+00:00",
        contract=contract,
        data=DataOrigin("sample", "drawn rows", "0" * 64),
        profile="smoke",
        seed=0,
        metrics=metrics or {},
        parity={},
        files={},
        made_with={"bookserve": "0.1.0"},
    )
    path.write_text(manifest.to_json(), encoding="utf-8")

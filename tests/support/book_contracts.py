"""The contracts of the book's models as they are published, so that a test of serving needs no TensorFlow.

`tests/training/models/test_contracts.py` compares them with those of the trainings.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from bookserve.export.contracts import from_json
from bookserve.export.manifest import LOCATION, DataOrigin, Manifest

CONTRACTS = {
    name: from_json(content)
    for name, content in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}


def write_manifests(root: Path, models: Iterable[str] = tuple(CONTRACTS), versions: Iterable[int] = (3,)) -> Path:
    """Makes `root` a store of versions that have a manifest and no graph; returns it."""
    for model in models:
        for version in versions:
            path = root / model / str(version) / LOCATION
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                Manifest(
                    model=model,
                    version=version,
                    created="2026-01-02T03:04:05+00:00",
                    contract=CONTRACTS[model],
                    data=DataOrigin("sample", "drawn rows", "0" * 64),
                    profile="smoke",
                    seed=0,
                    parity={},
                    files={},
                    made_with={"bookserve": "0.1.0"},
                ).to_json(),
                encoding="utf-8",
            )
    return root

from pathlib import Path

import numpy as np

from bookserve.export.contracts import from_json
from bookserve.export.converters import trial
from bookserve.export.life import engine_trial


def test_every_format_becomes_a_version_that_answers_as_its_source(made, tmp_path: Path) -> None:
    name, path = made
    job = {"path": str(path), "folder": str(tmp_path), "model": "score", "task": None, "labels": None}
    result = trial.run({**job, "example": None, "trust": name == "scikit-learn"})
    contract = from_json(result["contract"])
    assert result["format"] == name.removesuffix(" h5")
    assert [tensor.shape for tensor in contract.inputs] == [(None, 4)]
    assert max(result["parity"].values()) < 1e-5
    assert contract.example is not None
    assert np.shape(next(iter(contract.example.inputs.values()))) == (1, 4)
    for graph in result["graphs"]:
        job = {"folder": str(tmp_path), "file": graph, "contract": result["contract"], "parity": result["parity"]}
        told = engine_trial.run(job)["differences"]  # as 'bookserve models verify' does
        assert max(told.values()) < 1e-5
    if name in ("scikit-learn", "Hugging Face"):
        assert set(contract.labels) == {"low", "middle", "high"}

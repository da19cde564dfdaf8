"""deepchem's splitter and transformers beside ours, which do without deepchem's ten seconds of import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bookserve.training.datasets import molecule_sample
from bookserve.training.datasets.tox21 import scaffold_split
from bookserve.training.models.tox21 import model as tox21

DEEPCHEM = """
import json, sys
import keras
import numpy as np
import deepchem as dc
asked = json.load(open(sys.argv[1]))
results = np.array(asked["results"], float)
measured = ~np.isnan(results)
inputs = np.array(asked["inputs"])
data = dc.data.NumpyDataset(inputs, np.nan_to_num(results), measured.astype(float), np.array(asked["smiles"], object))
parts = dc.splits.ScaffoldSplitter().split(data, frac_train=0.8, frac_valid=0.1, frac_test=0.1)
balanced = dc.trans.BalancingTransformer(dataset=data).transform(data).w
normal = dc.trans.NormalizationTransformer(transform_X=True, dataset=data).transform(data).X
parts = [[int(row) for row in part] for part in parts]
told = {"parts": parts, "weights": balanced.tolist(), "inputs": normal.tolist()}
json.dump(told, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
def test_deepchem_splits_weighs_and_standardises_as_we_do(tmp_path: Path) -> None:
    smiles, results = molecule_sample.draw(400, 12, seed=5)
    inputs = np.random.default_rng(0).normal(size=(400, 3)) * [1.0, 20.0, 300.0] + [0.0, 7.0, -50.0]
    asked, told = tmp_path / "asked.json", tmp_path / "told.json"
    asked.write_text(json.dumps({"smiles": smiles, "results": results.tolist(), "inputs": inputs.tolist()}))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", DEEPCHEM, asked, told], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(told.read_text())

    assert theirs["parts"] == [list(part) for part in scaffold_split(smiles, 0.1, 0.1)]

    ours = tox21.pack(results, tox21.assay_weights(results, 1.0))[:, 1]
    weights = np.array(theirs["weights"])
    np.testing.assert_array_equal(ours == 0, weights == 0)  # what was not measured
    np.testing.assert_allclose(ours / ours.max(axis=0), weights / weights.max(axis=0), rtol=1e-5)

    mean, variance = inputs.mean(axis=0), inputs.var(axis=0)
    np.testing.assert_allclose((inputs - mean) / np.sqrt(variance), theirs["inputs"], rtol=1e-5)


def test_the_networks_see_standardised_descriptors_of_which_none_lies_too_far() -> None:
    config = tox21.Config(epochs=1, members=1, hidden=(4,), memory=0)
    model = tox21.build_model(config)
    values = np.random.default_rng(0).normal(size=(300, 201)).astype(np.float32) * 50
    values[:, 0] = 3.0  # no variance
    values[0, 1] = 1e6
    rows = {
        "fingerprint": np.zeros((300, 1024), np.uint8),
        "counts": np.full((300, 2215), 2, np.uint8),
        "descriptors": values,
    }
    tox21._standardise(model, rows)
    networks = model.get_layer(tox21.NETWORKS)
    (dropout,) = [layer for layer in networks.layers if type(layer).__name__ == "Dropout" and layer.rate == 0.3]
    seen = keras.Model(networks.input, dropout.input).predict(rows, verbose=0)
    np.testing.assert_allclose(seen[:, :2215], np.log(3), rtol=1e-6)
    squashed = np.sign(values) * np.log1p(np.abs(values.astype(np.float64)))
    expected = (squashed - squashed.mean(axis=0)) / np.sqrt(squashed.var(axis=0) + tox21.LEAST_VARIANCE)
    np.testing.assert_allclose(seen[:, 2215:], np.clip(expected, -tox21.FARTHEST, tox21.FARTHEST), atol=1e-4)
    assert not seen[:, 2215].any()

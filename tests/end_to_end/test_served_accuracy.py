"""The accuracy that the server gives equals the one that the manifest claims, over the whole MNIST test set by REST."""

import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from bookserve.training.datasets import mnist
from bookserve.training.datasets.files import DataRequest
from model_servers import server_starter

DATA_DIR = os.environ.get("DATA_DIR")
ROWS_A_REQUEST = 250


@pytest.mark.slow
@pytest.mark.skipif(not DATA_DIR, reason="needs DATA_DIR with the real MNIST")
def test_the_served_accuracy_is_the_manifests(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from bookserve.training.commands import train_all

    folders = ["--models-dir", str(tmp_path / "models"), "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(train_all, ["mnist", "--profile", "smoke", "--data", "real", *folders])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "models/mnist/1/assets.extra/manifest.json").read_text())
    data = mnist.load(DataRequest("real", Path(str(DATA_DIR))), 0)
    right = 0
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}")
        for first in range(0, len(data.test.labels), ROWS_A_REQUEST):
            rows = slice(first, first + ROWS_A_REQUEST)
            body = json.dumps({"instances": data.test.images[rows].tolist()}).encode()
            request = urllib.request.Request(f"{server.url}/v1/models/mnist:predict", body)
            with urllib.request.urlopen(request, timeout=60) as response:
                classes = [row["classes"] for row in json.load(response)["predictions"]]
            right += int(np.sum(np.array(classes) == data.test.labels[rows]))
    assert len(data.test.labels) == 10_000
    assert right / 10_000 == pytest.approx(manifest["metrics"]["test"]["accuracy"], abs=1e-9)

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from playwright.sync_api import Browser, Page

from book_contracts import CONTRACTS, write_manifest, write_manifests
from bookserve.export.manifest import LOCATION
from gateway_pages import CHROMIUM, SEVEN, gateway, open_browser, open_page, write_vocabulary
from stand_in_models import OTHERS, FakeServer, serve

EVALUATION = {
    "figure": "accuracy",
    "value": 0.875,
    "rows": 8,
    "interval": [0.625, 1.0],
    "classes": [{"name": "good", "rows": 8, "positives": 4, "precision": 1.0, "recall": 0.75, "specificity": None}],
    "calibration": {"ece": 0.03125, "brier": 0.25, "bins": []},
}
LITERT = Path(__file__).parents[2] / "server" / "models" / "crashing.tflite"
CONFIG = 'model_config_list { config { name: "wine" version_labels { key: "canary" value: 3 } } }'
CARD = """# wine

It tastes <b>each</b> wine.

## Figures

| split | error |
|---|---|
| test | 0.5 |

| | train | test |
|---|---|---|
| rows | 80 | 20 |

**Not for planes.** Ask with `bookserve predict wine`:

- one row
- or more

```json
{"inputs": [[1, 2, 3]]}
```
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not CHROMIUM:
            item.add_marker(pytest.mark.skip(reason="no Chromium at /usr/bin/chromium, and no chromium on PATH"))


def change_manifest(store: Path, model: str, version: int, **changes: object) -> None:
    """Writes a version whose manifest has these fields; one that is None is left out."""
    write_manifest(store, OTHERS[model], version)
    path = store / model / str(version) / LOCATION
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def write_graph(path: Path) -> None:
    """An ONNX file of two operations."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])] for name, size in (("x", 3), ("y", 2))
    )
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    onnx.save(helper.make_model(helper.make_graph(nodes, "wine", inputs, outputs, [weights])), path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def stand_in() -> Iterator[FakeServer]:
    """A stand-in for a model server, with the models of the book and some others."""
    fake = FakeServer(models=(*CONTRACTS, *OTHERS))
    server = serve(fake)
    yield fake
    server.stop(None).wait()


@pytest.fixture(scope="module")
def url(stand_in: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway whose store has these models."""
    folder = tmp_path_factory.mktemp("gateway")
    store = write_manifests(folder / "models")
    for contract in OTHERS.values():
        write_manifest(store, contract, 3)
    for version, accuracy in ((1, 0.5), (2, 0.75), (3, 0.875)):
        change_manifest(store, "wine", version, metrics={"test": {"accuracy": accuracy, "rows": 8}})
        report = (store / "wine" / str(version) / LOCATION).parent / "report"
        report.mkdir()
        (report / "card.md").write_text(CARD)
        (report / "evaluation.json").write_text(json.dumps(EVALUATION))
    write_manifest(store, CONTRACTS["tox21"], 3, {"served": {"unlike": 0.3}})
    change_manifest(store, "double", 3, data=None, source={"format": "ONNX", "name": "double.onnx", "sha256": "0" * 64})
    report = (store / "letters" / "3" / LOCATION).parent / "report"
    report.mkdir()
    shutil.copy(SEVEN, report / "curves.png")
    write_graph(store / "wine" / "3" / "assets.extra" / "model.onnx")
    shutil.copy(LITERT, store / "double" / "3" / "model.tflite")
    (store / "models.config").write_text(CONFIG)
    write_vocabulary(store / "ptb")
    write_vocabulary(store / "mood")
    with gateway(stand_in.target, folder) as address:
        yield address


@pytest.fixture
def page(browser: Browser, stand_in: FakeServer, url: str) -> Iterator[Page]:
    """A page of the gateway, not loaded yet; all models are served."""
    stand_in.models = (*CONTRACTS, *OTHERS)
    with open_page(browser, url) as page:
        yield page

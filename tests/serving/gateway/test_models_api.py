import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from book_contracts import CONTRACTS
from bookserve.clients import errors
from bookserve.export.contracts import to_json
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.problems import MEDIA_TYPE
from http_calls import problem_of

MANIFEST = {
    "model": "mnist",
    "version": 3,
    "contract": "mnist/1",
    "metrics": {"test": {"accuracy": 0.99}},
    "data": {"source": "real"},
    "files": {"saved_model.pb": "00"},
}
PNG = b"\x89PNG\r\n\x1a\nnot much of one"


@pytest.fixture
def assets(tmp_path):
    folder = tmp_path / "mnist" / "3" / "assets.extra"
    (folder / "report").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "report" / "curves.png").write_bytes(PNG)
    (folder / "report" / "card.md").write_text("# card")
    return folder


def test_the_list_tells_who_can_answer(client, backend) -> None:
    models = client.get("/api/v1/models").get_json()["models"]
    mnist = next(model for model in models if model["name"] == "mnist")
    told = {"contract": "mnist/1", "ready": True, "version": 3, "reason": None, "task": "image-classification"}
    assert mnist.items() >= told.items()
    backend.fail_metadata = errors.Unavailable("x")
    mnist = next(model for model in client.get("/api/v1/models").get_json()["models"] if model["name"] == "mnist")
    assert (mnist["ready"], mnist["version"], mnist["away"]) == (False, None, True)
    assert "make serve" in mnist["reason"]


def test_a_server_that_is_away_is_asked_once_for_all_models(client, backend) -> None:
    backend.fail_metadata = errors.DeadlineExceeded("late")
    assert {model["away"] for model in client.get("/api/v1/models").get_json()["models"]} == {True}
    assert backend.metadata_calls == 1


def test_a_folder_copied_under_another_name_is_that_model_as_the_model_server_tells_it(
    client, backend, models_dir
) -> None:
    shutil.copytree(models_dir / "mnist" / "3", models_dir / "digits" / "3")
    models = {model["name"]: model for model in client.get("/api/v1/models").get_json()["models"]}
    assert len(models) == len(CONTRACTS) + 1
    assert (models["mnist"]["ready"], models["digits"]["ready"]) == (True, False)
    assert models["digits"]["reason"].endswith("has no version of digits loaded")
    backend.fail = errors.NotFound("Servable not found for request: Latest(digits)")
    problem_of(client.post("/api/v1/digits", json={"pixels": [[0] * 28] * 28}), 404)
    assert {model for model, *_ in backend.asked} == {"digits"}


def test_one_model_has_its_contract_versions_and_figures(client, assets) -> None:
    model = client.get("/api/v1/models/mnist").get_json()
    assert model["inputs"] == [{"name": "images", "dtype": "uint8", "shape": [None, 28, 28]}]
    newest, oldest = model["versions"]
    assert (newest["version"], newest["state"], newest["error"]) == (3, "AVAILABLE", "")
    assert newest["manifest"]["metrics"] == {"test": {"accuracy": 0.99}}
    assert "files" not in newest["manifest"]
    assert newest["report"] == ["/api/v1/models/mnist/versions/3/report/curves.png"]
    assert (oldest["manifest"], oldest["report"]) == (None, [])
    picture = client.get(newest["report"][0])
    assert (picture.data, picture.content_type) == (PNG, "image/png")


def test_a_list_shows_small_pictures(client, assets) -> None:
    path = "/api/v1/models/mnist/versions/3/report/curves.png"
    problem_of(client.get(f"{path}/small"), 404)  # PNG is no picture
    pixels = np.random.default_rng(0).integers(0, 255, (300, 900, 3), np.uint8)
    Image.fromarray(pixels).save(assets / "report" / "curves.png")
    small = client.get(f"{path}/small")
    assert (small.status_code, small.content_type) == (200, "image/png")
    assert Image.open(io.BytesIO(small.data)).size == (768, 256)
    assert len(small.data) < 160_000
    Image.new("RGB", (300, 200), (200, 30, 40)).save(assets / "report" / "plain.png")
    plain = Image.open(io.BytesIO(client.get(path.replace("curves", "plain") + "/small").data))
    assert plain.size == (300, 200)  # as it is: nothing is scaled up
    assert np.abs(np.array(plain.convert("RGB"))[0, 0].astype(int) - (200, 30, 40)).max() < 4
    assert client.get(f"{path}/small", headers={"If-None-Match": small.headers["ETag"]}).status_code == 304
    problem_of(client.get("/api/v1/models/mnist/versions/3/report/none.png/small"), 404)


def test_without_a_store_there_are_no_figures(backend, molecule_pool) -> None:
    client = create_app(GatewayConfig(), backend, molecule_pool).test_client()
    assert "manifest" not in client.get("/api/v1/models/mnist").get_json()["versions"][0]
    assert client.get("/api/v1/models/mnist/versions/3/report/curves.png").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "nope",
        "%2e%2e",
        "<img src=x onerror=alert(1)>",
        "nope/versions/3/report/curves.png",
        "mnist/versions/3/report/card.md",
        "mnist/versions/3/report/none.png",
        "mnist/versions/3/report/..%2f..%2fmanifest.json",
        "mnist/versions/-1/report/curves.png",
        "mnist/versions/9/report/curves.png",
        "mnist/versions/3/report/link.png",
        "mnist/versions/3/report/%00.png",
    ],
)
def test_nothing_else_is_read(client, assets, path, tmp_path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (assets / "report" / "link.png").symlink_to(tmp_path / "secret")
    response = client.get(f"/api/v1/models/{path}")
    assert response.status_code == 404
    assert response.content_type == MEDIA_TYPE
    assert "onerror" not in response.text


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 5000, "x" * (5 << 20)], ids=["empty", "list", "cut", "deep", "large"]
)
def test_a_broken_manifest_is_none(client, assets, content) -> None:
    (assets / "manifest.json").write_text(content)
    assert client.get("/api/v1/models/mnist").get_json()["versions"][0]["manifest"] is None


def test_the_store_tells_of_a_model_while_the_model_server_is_away(client, backend, assets) -> None:
    backend.fail_metadata = errors.Unavailable("x")
    model = client.get("/api/v1/models/mnist").get_json()
    assert (model["ready"], model["version"], model["away"]) == (False, None, True)
    assert [(version["version"], version["state"]) for version in model["versions"]] == [(3, None)]


def test_the_state_has_what_is_published_and_why_nothing_is_measured(client, models_dir) -> None:
    (models_dir / "mnist" / "4").mkdir()
    state = client.get("/api/v1/models/mnist/state").get_json()
    assert (state["ready"], state["version"], state["stored"], state["loaded"]) == (True, 3, [4, 3], [3])
    assert "--model-server-rest" in state["live"]["reason"]
    assert client.get("/api/v1/models/nope/state").status_code == 404


def test_headline_picture_and_history_are_of_the_version_that_answers(client, assets, models_dir) -> None:
    older = models_dir / "mnist" / "2" / "assets.extra" / "manifest.json"
    older.parent.mkdir(parents=True)
    older.write_text(json.dumps({**MANIFEST, "version": 2, "metrics": {"test": {"accuracy": 0.9}}}))
    mnist = next(one for one in client.get("/api/v1/models").get_json()["models"] if one["name"] == "mnist")
    assert mnist["headline"] == {"name": "accuracy", "split": "test", "value": 0.99}
    assert mnist["picture"] == "/api/v1/models/mnist/versions/3/report/curves.png"
    assert mnist["history"] == [[2, 0.9], [3, 0.99]]
    assert mnist["origin"] == "training"


def test_a_version_has_its_labels_card_and_example(client, assets, models_dir) -> None:
    contract = {**to_json(CONTRACTS["mnist"]), "example": {"inputs": {"images": [[[0]]]}, "outputs": {}}}
    (assets / "manifest.json").write_text(json.dumps({**MANIFEST, "contract": contract}))
    (models_dir / "models.config").write_text(
        'model_config_list { config { name: "mnist" base_path: "/m" version_labels { key: "stable" value: 3 } } }'
    )
    model = client.get("/api/v1/models/mnist").get_json()
    newest = model["versions"][0]
    assert newest["labels"] == ["stable"]
    assert model["example"] == {"images": [[[0]]]}
    assert "example" not in newest["manifest"]["contract"]
    card = client.get(newest["card"])
    assert (card.text, card.content_type) == ("# card", "text/markdown; charset=utf-8")
    (assets / "report" / "card.md").unlink()
    (assets / "report" / "card.md").symlink_to(assets / "manifest.json")
    assert client.get(newest["card"]).status_code == 404
    assert client.get("/api/v1/models/mnist").get_json()["versions"][0]["card"] is None


def test_the_evaluation_of_the_version_that_answers_is_told(client, assets) -> None:
    classes = [{"name": "0", "rows": 10, "positives": 5, "precision": 1.0, "recall": 0.8, "specificity": 1.0}]
    evaluation = {"figure": "accuracy", "value": 0.9, "rows": 10, "interval": [0.7, 1.0], "classes": classes}
    evaluation["doubt"] = 0.61
    told = {**evaluation, "calibration": {"ece": 0.05, "brier": 0.2}}
    written = {**told, "confusion": [[5]], "calibration": {**told["calibration"], "bins": []}}
    path = assets / "report" / "evaluation.json"
    path.write_text(json.dumps(written))
    assert client.get("/api/v1/models/mnist").get_json()["evaluation"] == told
    for broken in ("", "[]", "{", '{"figure": "accuracy"}', "[" * 5000):
        path.write_text(broken)
        assert client.get("/api/v1/models/mnist").get_json()["evaluation"] is None
    path.unlink()
    path.symlink_to(assets / "manifest.json")
    assert client.get("/api/v1/models/mnist").get_json()["evaluation"] is None


@pytest.mark.parametrize("text", ["", "nonsense {", "model_config_list {"])
def test_labels_of_a_broken_config_are_none(client, assets, models_dir, text) -> None:
    (models_dir / "models.config").write_text(text)
    assert client.get("/api/v1/models/mnist").get_json()["versions"][0]["labels"] == []


def test_an_away_model_server_is_503_without_a_store(backend, molecule_pool) -> None:
    client = create_app(GatewayConfig(), backend, molecule_pool).test_client()
    backend.fail_metadata = errors.Unavailable("x")
    response = client.get("/api/v1/models/mnist")
    assert response.status_code == 503
    assert response.content_type == MEDIA_TYPE

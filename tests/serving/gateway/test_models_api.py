import json

import pytest

from bookserve.clients import errors
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.problems import MEDIA_TYPE

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
    mnist = {"name": "mnist", "contract": "mnist/1", "ready": True, "version": 3, "reason": None}
    assert mnist in models
    backend.fail_metadata = errors.Unavailable("x")
    mnist = next(model for model in client.get("/api/v1/models").get_json()["models"] if model["name"] == "mnist")
    assert (mnist["ready"], mnist["version"]) == (False, None)
    assert "make serve" in mnist["reason"]


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


def test_an_away_model_server_is_503(client, backend) -> None:
    backend.fail_metadata = errors.Unavailable("x")
    response = client.get("/api/v1/models/mnist")
    assert response.status_code == 503
    assert response.content_type == MEDIA_TYPE

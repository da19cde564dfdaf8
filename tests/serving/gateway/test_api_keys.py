"""API keys, cross-origin requests, caching, request ids, and what a person sees who mistypes an address."""

import gzip
import json

import pytest

from bookserve.clients.grpc_client import GrpcClient
from bookserve.serving.gateway.api_keys import ApiKeys, ApiKeysError
from bookserve.serving.gateway.app import create_app, request_id_metadata
from bookserve.serving.gateway.config import GatewayConfig
from http_calls import problem_of
from stand_in_models import FakeServer, serve

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# of the phone app\nphone:{KEY}\n\n{OTHER}\n")
    return path


@pytest.fixture
def guarded(backend, molecule_pool, models_dir, keys):
    return create_app(GatewayConfig(models_dir=models_dir, api_keys=keys), backend, molecule_pool).test_client()


@pytest.mark.parametrize("path", ["/api/v1/models", "/api/v1/mnist", "/api/v1/models/mnist:predict", "/metrics"])
def test_without_a_key_the_api_is_closed(guarded, path) -> None:
    for headers in ({}, {"Authorization": "Bearer " + "x" * 16}, {"X-API-Key": KEY + "x"}, {"Authorization": KEY}):
        response = guarded.open(path, method="POST" if "mnist" in path else "GET", headers=headers)
        document = problem_of(response, 401)
        assert document["type"] == "urn:bookserve:problem:unauthorized"
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="bookserve"'
        assert KEY not in response.text


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": OTHER}])
def test_with_a_key_it_is_open(guarded, headers) -> None:
    assert guarded.get("/api/v1/models", headers=headers).status_code == 200


def test_the_page_sends_the_key_as_a_cookie(guarded) -> None:
    guarded.set_cookie("bookserve_key", KEY)
    assert guarded.get("/api/v1/models").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs", "/models/mnist", "/page/style.css"])
def test_probes_and_pages_need_no_key(guarded, path) -> None:
    assert guarded.get(path).status_code == 200


def test_a_changed_file_is_read_anew_and_a_broken_one_is_not(keys) -> None:
    now = [0.0]
    found = ApiKeys(keys, lambda: now[0])

    def passes(key: str) -> bool:
        from flask import Request
        from werkzeug.test import EnvironBuilder

        from bookserve.serving.gateway.problems import Problem

        builder = EnvironBuilder(path="/api/v1/models", headers={"X-API-Key": key})
        try:
            return bool(found.check(Request(builder.get_environ())))
        except Problem:
            return False

    assert (passes(KEY), passes("n" * 16)) == (True, False)
    keys.write_text("n" * 16)
    now[0] = 0.5  # looked at less than a second ago
    assert (passes(KEY), passes("n" * 16)) == (True, False)
    now[0] = 2.0
    assert (passes(KEY), passes("n" * 16)) == (False, True)
    keys.write_text("short")
    now[0] = 4.0
    assert passes("n" * 16)
    keys.unlink()
    now[0] = 6.0
    assert passes("n" * 16)


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "has no key"), ("short", "line 1 of"), (f"a b:{KEY}", "line 1 of"), (f"{KEY}\nü" + KEY, "line 2 of")],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_telling_it(tmp_path, content, text) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ApiKeysError, match=text) as raised:
        ApiKeys(path)
    assert KEY not in str(raised.value)


def test_the_document_says_that_keys_are_needed(guarded, client) -> None:
    assert client.get("/openapi.json").get_json()["security"] == []
    document = guarded.get("/openapi.json").get_json()
    names = [name for scheme in document["security"] for name in scheme]
    assert names == ["bearer", "header"]
    assert set(names) == document["components"]["securitySchemes"].keys()


APP = "https://app.example"


@pytest.fixture
def crossed(backend, molecule_pool, models_dir, keys):
    config = GatewayConfig(models_dir=models_dir, api_keys=keys, cors_origins=(APP,))
    return create_app(config, backend, molecule_pool).test_client()


def test_a_preflight_is_answered_for_the_origins_that_are_named(crossed) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    response = crossed.options("/api/v1/mnist", headers=asked)
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == APP
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    assert "Origin" in response.headers["Vary"]
    response = crossed.options("/api/v1/mnist", headers={**asked, "Origin": "https://evil.example"})
    assert response.status_code == 401
    assert "Access-Control-Allow-Origin" not in response.headers


def test_answers_and_problems_may_be_read_by_these_origins_only(crossed, client) -> None:
    for headers, status in (({"X-API-Key": KEY}, 200), ({}, 401)):
        response = crossed.get("/api/v1/models", headers={"Origin": APP, **headers})
        assert response.status_code == status
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers
    for origin in ("https://app.example.evil", "http://app.example", "null"):
        response = crossed.get("/api/v1/models", headers={"Origin": origin, "X-API-Key": KEY})
        assert "Access-Control-Allow-Origin" not in response.headers
    assert "Access-Control-Allow-Origin" not in client.get("/api/v1/models", headers={"Origin": APP}).headers


@pytest.mark.parametrize("text", ["app.example", "ftp://a", "https://a/path", "https://a b"])
def test_what_is_no_origin_is_refused(text) -> None:
    from bookserve.serving.gateway import cors

    with pytest.raises(ValueError, match="is not an origin"):
        cors.origins(text)


@pytest.fixture
def report(models_dir):
    folder = models_dir / "mnist" / "3" / "assets.extra" / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.png").write_bytes(b"\x89PNG" + bytes(3000))
    (folder / "card.md").write_text("# Digits\n" + "one line of many\n" * 200)


CARD = "/api/v1/models/mnist/versions/3/card"
CURVES = "/api/v1/models/mnist/versions/3/report/curves.png"
DRAWING = "/api/v1/tox21/drawing?smiles=CCO"


@pytest.mark.parametrize("path", [CARD, CURVES, DRAWING, "/page/model.js", "/openapi.json", "/"])
def test_what_did_not_change_is_not_sent_again(client, report, path) -> None:
    first = client.get(path)
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": 'W/"other"'}).status_code == 200


def test_a_changed_card_has_another_tag(client, report, models_dir) -> None:
    tag = client.get(CARD).headers["ETag"]
    (models_dir / "mnist/3/assets.extra/report/card.md").write_text("# Other\n")
    response = client.get(CARD, headers={"If-None-Match": tag})
    assert (response.status_code, response.text) == (200, "# Other\n")


@pytest.mark.parametrize(("path", "packed"), [(CARD, True), (DRAWING, True), ("/openapi.json", True), (CURVES, False)])
def test_text_is_compressed_where_the_client_takes_that(client, report, path, packed) -> None:
    plain = client.get(path)
    assert "Content-Encoding" not in plain.headers
    response = client.get(path, headers={"Accept-Encoding": "br, gzip"})
    if packed:
        assert response.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in response.headers["Vary"]
        assert len(response.data) < len(plain.data)
        assert gzip.decompress(response.data) == plain.data
        assert int(response.headers["Content-Length"]) == len(response.data)
        assert "Content-Encoding" not in client.get(path, headers={"Accept-Encoding": "gzip;q=0"}).headers
        tag = response.headers["ETag"]
        again = client.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": tag})
        assert again.status_code == 304
    else:
        assert "Content-Encoding" not in response.headers


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("path", ["/modles", "/models/-", "/api/v1/nothing/here", "/page/none.js"])
def test_a_person_who_mistypes_an_address_gets_a_page(client, path) -> None:
    response = client.get(path, headers={"Accept": BROWSER})
    assert response.status_code == 404
    assert response.content_type == "text/html; charset=utf-8"
    assert '<a href="/">See all models</a>' in response.text
    problem_of(client.get(path), 404)
    problem_of(client.get(path, headers={"Accept": "*/*"}), 404)


def test_the_request_id_goes_through_to_the_model_server(molecule_pool, models_dir) -> None:
    seen: list[dict[str, str]] = []

    class Noting(FakeServer):
        def predict(self, request, context):
            seen.append(dict(context.invocation_metadata()))
            return super().predict(request, context)

    fake = Noting()
    server = serve(fake)
    with GrpcClient(fake.target, call_metadata=request_id_metadata) as backend:
        client = create_app(GatewayConfig(models_dir=models_dir), backend, molecule_pool).test_client()
        body = json.dumps({"pixels": [[7] * 28] * 28})
        headers = {"X-Request-ID": "abc-1", "Content-Type": "application/json"}
        assert client.post("/api/v1/mnist", data=body, headers=headers).status_code == 200
        assert request_id_metadata() == ()  # outside of a request
    server.stop(None).wait()
    assert [metadata["x-request-id"] for metadata in seen] == ["abc-1"]


def test_titles_are_those_of_http_today_and_types_tell_problems_apart(client, backend) -> None:
    from bookserve.clients import errors

    problem = problem_of(client.post("/api/v1/linear", json={"x": [1.0] * 5000}), 413)
    assert (problem["title"], problem["type"]) == ("Content Too Large", "urn:bookserve:problem:too-large")
    pixels = {"pixels": [[7] * 28] * 28}
    for failure, kind in (
        (errors.Unavailable("x"), "model-server-away"),
        (errors.ResourceExhausted("x"), "model-server-full"),
    ):
        backend.fail = failure
        assert problem_of(client.post("/api/v1/mnist", json=pixels), 503)["type"] == f"urn:bookserve:problem:{kind}"

import json
import re
from pathlib import Path

import pytest

from book_contracts import CONTRACTS, write_manifests
from bookserve import clients
from bookserve.clients import errors
from bookserve.serving import gateway
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig, Limits
from http_calls import problem_of

PAGE = Path(gateway.__file__).parent / "page"
CLIENT = Path(clients.__file__).parent / "javascript" / "bookserve.js"


def test_health_asks_nobody(client, backend) -> None:
    backend.fail_metadata = errors.Unavailable("x")
    assert client.get("/healthz").get_json() == {"status": "ok"}
    assert backend.metadata_calls == 0


def test_ready_when_a_model_keeps_its_contract(client) -> None:
    assert client.get("/readyz").get_json() == {"status": "ready", "models": {"mnist": 3}}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.Unavailable("x"), "make serve"),
        (errors.NotFound("x"), "no version of mnist"),
        (errors.DeadlineExceeded("x"), "in time"),
    ],
)
def test_unready_with_the_reason(client, backend, error, text) -> None:
    backend.fail_metadata = error
    assert text in problem_of(client.get("/readyz"), 503)["detail"]


def test_unready_over_an_empty_store(backend, molecule_pool, tmp_path) -> None:
    client = create_app(GatewayConfig(models_dir=tmp_path), backend, molecule_pool).test_client()
    assert "holds no version of a model yet" in problem_of(client.get("/readyz"), 503)["detail"]
    assert client.get("/api/v1/models").get_json() == {"models": []}
    write_manifests(tmp_path, ["mnist"])
    assert client.get("/readyz").get_json()["models"] == {"mnist": 3}


def test_unready_while_draining_and_connections_close(backend, molecule_pool) -> None:
    client = create_app(GatewayConfig(), backend, molecule_pool, draining=lambda: True).test_client()
    assert "stopping" in problem_of(client.get("/readyz"), 503)["detail"]
    response = client.get("/healthz")
    assert response.status_code == 200
    assert response.headers["Connection"] == "close"


def test_an_unexpected_exception_is_a_500_without_detail(client, backend) -> None:
    backend.fail = RuntimeError("/secret/path")
    response = client.post("/api/v1/mnist", json={"pixels": [[0] * 28] * 28})
    assert "secret" not in response.text
    assert problem_of(response, 500)["request_id"] == response.headers["X-Request-ID"]


def test_unknown_paths_and_methods_are_problems(client) -> None:
    assert "openapi.json" in problem_of(client.get("/nope"), 404)["detail"]
    response = client.get("/api/v1/mnist")
    assert "POST" in problem_of(response, 405)["detail"]
    assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/api/v1/models", "/metrics", "/nope"])
def test_a_name_that_was_pointed_here_is_refused(backend, molecule_pool, path) -> None:
    config = GatewayConfig(bind="192.0.2.7", allowed_hosts=("models.example",))
    client = create_app(config, backend, molecule_pool).test_client()
    for host in ("evil.example", "evil.example:8080", "192.0.2.8", "localhost.evil.example", ""):
        problem = problem_of(client.get(path, headers={"Host": host}), 403)
        assert "--allowed-hosts" in problem["detail"]
        assert f"the Host '{host}' is not expected" in problem["detail"]
    for host in ("localhost:8080", "127.0.0.1:1", "[::1]:8080", "192.0.2.7:8080", "models.example"):
        assert client.get(path, headers={"Host": host}).status_code != 403


def test_request_ids_are_taken_only_when_harmless(client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
    for bad in ("a b", "x" * 65, "<script>", ""):
        assert re.fullmatch(
            "[0-9a-f]{32}", client.get("/healthz", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        )


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/nope", "/openapi.json", "/page/model.js", "/models/mnist", "/api/v1/models"]
)
def test_every_answer_has_the_security_headers(client, path) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_pages_are_whole_and_load_nothing_foreign(client) -> None:
    pages = {path: client.get(path).text for path in ("/", "/docs", "/models/mnist")}
    html = "".join(pages.values())
    files = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*.*")}
    files["bookserve.js"] = CLIENT
    for name, path in files.items():
        response = client.get(f"/page/{name}")
        assert response.status_code == 200
        assert response.data == path.read_bytes()
        pages[name] = response.text
    for name, text in pages.items():
        # SVG's name space is an address that nobody asks.
        text = text.replace('const SVG = "http://www.w3.org/2000/svg";', "")
        text = text.replace('url = "http://127.0.0.1:8080"', "")  # of the client, to which the page gives its own
        assert not re.search(r"https?:|//[a-z]", re.sub(r"^\s*//.*$|\s//\s.*$", "", text, flags=re.M)), name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|\son[a-z]+=|style=|<style", text), (
            name
        )
    wanted = re.findall(r'(?:src|href)="(/[^"]*)"', html)
    for name, path in files.items():
        for imported in re.findall(r'from "(\.[^"]+)"', pages[name]):
            assert (path.parent / imported).resolve().relative_to(PAGE).as_posix() in files, imported
    for path in wanted:
        assert client.get(path).status_code == 200, path
    ids = set(re.findall(r'id="([^"]+)"', html))
    assert set(re.findall(r'element\("([^"]+)"\)', "".join(pages.values()))) <= ids


def test_types_of_the_page(client) -> None:
    types = {path: client.get(path).content_type for path in ("/", "/page/style.css", "/page/panels/board.js")}
    assert [kind.split(";")[0] for kind in types.values()] == ["text/html", "text/css", "text/javascript"]


@pytest.mark.parametrize(
    "name", ["nope.js", "panels", "..%2fapp.py", "%2e%2e/app.py", "../app.py", "panels/../../app.py"]
)
def test_the_page_has_no_other_files(client, name) -> None:
    problem_of(client.get(f"/page/{name}"), 404)


def test_openapi_covers_every_route_and_every_reference_resolves(client) -> None:
    document = client.get("/openapi.json").get_json()
    pages = ("/", "/docs", "/models/{name}", "/openapi.json")
    routes = {
        re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for rule in client.application.url_map.iter_rules()
        if not rule.rule.startswith(("/page/", "/docs/"))
    } - set(pages)
    models = {
        "/api/v1/{model}": CONTRACTS,
        "/api/v1/models/{model}:predict": CONTRACTS,
        "/api/v1/{model}/generate": ["ptb"],
        "/api/v1/{model}/drawing": ["tox21"],
        "/api/v1/{model}/explain": ["tictactoe", "tox21"],
        "/api/v1/{model}/preview": ["cifar10", "mnist"],
    }
    assert models.keys() <= routes
    named = {route.replace("{model}", name) for route, names in models.items() for name in names}
    assert set(document["paths"]) == routes - models.keys() | named
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert "200" in operation["responses"]


def test_every_example_of_openapi_works(client, all_models, store) -> None:
    tried = []
    for path, item in client.get("/openapi.json").get_json()["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            continue
        tried.append(path)
        response = client.post(path, json=content["application/json"]["example"])
        assert response.status_code == 200, response.text
        promised = item["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        _check(response.get_json(), promised, path)
    assert len(tried) == 2 * len(CONTRACTS) + 3


def _check(value, schema, place) -> None:
    """The few keywords of JSON Schema that the answers' schemas have."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), place
    assert value in schema.get("enum", [value]), place
    assert set(schema.get("required", [])) <= set(value if isinstance(value, dict) else []), place
    for name, inner in schema.get("properties", {}).items():
        if name in value:  # what is required is there
            _check(value[name], inner, f"{place}.{name}")
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), place
        for index, entry in enumerate(value):
            _check(entry, schema["items"], f"{place}[{index}]")
    if isinstance(value, int | float):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), place


def test_openapi_states_the_limits_that_hold(backend, molecule_pool, models_dir) -> None:
    client = create_app(
        GatewayConfig(models_dir=models_dir, limits=Limits(items=5)), backend, molecule_pool
    ).test_client()
    content = client.get("/openapi.json").get_json()["paths"]["/api/v1/mnist"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == 5
    example = content["application/json"]["example"]
    assert client.post("/api/v1/mnist", json=example).status_code == 200
    assert client.post("/api/v1/mnist", json={"pixels": [example["pixels"]] * 6}).status_code == 413

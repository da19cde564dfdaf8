"""`bookserve models push` and `pull` of registries that want a login: Debian's docker-registry, with passwords and with
a token server as Docker Hub, ghcr.io, GitLab and Harbor have one."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from bookserve.export.errors import StoreError
from bookserve.export.life import registry, registry_credentials
from bookserve.export.life.registry import Registry
from bookserve.export.life.registry_credentials import Credentials
from bookserve.export.life.registry_login import RegistryLogin
from bookserve.export.store import ModelStore
from registry_servers import TokenServer, docker_registry, token_server

Invoke = Callable[..., Result]
# `htpasswd -nbB me pw`
USERS = "me:$2b$05$CWmqqGMe6fTVNLhkIY1gvO62ng4.RuxSsFDh87FfRl7SeKjaV4sny\n"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TokenServer]]:
    """A registry that takes tokens, and the server that gives them."""
    folder = tmp_path_factory.mktemp("guarded")
    with token_server(folder) as (tokens, auth), docker_registry(folder, auth=auth) as host:
        yield host, tokens


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that takes passwords."""
    with docker_registry(tmp_path_factory.mktemp("closed"), USERS) as host:
        yield host


def login(home: Path, host: str, account: str, **more: str) -> Path:
    """As `docker login` keeps an account."""
    path = home / ".docker/config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(account.encode()).decode()} | more}}))
    return path


def test_a_version_moves_through_a_registry_with_passwords(
    store: ModelStore, invoke: Invoke, home: Path, closed: str, tmp_path: Path
) -> None:
    address = f"oci://{closed}/score:1"
    push = ("models", "push", "score/1", address, "--models-dir", store.root)
    assert invoke(*push).output == (
        f"Error: {address}: the registry asks for credentials: 'docker login {closed}' keeps them"
        " (401 Unauthorized: UNAUTHORIZED authentication required)\n"
    )
    config = login(home, closed, "me:wrong")
    assert invoke(*push).output == (
        f"Error: {address}: {closed} does not accept the login of 'me' from {config}"
        f" (401 Unauthorized: UNAUTHORIZED authentication required): 'docker login {closed}' keeps another\n"
    )
    login(home, closed, "me:pw")
    pushed = invoke(*push)
    assert pushed.exit_code == 0, pushed.output
    pulled = invoke("models", "pull", address, "--models-dir", tmp_path / "other")
    assert pulled.exit_code == 0, pulled.output


def test_a_version_moves_through_a_registry_with_tokens(
    store: ModelStore, invoke: Invoke, home: Path, guarded: tuple[str, TokenServer], tmp_path: Path
) -> None:
    host, tokens = guarded
    address = f"oci://{host}/team/score:1"
    push = ("models", "push", "score/1", address, "--models-dir", store.root)
    tokens.asked.clear()
    nobody = invoke(*push)
    assert (nobody.exit_code, nobody.output.count("\n")) == (1, 1)
    assert f"{address}: the registry asks for credentials: 'docker login {host}' keeps them" in nobody.output
    assert tokens.asked == [("", ["repository:team/score:pull,push"])]
    config = login(home, host, "me:wrong")
    assert invoke(*push).output == (
        f"Error: 127.0.0.1 does not accept the login of 'me' from {config} (401 Unauthorized):"
        f" 'docker login {host}' keeps another\n"
    )
    login(home, host, "reader:pw")
    refused = invoke(*push)
    assert refused.exit_code == 1
    told = f"Error: {address}: 'reader', from {config}, may not do that there (401 Unauthorized"
    assert refused.output.splitlines()[-1].startswith(told)
    login(home, host, "me:pw")
    tokens.asked.clear()
    pushed = invoke(*push)
    assert pushed.exit_code == 0, pushed.output
    assert tokens.asked == [("me", ["repository:team/score:pull,push"])]  # one token for all
    login(home, host, "reader:pw")
    tokens.asked.clear()
    pulled = invoke("models", "pull", address, "--models-dir", tmp_path / "other")
    assert pulled.exit_code == 0, pulled.output
    assert tokens.asked == [("reader", ["repository:team/score:pull"])]
    assert (tmp_path / "other/score/1/assets.extra/model.onnx").is_file()


def test_a_public_repository_is_pulled_without_a_login(
    store: ModelStore,
    invoke: Invoke,
    home: Path,
    guarded: tuple[str, TokenServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, tokens = guarded
    address = f"oci://{host}/public/score:2"
    login(home, host, "me:pw")
    assert invoke("models", "push", "score/2", address, "--models-dir", store.root).exit_code == 0
    (home / ".docker/config.json").unlink()
    monkeypatch.setitem(tokens.allowed, "", {"pull"})
    pulled = invoke("models", "pull", address, "--models-dir", tmp_path / "other")
    assert pulled.exit_code == 0, pulled.output


def test_an_identity_token_stands_for_the_password(
    store: ModelStore, invoke: Invoke, home: Path, guarded: tuple[str, TokenServer]
) -> None:
    host, tokens = guarded
    address = f"oci://{host}/team/identity:1"
    config = login(home, host, "me:", identitytoken="lasting")
    push = ("models", "push", "score/1", address, "--models-dir", store.root)
    assert f"127.0.0.1 does not accept the login of 'me' from {config} (401" in invoke(*push).output
    tokens.identity_tokens["lasting"] = "me"
    pushed = invoke(*push)
    assert pushed.exit_code == 0, pushed.output


def test_a_token_that_allows_too_little_is_replaced(
    home: Path, guarded: tuple[str, TokenServer], tmp_path: Path
) -> None:
    host, tokens = guarded
    login(home, host, "me:pw")
    (tmp_path / "blob").write_bytes(b"blob")
    tokens.asked.clear()
    with Registry(registry.parse(f"oci://{host}/team/later:1")) as asked:
        assert asked.manifest() is None
        asked.upload(tmp_path / "blob", "sha256:fa2c8cc4f28176bbeed4b736df569a34c79cd3723e9ec42f9674b4d46ac6b8b8")
    scopes = [set(scope.rpartition(":")[2].split(",")) for _, (scope,) in tokens.asked]
    assert scopes == [{"pull"}, {"pull", "push"}]


def helper(folder: Path, name: str, script: str) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_credential_helper_is_asked(
    store: ModelStore,
    invoke: Invoke,
    home: Path,
    guarded: tuple[str, TokenServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, _ = guarded
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    helper(tmp_path, "kept", f'test "$(cat)" = {host} && echo \'{{"Username": "me", "Secret": "pw"}}\'')
    config = home / ".docker/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"auths": {host: {}}, "credsStore": "kept"}))
    address = f"oci://{host}/team/helped:1"
    pushed = invoke("models", "push", "score/1", address, "--models-dir", store.root)
    assert pushed.exit_code == 0, pushed.output


def test_credentials_are_found_where_the_tools_keep_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, account = registry_credentials.find, base64.b64encode(b"me:p:w").decode()
    assert find("ghcr.io") is None
    (home / ".config/containers").mkdir(parents=True)
    podman = home / ".config/containers/auth.json"
    podman.write_text(json.dumps({"auths": {"ghcr.io": {"auth": account}}}))
    assert find("ghcr.io") == Credentials("me", str(podman), "p:w")
    docker = home / ".docker/config.json"
    docker.parent.mkdir()
    hub = {"https://index.docker.io/v1/": {"username": "hub", "password": "pw"}}
    docker.write_text(json.dumps({"auths": {"https://ghcr.io/v2/": {"auth": account}, **hub}}))
    assert find("ghcr.io") == Credentials("me", str(docker), "p:w")
    assert find("docker.io") == Credentials("hub", str(docker), "pw")
    assert find("quay.io") is None
    (tmp_path / "named.json").write_text(json.dumps({"auths": {"quay.io": {"auth": account}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "named.json"))
    assert find("quay.io") == Credentials("me", str(tmp_path / "named.json"), "p:w")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"quay.io": {"auth": account}}}))
    assert find("quay.io") == Credentials("me", "DOCKER_AUTH_CONFIG", "p:w")
    monkeypatch.setenv("ORAS_USER", "robot")
    monkeypatch.setenv("ORAS_PASS", "secret")
    assert find("quay.io") == Credentials("robot", "ORAS_USER and ORAS_PASS", "secret")
    assert "secret" not in repr(find("quay.io"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"auths": {"ghcr.io": {"auth": "?"}}}', "an 'auth' is not the base64 of USER:PASSWORD"),
        ('{"auths": {"ghcr.io": {"auth": "bWU="}}}', "an 'auth' is not the base64 of USER:PASSWORD"),
        ('{"credsStore": "missing"}', "names the credential helper 'docker-credential-missing', which is not on"),
        ('{"credHelpers": {"ghcr.io": "../sh"}}', "names '../sh', which is no credential helper"),
        ('{"credsStore": "failing"}', "'docker-credential-failing' of .* fails: locked"),
        ('{"credsStore": "silent"}', "'docker-credential-silent' of .* answers no credentials"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    helper(tmp_path, "failing", "echo locked; exit 1")
    helper(tmp_path, "silent", "exit 0")
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        registry_credentials.find("ghcr.io")


def test_a_helper_without_an_account_is_no_fault(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    helper(tmp_path, "empty", "echo credentials not found in native keychain; exit 1")
    helper(tmp_path, "token", 'echo \'{"Username": "<token>", "Secret": "lasting"}\'')
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"credsStore": "empty", "credHelpers": {"azurecr.io": "token"}}')
    assert registry_credentials.find("ghcr.io") is None
    found = registry_credentials.find("azurecr.io")
    assert found == Credentials("<token>", "docker-credential-token", identity_token="lasting")


def test_a_password_is_sent_to_no_other_place() -> None:
    import requests

    credentials = Credentials("me", "here", "pw")
    login = RegistryLogin("https://ghcr.io/v2/", "ghcr.io", credentials, (1.0, 1.0), False)
    for realm in ("http://ghcr.io/token", "http://127.0.0.1:9/token", "ftp://ghcr.io", "", "https://"):
        with pytest.raises(StoreError, match=r"ghcr\.io wants a login at"):
            login._token({"realm": realm})
    login._authorization = credentials.basic
    there = requests.Request("GET", "https://ghcr.io/v2/x/manifests/1", auth=login).prepare()
    elsewhere = requests.Request("GET", "https://storage.example/blob", auth=login).prepare()
    assert there.headers["Authorization"] == credentials.basic
    assert "Authorization" not in elsewhere.headers

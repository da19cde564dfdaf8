"""`bookserve models sign` and `verify --key`, and a model server that loads only what is signed."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bookserve.export.errors import StoreError
from bookserve.export.life import archive, signing
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire import version_signature
from bookserve.serving.wire.version_signature import SignatureError
from model_servers import StartServer, server_starter, wait_until

pytest.importorskip("model_signing", reason="the extra 'signing' is not installed")

Invoke = Callable[..., Result]


def write_keys(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """The files of a private and a public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    with server_starter(tmp_path) as starter:
        yield starter


def verify(folder: Path, public: Path) -> None:
    version_signature.verify(folder, public, int(folder.name), ["score"])


def test_a_signed_version_is_verified(
    store: ModelStore, invoke: Invoke, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    result = invoke("models", "sign", "score", "--key", private, "--models-dir", store.root)
    assert result.exit_code == 0, result.output
    assert result.output == f"score version 2 is signed: {store.root}/score/2/assets.extra/model.sig\n"
    assert sorted(path.name for path in (store.root / "score").iterdir()) == ["1", "2"]
    result = invoke("models", "verify", "score", "--key", public, "--models-dir", store.root)
    assert result.exit_code == 0, result.output
    assert f"signature: made with the private key of {public}" in result.output
    assert "signature: there is one" in invoke("models", "verify", "score", "--models-dir", store.root).output
    shown = invoke("models", "show", "score", "--models-dir", store.root)
    assert (shown.exit_code, shown.output.splitlines()[-1]) == (0, "files     2, all as published")
    result = invoke("models", "verify", "score", "1", "--key", public, "--models-dir", store.root)
    assert result.exit_code == 1
    assert "WRONG  signature: it has no signature (assets.extra/model.sig)" in result.output
    _, stranger = write_keys(tmp_path, "stranger")
    with pytest.raises(SignatureError, match="does not hold: Key mismatch"):
        verify(store.path("score", 2), stranger)


def test_every_change_breaks_a_signature(store: ModelStore, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    signing.sign(store, "score", 2, private, None)
    folder = store.path("score", 2)

    def change(name: str, data: bytes | None) -> None:
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)

    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    graph = (folder / "assets.extra/model.onnx").read_bytes()
    manifest = (folder / "assets.extra/manifest.json").read_bytes()
    signature = (folder / "assets.extra/model.sig").read_bytes()
    for name, data, message in (
        ("assets.extra/model.onnx", graph[:-1] + b"\1", "does not hold: assets.extra/model.onnx changed$"),
        (
            "assets.extra/manifest.json",
            manifest.replace(b"0.92", b"0.99"),
            "does not hold: assets.extra/manifest.json changed$",
        ),
        ("assets.extra/report/card.md", None, "Missing files"),
        ("assets.extra/tf_serving_warmup_requests", b"", "Extra files"),
        (".git/config", b"[core]", "Extra files"),
        ("assets.extra/model.sig", signature[: len(signature) // 2], "does not hold"),
        ("assets.extra/model.sig", b"{}", "does not hold"),
        ("assets.extra/model.sig", b"", "does not hold"),
    ):
        (folder / ".git").mkdir()
        change(name, data)
        with pytest.raises(SignatureError, match=message):
            verify(folder, public)
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    verify(folder, public)
    (folder / "assets").symlink_to("/etc")
    with pytest.raises(SignatureError, match="does not hold"):
        verify(folder, public)


def test_a_signature_is_for_one_name_and_number(store: ModelStore, keys: tuple[Path, Path]) -> None:
    private, public = keys
    signing.sign(store, "score", 1, private, None)
    shutil.copytree(store.path("score", 1), store.root / "score/9")
    with pytest.raises(SignatureError, match="it is signed as score version 1"):
        verify(store.root / "score/9", public)
    with pytest.raises(SignatureError, match="it is signed as score version 1"):
        version_signature.verify(store.path("score", 1), public, 1, ["rating"])


def test_an_archive_keeps_the_signature_with_the_number(
    store: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    archive.pack(store, "score", 2, tmp_path / "unsigned.tar.gz")
    signing.sign(store, "score", 2, private, None)
    archive.pack(store, "score", 2, tmp_path / "signed.tar.gz")
    other = ModelStore(tmp_path / "other")
    with pytest.raises(StoreError, match="it has no signature"):
        archive.unpack(other, tmp_path / "unsigned.tar.gz", public_key=public)
    assert other.models() == []
    archive.unpack(other, tmp_path / "signed.tar.gz", public_key=public)
    verify(other.path("score", 2), public)
    renamed = invoke("models", "unpack", tmp_path / "signed.tar.gz", "rating", "--models-dir", other.root)
    assert "its signature was for another name or number and is left out" in renamed.output
    assert not (other.path("rating") / "assets.extra/model.sig").exists()


def test_keys_that_are_none_are_named(store: ModelStore, invoke: Invoke, tmp_path: Path) -> None:
    folder = ("--models-dir", store.root)
    (tmp_path / "none.pem").write_text("no key")
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "rsa.pem").write_bytes(rsa_key.public_bytes(pem, form))
    for name in ("none.pem", "rsa.pem"):
        result = invoke("models", "verify", "score", "--key", tmp_path / name, *folder)
        assert result.exit_code == 1
        assert f"{name} is no public key of an elliptic curve" in result.output
    result = invoke("models", "sign", "score", "--key", tmp_path / "none.pem", *folder)
    assert result.exit_code == 1
    assert f"cannot be signed with {tmp_path / 'none.pem'}" in result.output
    assert sorted(path.name for path in (store.root / "score").iterdir()) == ["1", "2"]


def test_a_key_with_a_password_signs(store: ModelStore, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "locked", b"correct horse")
    assert signing.is_encrypted(private)
    with pytest.raises(StoreError, match="cannot be signed"):
        signing.sign(store, "score", 1, private, b"wrong")
    signing.sign(store, "score", 1, private, b"correct horse")
    verify(store.path("score", 1), public)


def test_a_version_that_was_changed_is_not_signed(store: ModelStore, keys: tuple[Path, Path]) -> None:
    (store.path("score", 2) / "extra.bin").write_bytes(b"1")
    with pytest.raises(StoreError, match=r"is not as published \(extra\.bin\)"):
        signing.sign(store, "score", 2, keys[0], None)


def test_without_the_library_the_line_that_installs_it_is_told(
    store: ModelStore, invoke: Invoke, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for command, key in zip(("sign", "verify"), keys, strict=True):
        result = invoke("models", command, "score", "--key", key, "--models-dir", store.root)
        assert result.exit_code == 1
        assert "the package 'model-signing': pip install 'bookserve[signing]'" in result.output


def test_a_server_loads_only_what_is_signed(
    store: ModelStore, publish: Callable[..., Manifest], keys: tuple[Path, Path], start: StartServer
) -> None:
    private, public = keys
    signing.sign(store, "score", 2, private, None)
    server = start(
        f"--model_root={store.root}",
        f"--require_signature={public}",
        "--file_system_poll_wait_seconds=0.05",
        "--max_num_load_retries=0",
    )
    states: dict[int, tuple[int, str]] = {}

    def look() -> None:
        request = messages.GetModelStatusRequest()
        request.model_spec.name = "score"
        with grpc.insecure_channel(server.target) as channel:
            call = channel.unary_unary(
                "/tensorflow.serving.ModelService/GetModelStatus",
                messages.GetModelStatusRequest.SerializeToString,
                messages.GetModelStatusResponse.FromString,
            )
            for status in call(request, timeout=10).model_version_status:
                states[status.version] = status.state, status.status.error_message

    look()
    assert states[2][0] == messages.ModelVersionStatus.AVAILABLE
    publish(store)
    wait_until(lambda: bool(look() or states.get(3, (0, ""))[1]), "version 3 is refused")
    assert "3 is refused: it has no signature (assets.extra/model.sig)" in states[3][1]
    assert states[2][0] == messages.ModelVersionStatus.AVAILABLE
    shutil.copytree(store.path("score", 2), store.root / "score/copy")
    (store.root / "score/copy").rename(store.root / "score/4")
    wait_until(lambda: bool(look() or states.get(4, (0, ""))[1]), "version 4 is refused")
    assert "4 is refused: it is signed as score version 2" in states[4][1]
    assert states[2][0] == messages.ModelVersionStatus.AVAILABLE


def test_a_server_does_not_start_with_a_key_that_is_none(tmp_path: Path, start: StartServer) -> None:
    (tmp_path / "none.pem").write_text("no key")
    (tmp_path / "models").mkdir()
    server = start(f"--model_root={tmp_path / 'models'}", f"--require_signature={tmp_path / 'none.pem'}", wait=False)
    assert server.process.wait(60) != 0
    assert "--require_signature: " in server.log.read_text()
    assert "is no public key of an elliptic curve" in server.log.read_text()

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bookserve.clients.admin_client import AdminClient
from bookserve.clients.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from bookserve.clients.grpc_client import GrpcClient
from model_servers import Server, server_starter, write_scale_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("admin") / "models"
    for name in ("a", "b"):
        for version in (1, 2):
            write_scale_model(root / name, version, float(version))
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    token = models.parent / "token"
    token.write_text("s3cret")
    with server_starter(models.parent) as start:
        yield start("--model_name=a", f"--model_base_path={models / 'a'}", f"--admin_token_file={token}")


def test_models_come_and_go(server: Server, models: Path) -> None:
    base_path = str(models / "b")
    with AdminClient(server.target, token="s3cret") as admin, GrpcClient(server.target) as client:
        admin.add_or_replace("b", base_path, latest=2)
        admin.add_or_replace("b", base_path, latest=2, labels={"stable": 1})
        answer = client.predict("b", {"x": np.ones((1, 3), np.float32)}, label="stable")
        assert (answer.version, answer.outputs["y"].tolist()) == (1, [[1, 1, 1]])
        assert [(model.name, model.base_path) for model in admin.models()] == [
            ("a", str(models / "a")),
            ("b", base_path),
        ]
        admin.add_or_replace("b", base_path, versions=(2,))
        assert list(admin.models()[1].model_version_policy.specific.versions) == [2]
        admin.remove("b")
        assert [model.name for model in admin.models()] == ["a"]


def test_errors(server: Server, models: Path) -> None:
    with AdminClient(server.target, token="s3cret") as admin:
        with pytest.raises(NotFound):
            admin.remove("b")
        with pytest.raises(InvalidArgument):
            admin.add_or_replace("b", "")
        with pytest.raises(PermissionDenied):  # outside of --allowed_model_roots
            admin.add_or_replace("b", "s3://bucket/b")
        with pytest.raises(FailedPrecondition):
            admin.add_or_replace("b", str(models / "b"), labels={"stable": 1})
    with AdminClient(server.target) as stranger, pytest.raises(PermissionDenied):
        stranger.models()

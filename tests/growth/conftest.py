"""Model servers over one store with a small model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_servers import StartServer, server_starter, write_scale_model

FLAGS = ("--enable_grpc_healthcheck_service", "--drain_seconds=10", "--drain_quiet_seconds=2")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    write_scale_model(tmp_path / "store" / "scale", 1, 1.0)
    with server_starter(tmp_path) as starter:
        yield lambda *flags, **options: starter(*FLAGS, f"--model_root={tmp_path / 'store'}", *flags, **options)

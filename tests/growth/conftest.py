"""Model servers over one store with a small model, alone and behind the proxy that a module calls PROXY."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from model_servers import Server, StartServer, server_starter, write_scale_model

FLAGS = ("--enable_grpc_healthcheck_service", "--drain_seconds=10", "--drain_quiet_seconds=2")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    write_scale_model(tmp_path / "store" / "scale", 1, 1.0)
    with server_starter(tmp_path) as starter:
        yield lambda *flags, **options: starter(*FLAGS, f"--model_root={tmp_path / 'store'}", *flags, **options)


@pytest.fixture
def growth(
    request: pytest.FixtureRequest, start: StartServer, tmp_path: Path
) -> Callable[[int], AbstractContextManager[tuple[list[Server], Any]]]:
    """So many servers, and the proxy in front of them."""

    @contextmanager
    def behind_the_proxy(count: int) -> Iterator[tuple[list[Server], Any]]:
        servers = [start() for _ in range(count)]
        place = tmp_path / "proxy"
        place.mkdir()
        with request.module.PROXY(place, servers) as proxy:
            yield servers, proxy

    return behind_the_proxy

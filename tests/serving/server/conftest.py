from collections.abc import Iterator
from pathlib import Path

import pytest

from model_servers import StartServer, server_starter


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    with server_starter(tmp_path) as start:
        yield start

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import batch_models
from bookserve.clients.command_line import main


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return batch_models.write_all(tmp_path_factory.mktemp("store"))


@pytest.fixture
def batch(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in this process, which tries no version in a child of it."""
    monkeypatch.setattr("bookserve.serving.server.models.trial.start", lambda: None)

    def run(*arguments: object, models_dir: Path = store) -> Result:
        wanted = ["batch", *map(str, arguments), "--models-dir", str(models_dir)]
        return CliRunner().invoke(main, wanted, catch_exceptions=False)

    return run

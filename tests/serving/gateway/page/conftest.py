from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from book_contracts import CONTRACTS, write_manifest, write_manifests
from gateway_pages import CHROMIUM, gateway, open_browser, open_page, write_vocabulary
from stand_in_models import OTHERS, FakeServer, serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not CHROMIUM:
            item.add_marker(pytest.mark.skip(reason="no Chromium at /usr/bin/chromium, and no chromium on PATH"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def stand_in() -> Iterator[FakeServer]:
    """A stand-in for a model server, with the models of the book and some others."""
    fake = FakeServer(models=(*CONTRACTS, *OTHERS))
    server = serve(fake)
    yield fake
    server.stop(None).wait()


@pytest.fixture(scope="session")
def url(stand_in: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway whose store has these models."""
    folder = tmp_path_factory.mktemp("gateway")
    store = write_manifests(folder / "models")
    for contract in OTHERS.values():
        write_manifest(store, contract, 3)
    write_vocabulary(store / "ptb")
    write_vocabulary(store / "mood")
    with gateway(stand_in.target, folder) as address:
        yield address


@pytest.fixture
def page(browser: Browser, stand_in: FakeServer, url: str) -> Iterator[Page]:
    """A page of the gateway, not loaded yet; all models are served."""
    stand_in.models = (*CONTRACTS, *OTHERS)
    with open_page(browser, url) as page:
        yield page

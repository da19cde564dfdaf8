"""The pages of a gateway with API keys, in a real Chromium: a person is asked for one, once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from book_contracts import write_manifests
from gateway_pages import gateway, open_page
from stand_in_models import FakeServer

KEY = "0123456789abcdef"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(stand_in: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("keyed")
    write_manifests(folder / "models", ["linear"])
    (folder / "keys").write_text(KEY)
    with gateway(stand_in.target, folder, f"--api-keys={folder / 'keys'}") as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with open_page(browser, url) as page:
        yield page


def test_a_person_is_asked_for_the_key_once_and_all_pages_have_it(page: Page) -> None:
    asked: list[str] = []

    def give(dialog) -> None:
        asked.append(dialog.message)
        dialog.accept(KEY)

    page.on("dialog", give)
    page.goto("/")
    expect(page.locator(".card h2")).to_have_text(["linear"])
    page.goto("/models/linear")
    expect(page.locator("h1").first).to_contain_text("linear")
    expect(page.locator("#health")).to_have_text("Version 3 answers")
    assert asked == ["This gateway needs an API key:"]


def test_the_programs_send_the_key_of_the_environment(page: Page, tmp_path: Path) -> None:
    page.on("dialog", lambda dialog: dialog.accept(KEY))
    page.goto("/models/linear")
    expect(page.locator("#code-json")).to_contain_text("predictions")
    expect(page.locator("#code-panel-curl")).to_contain_text("BOOKSERVE_API_KEY in the environment is your API key.")
    for program, command in (("curl", ["sh", "-c"]), ("python", [sys.executable, "-c"])):
        text = page.locator(f"#code-{program}").text_content() or ""
        assert KEY not in text
        keyed = os.environ | {"BOOKSERVE_API_KEY": KEY}
        done = subprocess.run([*command, text], env=keyed, capture_output=True, text=True, timeout=60)
        assert "predictions" in done.stdout, f"{text}\n{done.stdout}{done.stderr}"
    text = page.locator("#code-javascript").text_content() or ""
    assert "Authorization: `Bearer ${process.env.BOOKSERVE_API_KEY}`" in text


def test_without_the_key_the_page_says_what_is_missing(page: Page) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.goto("/")
    expect(page.locator("body")).to_contain_text("needs an API key")
    with page.expect_response(lambda response: response.url.endswith("/api/v1/models")):
        pass
    assert len(asked) == 1

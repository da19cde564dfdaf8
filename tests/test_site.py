"""The website of the documents: it has every page, no link that leads nowhere, and loads nothing from elsewhere."""

import functools
import http.server
import re
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser

from gateway_pages import CHROMIUM, open_browser

ROOT = Path(__file__).resolve().parents[1]
BUILD = runpy.run_path(str(ROOT / "docs/site/build.py"), run_name="build")
CONFIG = ROOT / "docs/site/mkdocs.yml"
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium on PATH")


def pages(nav: Any) -> Iterator[str]:
    """The paths that a `nav` of MkDocs names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def test_every_document_has_its_place() -> None:
    listed = list(pages(yaml.safe_load(CONFIG.read_text())["nav"]))
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in BUILD["documents"]())


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script defer src="https://cdn.example/a.js"></script>', "https://cdn.example/a.js"),
        ("<img alt=x src=//cdn.example/a.png>", "//cdn.example/a.png"),
        ('<link href="https://fonts.example/css" rel="stylesheet">', "https://fonts.example/css"),
        ("<style>@font-face { src: url(https://fonts.example/a.woff2) }</style>", "https://fonts.example/a.woff2"),
        ('<style>@import "https://fonts.example/a.css";</style>', "https://fonts.example/a.css"),
        ('<a href="https://example.com">a link</a> <link rel="canonical" href="https://example.com/">', ""),
        ('<script src="assets/a.js"></script><img src="../a.png">', ""),
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_found(html: str, loads: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(html)
    assert BUILD["foreign_loads"](tmp_path) == ([f"index.html loads {loads}"] if loads else [])


@pytest.fixture(scope="module")
def site() -> Path:
    done = subprocess.run(["make", "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "site"


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(site: Path, tmp_path: Path) -> None:
    """Tried on a copy of the documents; `site` has made the virtual environment."""
    for source in BUILD["with_files"](BUILD["documents"]()) | {ROOT / "docs/site/build.py", CONFIG}:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    with (tmp_path / "docs/int8.md").open("a") as page:
        page.write("\n[away](nowhere.md) [lost](engines.md#no-such-heading)\n")
    command = [ROOT / ".venv-site/bin/python", tmp_path / "docs/site/build.py", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'nowhere.md'" in done.stderr
    assert "no-such-heading" in done.stderr
    assert "mend these in the documents" in done.stderr


@pytest.mark.slow
def test_diagrams_are_drawn_into_the_page(site: Path) -> None:
    page = (site / "ARCHITECTURE.html").read_text()
    assert re.search(r"<svg [^>]*>.*clients/: Python.*</svg>", page, re.DOTALL)
    assert "```mermaid" not in page
    assert 'class="mermaid"' not in page


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.mark.slow
@needs_chromium
def test_no_page_asks_another_host(site: Path, url: str, browser: Browser) -> None:
    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    for path in sorted(site.rglob("*.html")):
        page.goto(f"{url}/{path.relative_to(site)}", wait_until="load")
    context.close()
    assert len(asked) > 100
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


@pytest.mark.slow
@needs_chromium
def test_the_pages_show_what_the_documents_have(url: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{url}/index.html")
    assert page.get_by_role("heading", name="bookserve").is_visible()
    pictures = page.locator("article img")
    assert pictures.count() == 2
    for place in range(2):
        pictures.nth(place).scroll_into_view_if_needed()
        assert pictures.nth(place).evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.get_by_role("link", name="docs/measurements.md").first.click()
    page.wait_for_url("**/docs/measurements.html")
    page.get_by_placeholder("Search").fill("population stability index")
    page.locator(".md-search-result__item").first.wait_for()
    assert page.locator('.md-search-result__item a[href*="export/"]').count() > 0
    page.close()

"""A gateway as a process, and its pages in a real Chromium, where they may report no error and ask nobody else."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from stand_in_models import WORDS

# The first, a package of its own in Debian, takes half the processor time: it draws no window.
_BROWSERS = ("/usr/bin/chromium-headless-shell", "/usr/bin/chromium", shutil.which("chromium"))
CHROMIUM = next((path for path in _BROWSERS if path and Path(path).exists()), "")
SEVEN = Path(__file__).resolve().parents[2] / "clients" / "examples" / "seven.png"
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
_MILLISECONDS = 20_000  # until a page shows what a test expects, on a busy machine
NOTICED = 5_000  # until a page shows that something changed, on an idle one


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, for as many pages as tests open."""
    expect.set_options(timeout=_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield browser
        browser.close()


@contextmanager
def gateway(model_server: str, folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """The address of a gateway over the store `folder`/models, which ends with the block."""
    command = [
        str(Path(sys.executable).with_name("bookserve")),
        "gateway",
        f"--port={port}",
        f"--model-server={model_server}",
        f"--models-dir={folder / 'models'}",
        "--drain-seconds=0",
        *options,
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    match = re.search(r"https?://127\.0\.0\.1:\d+", process.stdout.readline())
    assert match, (folder / "log").read_text()
    try:
        yield match[0]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        process.stdout.close()


@contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page whose `goto` takes paths of the gateway at `url`. In the end it has reported no error and asked nobody
    but the gateway.
    """
    context = browser.new_context(base_url=url, **{"viewport": {"width": 1000, "height": 900}, **options})
    context.set_default_timeout(_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    foreign: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "blob:", "data:")) else foreign.append(request.url),
    )
    yield page
    context.close()
    assert foreign == []
    assert [error for error in errors if "Failed to load resource" not in error] == []


def wait_for(page: Page, function: str, argument: object = None, seconds: float = 20.0) -> None:
    """Until the JavaScript function says true on the page.

    Playwright's own `wait_for_function` asks a second time by `eval`, which the page's policy forbids.
    """
    end = time.monotonic() + seconds
    while page.evaluate(function, argument) is not True:
        assert time.monotonic() < end, f"not within {seconds} s: {function}"
        page.wait_for_timeout(20)


def write_vocabulary(model: Path, version: int = 3) -> None:
    """Adds the vocabulary of the stand-in models of words to a version."""
    (model / str(version) / "assets").mkdir()
    (model / str(version) / "assets" / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))

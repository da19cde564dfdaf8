"""Every page by its screenshot, in light and dark, on a phone and on a wide screen: nothing overlaps, is cut off, moves
by itself, or is painted in the colour of its ground.

The pictures are judged by themselves, not by older ones: another machine has other fonts. $SCREENSHOTS is a folder that
they are kept in.
"""

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

import photos
from book_contracts import CONTRACTS
from page_checks import check_axe, load
from stand_in_models import OTHERS, FakeServer

pytestmark = pytest.mark.slow

SCHEMES = ("light", "dark")
WIDTHS = (360, 1600)
MISSING = "/models/nobody/nothing"
FEW = ("/", "/models/tox21")
REST = (MISSING, "/docs", *(f"/models/{name}" for name in (*CONTRACTS, *OTHERS) if f"/models/{name}" not in FEW))
LEAST_CONTRAST = 2.5  # of the lightest and the darkest pixel of a text, whose letters may be thinner than a pixel

# What a person sees of the page as boxes: each text's lines, controls and pictures, with whether it is painted in full.
BOXES = """() => {
  const shown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const hidden = (element) => element.closest(".skip, .bars caption, #operations, svg, [aria-hidden=true]");
  const boxes = [];
  const add = (element, kind, rects, text) => {
    for (const { left, top, right, bottom } of rects) {
      if (right - left < 2 || bottom - top < 2) continue;
      const scroll = element.closest(".scrolls, pre, .tabs, textarea");
      const frame = scroll?.getBoundingClientRect();
      if (frame && (right > frame.right || bottom > frame.bottom || left < frame.left || top < frame.top)) continue;
      const box = [left + scrollX, top + scrollY, right + scrollX, bottom + scrollY];
      boxes.push({ kind, text: text.trim().slice(0, 40), box });
    }
  };
  for (const element of document.body.querySelectorAll("*")) {
    if (!shown(element) || hidden(element)) continue;
    if (element.matches("input:not([type=file]), select, textarea, canvas, img, progress")) {
      const name = element.id || element.alt || element.type || "";
      add(element, element.localName, [element.getBoundingClientRect()], name);
      continue;
    }
    for (const node of element.childNodes) {
      if (node.nodeType !== Node.TEXT_NODE || !node.data.trim()) continue;
      // In preformatted text blanks have boxes of their own, in which nothing is painted.
      for (const { index, 0: part } of node.data.matchAll(element.closest("pre") ? /\\S+/g : /[^]+/g)) {
        const range = document.createRange();
        range.setStart(node, index);
        range.setEnd(node, index + part.length);
        add(element, "text", range.getClientRects(), part);
      }
    }
  }
  return boxes;
}"""
CUT = """() => [...document.body.querySelectorAll("button, a, label, th, td, h1, h2, p, output, summary, .button")]
  .filter((element) => element.checkVisibility() && !element.closest("#operations, .skip"))
  .filter((element) => !["visible", "auto", "scroll"].includes(getComputedStyle(element).overflowX))
  .filter((element) => element.scrollWidth > element.clientWidth + 1)
  .map((element) => element.id || element.textContent.slice(0, 40))"""


def shot(page: Page) -> Image.Image:
    """The whole page as it is painted."""
    return Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled", caret="hide"))).convert("RGB")


def settled(page: Page) -> tuple[list[dict[str, Any]], Image.Image]:
    """The boxes of a page and its picture, of which nothing arrived in between."""
    boxes, deadline = None, time.monotonic() + 20
    while boxes != (found := page.evaluate(BOXES)):
        assert time.monotonic() < deadline, "the page does not come to rest"
        boxes, picture = found, shot(page)
    return found, picture


def judge(page: Page, path: str, state: str = "") -> None:
    """Finds nothing wrong with a page as it stands, in either scheme and on either screen."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            told = f"{path} {state} {scheme} {width}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, told
            boxes, picture = settled(page)
            _keep(picture, told)
            assert picture.width == width, told
            assert overlaps(boxes) == [], told
            assert page.evaluate(CUT) == [], told
            grey = luminance(picture)
            assert pale(grey, boxes) == [], told
            ground = float(np.median(grey))
            assert ground > 0.7 if scheme == "light" else ground < 0.1, told
        check_axe(page)


def overlaps(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of boxes that lie on each other by more than two pixels in both directions."""
    found = []
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            picks = zip((max, max, min, min), one["box"], other["box"], strict=True)
            left, top, right, bottom = (pick(a, b) for pick, a, b in picks)
            if right - left > 2 and bottom - top > 2:
                found.append((f"{one['kind']} {one['text']}", f"{other['kind']} {other['text']}"))
    return found


def luminance(picture: Image.Image) -> npt.NDArray[np.float64]:
    """The relative luminance of each pixel, 0 to 1 (WCAG 2)."""
    levels = np.asarray(picture).astype(np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def pale(grey: npt.NDArray[np.float64], boxes: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """The texts that are hardly to be told from what they are painted on."""
    found = []
    for one in boxes:
        if one["kind"] != "text":
            continue
        left, top, right, bottom = (round(value) for value in one["box"])
        part = grey[max(0, top) : bottom, max(0, left) : right]
        if part.size and (contrast := (part.max() + 0.05) / (part.min() + 0.05)) < LEAST_CONTRAST:
            found.append((one["text"], round(float(contrast), 2)))
    return found


def _keep(picture: Image.Image, told: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        Path(folder).mkdir(exist_ok=True)
        picture.save(Path(folder) / f"{told.strip('/').replace('/', '-').replace(' ', '_')}.png")


def open_path(page: Page, path: str) -> None:
    if path == MISSING:
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
    else:
        load(page, path)


@pytest.mark.parametrize("path", [*FEW, *REST])
def test_every_page_is_whole_in_both_schemes_on_both_screens(page: Page, path: str) -> None:
    open_path(page, path)
    judge(page, path)


def test_what_mattered_is_whole(page: Page) -> None:
    load(page, "/models/tox21")
    page.get_by_role("button", name="Which part mattered?").click()
    expect(page.locator("#why-content img")).to_be_visible()
    judge(page, "/models/tox21", "why")
    load(page, "/models/tictactoe")
    page.get_by_role("button", name="Row 1, column 1: free").click()
    expect(page.locator("#why-cost")).to_have_text("Asks the model 2 times more.")
    page.get_by_role("button", name="Which part mattered?").click()
    expect(page.locator("#why-content .marks")).to_be_visible()
    judge(page, "/models/tictactoe", "why")


def test_a_photograph_its_refusal_and_a_batch_are_whole(page: Page) -> None:
    load(page, "/models/cifar10")
    files = [
        {"name": f"{name}.{name.lower()}", "mimeType": "", "buffer": photos.file_of(name)} for name in ("JPEG", "HEIC")
    ]
    page.locator("#batch-files").set_input_files([*files, {"name": "none.png", "mimeType": "", "buffer": b"none"}])
    expect(page.locator("#batch-count")).to_contain_text("3 of 3, 1 of them refused")
    page.locator("#cifar10-file").set_input_files(files[1])
    expect(page.locator("#code-curl")).to_contain_text("HEIC.heic")
    judge(page, "/models/cifar10", "photograph")
    page.locator("#cifar10-file").set_input_files({"name": "none.heic", "mimeType": "", "buffer": b"none"})
    expect(page.locator("#cifar10-message")).not_to_be_empty()
    judge(page, "/models/cifar10", "refusal")


def test_a_page_whose_server_went_is_whole(page: Page, stand_in: FakeServer) -> None:
    load(page, "/models/wine")
    stand_in.models = ()
    expect(page.locator("body.stale")).to_be_attached()
    judge(page, "/models/wine", "away")
    page.goto("/")
    expect(page.locator(".card.away")).to_have_count(12)
    judge(page, "/", "away")


def test_a_page_that_stands_still_is_painted_the_same_twice(page: Page) -> None:
    load(page, "/models/wine")
    page.emulate_media(reduced_motion="reduce")
    expect(page.locator("#health")).to_have_text("Version 3 answers")
    _, first = settled(page)  # taken once, it also has the pictures that load when they are seen
    with page.expect_response("**/state"):  # what is asked every two seconds changes nothing
        pass
    second = shot(page)
    assert first.size == second.size
    assert np.array_equal(np.asarray(first), np.asarray(second))

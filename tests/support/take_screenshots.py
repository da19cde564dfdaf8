"""Takes the README's pictures of the gateway's pages: `make screenshots`, with `make serve` running."""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "serving" / "gateway" / "screenshots"
SEVEN = ((0.28, 0.22), (0.72, 0.22), (0.60, 0.45), (0.46, 0.82))


def main(url: str) -> None:
    """Writes page.png, the list of models, model.png, the top of a model's page, and api.png, a part of /docs."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1060, "height": 1250}, color_scheme="light", reduced_motion="reduce")
        page.goto(url)
        expect(page.locator("#health")).to_have_text("7 of 7 models ready")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1000)  # until the pictures are painted
        page.screenshot(path=FOLDER / "page.png", full_page=True)
        page.set_viewport_size({"width": 1060, "height": 900})
        page.goto(f"{url}/models/mnist")
        draw_seven(page)
        page.screenshot(path=FOLDER / "model.png")
        page.goto(f"{url}/docs")
        molecules = page.locator("#operations-models-predictTox21")
        molecules.locator(".opblock-summary-control").click()
        molecules.get_by_role("button", name="Try it out").click()
        molecules.get_by_role("button", name="Execute").click()
        expect(molecules.locator(".live-responses-table")).to_contain_text("200")
        # What may be answered, which follows, is many times as high.
        molecules.locator(".responses-table:not(.live-responses-table)").evaluate("table => table.remove()")
        molecules.screenshot(path=FOLDER / "api.png")
        browser.close()
    for path in FOLDER.glob("*.png"):  # of flat colours, so 256 of them do
        with Image.open(path) as taken:
            taken.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
                path, optimize=True
            )


def draw_seven(page: Page) -> None:
    """Draws a digit and waits for its class."""
    canvas = page.locator("#mnist-canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in SEVEN]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=12)
    page.mouse.up()
    expect(page.locator("#mnist-class")).to_have_text("7")


if __name__ == "__main__":
    main(sys.argv[1])

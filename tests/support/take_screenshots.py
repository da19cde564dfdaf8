"""Takes the README's pictures of the gateway's pages: `make screenshots`, with `make serve` running."""

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "serving" / "gateway" / "screenshots"
SEVEN = ((0.28, 0.22), (0.72, 0.22), (0.60, 0.45), (0.46, 0.82))


def main(url: str) -> None:
    """Writes page.png, the seven panels, and api.png, the page /docs."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1060, "height": 900}, color_scheme="light")
        page.goto(url)
        expect(page.locator("#health")).to_have_text("7 of 7 models ready")
        fill_panels(page)
        page.screenshot(path=FOLDER / "page.png", full_page=True)
        page.goto(f"{url}/docs")
        molecules = page.locator("#predictTox21")
        molecules.get_by_role("button", name="Try it").click()
        expect(molecules.locator(".answer")).to_contain_text("200")
        molecules.screenshot(path=FOLDER / "api.png")
        browser.close()


def fill_panels(page: Page) -> None:
    """Gives every panel something to answer; drawing waits until nothing moves any more."""
    for output in ("#linear-y", "#logistic-class", "#cifar10-class"):
        expect(page.locator(output)).not_to_have_text("–")
    expect(page.locator("#ptb-next button").first).to_be_visible()
    expect(page.locator("#tox21-drawing")).to_be_visible()
    canvas = page.locator("#mnist-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in SEVEN]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=12)
    page.mouse.up()
    expect(page.locator("#mnist-class")).to_have_text("7")
    page.locator("#tictactoe-board button").nth(4).click()
    expect(page.locator("#tictactoe-status")).to_have_text("Your move: you are X.")
    page.evaluate("window.scrollTo(0, 0)")


if __name__ == "__main__":
    main(sys.argv[1])

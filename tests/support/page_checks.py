"""A page of the gateway's stand-in store, loaded whole, and what axe-core finds in it."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN

# Beside axe's own choice: targets of 24 pixels, and names that hold the visible text.
OPTIONS = {
    "resultTypes": ["violations"],
    "rules": {"target-size": {"enabled": True}, "label-content-name-mismatch": {"enabled": True}},
}
# Swagger UI's own part of /docs, whose colours and names are not ours.
FOREIGN = {"exclude": [["#operations"]]}


def load(page: Page, path: str) -> None:
    """Opens a page and waits until it shows all that it shows by itself."""
    page.goto(path)
    if path == "/docs":
        expect(page.locator("#operations-gateway-readyz")).to_be_visible()
    elif path == "/":
        expect(page.locator(".card")).to_have_count(12)
    else:
        expect(page.locator("#card-content p").first).to_be_visible()
        name = path.removeprefix("/models/")
        if name in ("mnist", "letters"):
            page.locator(f"#{name}-file").set_input_files(SEVEN)
        if name != "mood":
            expect(page.locator(f"#{name}-version")).to_contain_text("version 3")


def check_axe(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, context=FOREIGN, options=OPTIONS).response["violations"]
        assert [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in found] == []

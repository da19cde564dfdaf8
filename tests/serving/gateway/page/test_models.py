"""The page of all models in a real Chromium."""

import json
import re
import shutil
from pathlib import Path

from playwright.sync_api import expect

from book_contracts import CONTRACTS, write_manifest
from bookserve.export.manifest import LOCATION
from gateway_pages import SEVEN, gateway, open_page
from stand_in_models import OTHERS, FakeServer

NOTICED = 5_000  # milliseconds, within which a page knows that something changed


def test_every_model_has_a_card_that_leads_to_its_page(page) -> None:
    page.goto("/")
    expect(page.locator("#health")).to_have_text("11 of 11 models ready")
    cards = page.locator(".card")
    assert sorted(cards.locator("h2").all_text_contents()) == sorted([*CONTRACTS, *OTHERS])
    wine = page.locator("#model-wine")
    expect(wine.locator(".task")).to_have_text("Classifies a row of numbers")
    expect(wine.locator(".state")).to_have_text("Version 3 answers")
    wine.click()
    expect(page).to_have_url(re.compile("/models/wine$"))
    expect(page).to_have_title("wine · bookserve")


def test_a_search_leaves_the_models_that_it_names(page) -> None:
    page.goto("/")
    expect(page.locator(".card")).to_have_count(11)
    page.get_by_label("Search").fill("PICTURE")
    expect(page.locator(".card:visible h2")).to_have_text(["cifar10", "letters", "mnist"])
    expect(page.locator("#found")).to_have_text("3 of 11 models")
    page.get_by_label("Search").fill("nothing like it")
    expect(page.locator(".card:visible")).to_have_count(0)
    expect(page.locator("#found")).to_have_text("No model has this in its name or task.")
    page.get_by_label("Search").fill("")
    expect(page.locator(".card:visible")).to_have_count(11)


def test_a_card_shows_the_figure_and_the_picture_and_trained_models_come_first(
    browser, stand_in: FakeServer, tmp_path: Path
) -> None:
    stand_in.models = ("wine", "double", "letters")
    store = tmp_path / "models"
    for version, accuracy in ((1, 0.5), (2, 0.75), (3, 0.875)):
        change_manifest(store, "wine", version, metrics={"test": {"accuracy": accuracy, "rows": 8}})
    change_manifest(store, "letters", 3)
    report = (store / "letters" / "3" / LOCATION).parent / "report"
    report.mkdir()
    shutil.copy(SEVEN, report / "curves.png")
    change_manifest(store, "double", 3, data=None, source={"format": "onnx", "name": "double.onnx", "sha256": "0" * 64})
    with gateway(stand_in.target, tmp_path) as url, open_page(browser, url) as page:
        page.goto("/")
        expect(page.locator(".card h2")).to_have_text(["letters", "wine", "double"])
        expect(page.locator("#model-wine .figure")).to_have_text("accuracy 0.875 (test)")
        expect(page.locator("#model-wine .sparkline")).to_be_visible()
        expect(page.locator("#model-double .look")).to_be_hidden()
        picture = page.locator("#model-letters img")
        expect(picture).to_be_visible()
        page.wait_for_function("document.querySelector('#model-letters img').naturalWidth > 0")


def change_manifest(store: Path, model: str, version: int, **changes: object) -> None:
    """Writes a version whose manifest has these fields; one that is None is left out."""
    write_manifest(store, OTHERS[model], version)
    path = store / model / str(version) / LOCATION
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_the_list_learns_within_five_seconds_what_is_served(page, stand_in: FakeServer) -> None:
    page.goto("/")
    state = page.locator("#model-double .state")
    expect(state).to_have_text("Version 3 answers")
    stand_in.models = tuple(name for name in stand_in.models if name != "double")
    expect(state).to_have_text("Not served now", timeout=NOTICED)
    expect(page.locator("#health")).to_have_text("10 of 11 models ready")
    stand_in.models = (*stand_in.models, "double")
    expect(state).to_have_text("Version 3 answers", timeout=NOTICED)


def test_without_the_gateway_the_list_is_marked_as_old(browser, stand_in: FakeServer, tmp_path: Path) -> None:
    write_manifest(tmp_path / "models", OTHERS["wine"], 3)
    stand_in.models = ("wine",)
    with gateway(stand_in.target, tmp_path) as url, open_page(browser, url) as page:
        page.goto("/")
        expect(page.locator("#model-wine .state")).to_have_text("Version 3 answers")
        page.route("**/api/**", lambda route: route.abort())
        expect(page.locator("body.stale")).to_be_attached(timeout=NOTICED)
        expect(page.locator("#health")).to_contain_text("The gateway does not answer")
        expect(page.locator("#health")).to_contain_text("What is shown is from before")
        page.unroute("**/api/**")
        expect(page.locator("body.stale")).not_to_be_attached(timeout=NOTICED)

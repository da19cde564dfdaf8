"""The page of all models in a real Chromium."""

import re

import pytest
from playwright.sync_api import expect

from book_contracts import CONTRACTS
from gateway_pages import SEVEN, wait_for
from stand_in_models import OTHERS, FakeServer


def test_every_model_has_a_card_that_leads_to_its_page(page) -> None:
    page.goto("/")
    expect(page.locator("#health")).to_have_text("12 of 12 models ready")
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
    expect(page.locator(".card")).to_have_count(12)
    page.get_by_label("Search").fill("PICTURE")
    expect(page.locator(".card:visible h2")).to_have_text(["cifar10", "letters", "mnist"])
    expect(page.locator("#found")).to_have_text("3 of 12 models")
    page.get_by_label("Search").fill("nothing like it")
    expect(page.locator(".card:visible")).to_have_count(0)
    expect(page.locator("#found")).to_have_text("No model has this in its name or task.")
    page.get_by_label("Search").fill("")
    expect(page.locator(".card:visible")).to_have_count(12)


def test_a_card_shows_the_figure_and_the_picture_and_trained_models_come_first(page) -> None:
    page.goto("/")
    expect(page.locator(".card")).to_have_count(12)
    names = page.locator(".card h2").all_text_contents()
    assert names == [*sorted(name for name in names if name != "double"), "double"]  # which was added as a file
    expect(page.locator("#model-wine .figure")).to_have_text("accuracy 0.875 (test)")
    expect(page.locator("#model-wine .sparkline")).to_be_visible()
    expect(page.locator("#model-double .look")).to_be_hidden()
    expect(page.locator("#model-letters img")).to_be_visible()
    wait_for(page, "() => document.querySelector('#model-letters img').naturalWidth > 0")


@pytest.mark.slow
def test_the_list_learns_what_is_served(page, stand_in: FakeServer) -> None:
    page.goto("/")
    state = page.locator("#model-double .state")
    expect(state).to_have_text("Version 3 answers")
    stand_in.models = tuple(name for name in stand_in.models if name != "double")
    expect(state).to_have_text("Not served now")
    expect(page.locator("#health")).to_have_text("11 of 12 models ready")
    stand_in.models = (*stand_in.models, "double")
    expect(state).to_have_text("Version 3 answers")


@pytest.mark.slow
def test_without_the_gateway_the_list_is_marked_as_old(page) -> None:
    page.goto("/")
    expect(page.locator("#model-wine .state")).to_have_text("Version 3 answers")
    page.route("**/api/**", lambda route: route.abort())
    expect(page.locator("body.stale")).to_be_attached()
    expect(page.locator("#health")).to_contain_text("The gateway does not answer")
    expect(page.locator("#health")).to_contain_text("What is shown is from before")
    page.unroute("**/api/**")
    expect(page.locator("body.stale")).not_to_be_attached()


@pytest.mark.slow
def test_every_model_is_tried_on_its_card(page) -> None:
    page.goto("/")
    expect(page.locator(".card")).to_have_count(12)
    answers = {
        "linear": re.compile(r"-?\d"),
        "logistic": re.compile(r"\d"),
        "tox21": re.compile(r" %$"),
        "ptb": re.compile("^“.+”, “.+”, “.+”$"),
        "tictactoe": re.compile("^move "),
        "wine": re.compile("^(good|bad) "),
        "double": re.compile("."),
        "mnist": re.compile(r"^\d "),
    }
    for name, expected in answers.items():
        small = page.locator(f"#model-{name} .small")
        small.locator("summary").focus()
        page.keyboard.press("Enter")
        if name == "mnist":
            small.locator("input").set_input_files(SEVEN)
        else:
            small.get_by_role("button").click()
        expect(small.locator("output")).to_have_text(expected)
    expect(page).to_have_url(re.compile("/$"))
    tox21 = page.locator("#model-tox21 .small")
    tox21.get_by_label("SMILES").fill("CCX")
    tox21.get_by_label("SMILES").press("Enter")
    expect(tox21.locator(".message")).to_contain_text("at character 3")
    expect(tox21.get_by_label("SMILES")).to_have_attribute("aria-invalid", "true")
    expect(tox21.locator("output")).to_be_empty()
    wine = page.locator("#model-wine .small")
    wine.locator("input").fill("1, x, 3")
    wine.get_by_role("button").click()
    expect(wine.locator(".message")).to_have_text("Please give numbers with commas between them.")
    page.get_by_label("Search by").fill("choose a")
    expect(page.locator(".card:visible")).to_have_count(0)

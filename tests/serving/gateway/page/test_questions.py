"""The list of this browser's last questions to a model."""

import json

import pytest
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN

KEY = "bookserve-questions-tox21"


def visit(page: Page, path: str = "/models/tox21") -> None:
    page.goto(path)
    expect(page.locator(f"#{path.rpartition('/')[2].partition('#')[0]}-version")).to_contain_text("version 3")


def ask(page: Page, smiles: str) -> None:
    page.locator("#tox21-smiles").fill(smiles)
    expect(page.locator("#tox21-drawing")).to_have_attribute("alt", f"Structure of {smiles}")
    page.wait_for_timeout(1_100)  # a question that follows at once takes the place of the one before


def kept(page: Page) -> list[dict]:
    return json.loads(page.evaluate(f"localStorage.getItem('{KEY}')") or "[]")


def test_questions_are_listed_asked_again_and_cleared_by_keyboard(page) -> None:
    visit(page)
    title, links = page.locator("#questions-title"), page.locator("#questions-list a")
    expect(title).to_have_text("Your last questions")  # what the page asks by itself is no question of a person
    ask(page, "CCO")
    ask(page, "CCCN")
    ask(page, "CCO")
    expect(title).to_have_text("Your last questions (2)")
    page.locator("#tox21-smiles").fill("CCX")
    expect(page.locator("#tox21-message")).to_contain_text("character 3")
    expect(title).to_have_text("Your last questions (2)")
    visit(page)
    expect(title).to_have_text("Your last questions (2)")
    title.focus()
    page.keyboard.press("Enter")
    expect(links).to_have_text(["CCO", "CCCN"])
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#tox21-smiles")).to_have_value("CCCN")
    expect(page.locator("#tox21-drawing")).to_have_attribute("alt", "Structure of CCCN")
    expect(links).to_have_text(["CCO", "CCCN"])
    page.keyboard.press("Tab")
    expect(page.locator("#questions-clear")).to_be_focused()
    page.keyboard.press("Enter")
    expect(links).to_have_count(0)
    expect(title).to_be_focused()
    assert kept(page) == []


@pytest.mark.slow
def test_the_list_is_bounded_and_what_others_wrote_into_it_is_left_out(page) -> None:
    visit(page)
    one = {"hash": "#try=%7B%22smiles%22%3A%22C%22%7D", "shown": "<b>C</b>", "answer": "", "version": 3, "at": 1}
    others = [{**one, "hash": "javascript:alert(1)"}, {**one, "hash": "#try=" + "C" * 9_000}, {"hash": 7}, None, 7]
    written = [*others, *({**one, "shown": f"<b>{number}</b>"} for number in range(30))]
    page.evaluate(f"written => localStorage.setItem('{KEY}', JSON.stringify(written))", written)
    visit(page)
    expect(page.locator("#questions-title")).to_have_text("Your last questions (20)")
    page.locator("#questions-title").click()
    expect(page.locator("#questions-list a").first).to_have_text("<b>0</b>")
    ask(page, "CCO")
    assert [entry["shown"] for entry in kept(page)][:2] == ["CCO", "<b>0</b>"]
    assert len(kept(page)) == 20
    page.evaluate(f"localStorage.setItem('{KEY}', 'no JSON')")
    visit(page)
    expect(page.locator("#questions-title")).to_have_text("Your last questions")


@pytest.mark.slow
def test_what_is_drawn_is_kept_and_a_photograph_is_not(page) -> None:
    page.goto("/models/mnist")
    page.locator("#mnist-file").set_input_files(SEVEN)
    expect(page.locator("#mnist-version")).to_contain_text("version 3")
    expect(page.locator("#questions-title")).to_have_text("Your last questions")
    page.locator("#mnist-clear").click()
    page.locator("#mnist-canvas").focus()
    page.keyboard.down(" ")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    page.keyboard.up(" ")
    expect(page.locator("#questions-title")).to_have_text("Your last questions (1)")
    page.locator("#questions-title").click()
    expect(page.locator("#questions-list a")).to_have_text("A drawing of 1 stroke")

"""Which part of an input mattered, on a model's page."""

import re

import pytest
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN


def explain(page: Page, model: str) -> None:
    expect(page.locator(f"#{model}-version")).to_contain_text("version 3")
    page.get_by_role("button", name="Which part mattered?").click()


def test_the_number_of_a_row_that_matters_comes_first(page) -> None:
    page.goto("/models/wine")
    expect(page.locator("#wine-version")).to_contain_text("version 3")
    page.get_by_label("acid").fill("-3")  # the only one that the stand-in reads
    page.get_by_label("sugar").fill("7")
    expect(page.locator("#code-json")).to_contain_text("7")
    expect(page.locator("#why-cost")).to_have_text("Asks the model 3 times more.")
    explain(page, "wine")
    rows = page.locator("#why-content tbody tr")
    expect(rows.first).to_have_text("acid 0 instead of -3-0.4526")  # "bad" falls from 0.9526 to 0.5
    expect(rows.nth(1).locator("td")).to_have_text("0")
    page.get_by_label("acid").fill("3")
    expect(page.locator("#why-content table")).to_have_count(0)  # it was of another row


@pytest.mark.slow
def test_the_word_of_a_text_that_matters_comes_first(page) -> None:
    page.goto("/models/mood")
    page.locator("#mood-text").fill("the stock rose")  # the stand-in reads the last word only
    explain(page, "mood")
    rows = page.locator("#why-content tbody tr")
    expect(rows.first.locator("th")).to_have_text("rose")
    expect(rows.first.locator("td")).to_have_text("-5")  # "stock" is word 5, "rose" word 10
    expect(rows.nth(1).locator("td")).to_have_text("0")


@pytest.mark.parametrize("model", ["letters", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_the_cells_of_a_picture_that_matter_are_marked(page, model: str) -> None:
    page.goto(f"/models/{model}")
    expect(page.locator(f"#{model}-file")).to_be_attached()
    page.locator(f"#{model}-file").set_input_files(SEVEN)
    expect(page.locator("#why-cost")).to_have_text("Asks the model 36 times more.")
    explain(page, model)
    expect(page.locator("#why-content canvas")).to_be_visible()
    marked = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value, at) => at % 4 === 0 && value - data[at + 2] > 60);
    }"""
    expect(page.locator("#why-content .hint")).to_contain_text("its score falls by 1.")  # each class is 0 or 1
    assert page.locator("#why-content canvas").evaluate(marked)


@pytest.mark.slow
def test_where_there_is_nothing_to_leave_out_nothing_is_offered(page) -> None:
    page.goto("/models/linear")
    expect(page.locator("#linear-version")).to_contain_text("version 3")
    expect(page.locator("#why")).to_be_hidden()
    page.goto("/models/mood")
    page.locator("#mood-text").fill("rose")
    expect(page.locator("#why-cost")).to_have_text("There is nothing to leave out.")
    expect(page.locator("#why-ask")).to_be_disabled()
    page.goto("/models/double")
    expect(page.locator("#double-version")).to_contain_text("version 3")
    expect(page.locator("#why")).to_be_hidden()


@pytest.mark.slow
def test_the_atoms_of_a_molecule_that_matter_are_marked(page) -> None:
    page.goto("/models/tox21")
    page.get_by_label("SMILES").fill("CCO")
    expect(page.locator("#code-json")).to_contain_text("CCO")
    expect(page.locator("#why-cost")).to_have_text("Asks the model once more for each atom, at most 100 times.")
    with page.expect_response(lambda response: "weights=" in response.url) as drawn:
        explain(page, "tox21")
    assert drawn.value.url.endswith("/drawing?smiles=CCO&weights=75%2C100%2C75")  # 3, 4 and 3 of the 6 bits are theirs
    picture = page.locator("#why-content img")
    expect(picture).to_be_visible()
    assert picture.evaluate("img => img.decode().then(() => img.naturalWidth)") == 360
    expect(picture).to_have_attribute("alt", re.compile("Orange atoms raise “SR-p53”"))
    rows = page.locator("#why-content tbody tr")
    expect(rows).to_have_text(["C 2+0.003907", "C 1+0.00293", "O 3+0.00293"])
    expect(page.locator("#why-content")).to_contain_text("(descriptors: weight, charges, rings …) stays the same")
    page.get_by_label("What of").select_option("NR-AR")
    expect(picture).to_have_attribute("alt", re.compile("Orange atoms raise “NR-AR”"))
    page.get_by_role("textbox", name="SMILES").fill("CCC")
    expect(picture).to_have_count(0)  # it was of another molecule


@pytest.mark.slow
def test_a_molecule_of_any_model_is_explained(page) -> None:
    page.goto("/models/solubility")
    page.get_by_label("SMILES").fill("CCO")
    expect(page.locator("#code-json")).to_contain_text("CCO")
    explain(page, "solubility")
    expect(page.locator("#why-content tbody tr").first).to_have_text("C 2+1")  # four bits of 512, a quarter each
    expect(page.get_by_label("What of")).to_have_value("log_s")


def test_the_marks_on_a_board_that_matter_are_shown(page) -> None:
    page.goto("/models/tictactoe")
    expect(page.locator("#tictactoe-version")).to_contain_text("version 3")
    expect(page.locator("#why-cost")).to_have_text("There is nothing to leave out.")
    page.get_by_role("button", name="Row 1, column 1: free").click()
    expect(page.locator("#why-cost")).to_have_text("Asks the model 2 times more.")  # the model took the last square
    explain(page, "tictactoe")
    marks = page.locator("#why-content .marks td")
    expect(marks).to_have_text(["X", "", "", "", "", "", "", "(X)", "O"])
    expect(marks.nth(8)).to_have_class("raises")
    rows = page.locator("#why-content .grid tbody tr")
    expect(rows).to_have_text(["O at row 3, column 3+0.046750", "X at row 1, column 1+0.0063490"])
    shares = marks.evaluate_all("cells => cells.map((cell) => getComputedStyle(cell).backgroundColor)")
    assert shares[8] == "rgb(242, 140, 51)"
    assert shares[0].startswith("rgba(242, 140, 51, 0.1")

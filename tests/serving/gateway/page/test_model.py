"""A model's own page in a real Chromium: what it remembers, how it says what is wrong, what it knows of versions."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from book_contracts import write_manifest
from bookserve.export.contracts import Contract, Tensor
from gateway_pages import NOTICED, gateway, open_page, wait_for
from stand_in_models import OTHERS, FakeServer, serve


def visit(page: Page, address: str) -> None:
    """Opens a model's page and waits until its panel is there."""
    page.goto(f"/models/{address}")
    expect(page.locator("#panel .try")).to_be_visible()


def test_the_address_reproduces_an_input_and_back_goes_to_the_one_before(page, browser, url: str) -> None:
    visit(page, "wine")
    shown = page.locator("#wine-class")
    expect(shown).to_have_text("good")
    assert "#" not in page.url  # what the page asks by itself is not the person's
    page.get_by_label("acid").fill("-3")
    expect(shown).to_have_text("bad")
    page.wait_for_timeout(1_100)  # inputs that follow each other faster are one entry
    page.get_by_label("sugar").fill("7")
    wait_for(page, "() => decodeURIComponent(location.hash) === '#try={\"x\":[[-3,7,0]]}'")
    with open_page(browser, url) as other:
        other.goto(page.url)
        expect(other.locator("#wine-class")).to_have_text("bad")
        expect(other.get_by_label("sugar")).to_have_value("7")
    page.go_back()
    expect(page.get_by_label("sugar")).to_have_value("0")
    expect(page.get_by_label("acid")).to_have_value("-3")
    page.go_back()
    expect(shown).to_have_text("good")
    page.go_forward()
    expect(shown).to_have_text("bad")
    page.get_by_role("link", name="Code", exact=True).click()  # a place on the page is no input
    expect(page.get_by_label("acid")).to_have_value("-3")


@pytest.mark.parametrize(
    ("model", "kept", "field", "value"),
    [
        ("linear", {"x": 10}, "#linear-y", "52.000"),
        pytest.param(
            "tox21", {"smiles": "CCO"}, "#tox21-bars tr:first-child td:last-child", "0.6 %", marks=pytest.mark.slow
        ),
        pytest.param("mood", {"text": "the rose"}, "#mood-class", "good", marks=pytest.mark.slow),
        pytest.param(
            "ptb", {"text": "the stock"}, "#ptb-next button:first-child", "market 88.0 %", marks=pytest.mark.slow
        ),
        ("double", {"inputs": [[1.5, -2]]}, "#double-answer", '[\n {\n  "y": [\n   3,\n   -4\n  ]\n }\n]'),
        pytest.param("cifar10", {"scene": "frog"}, "#cifar10-sure", "probability > 99.9 %", marks=pytest.mark.slow),
        ("mnist", {"strokes": [[60, 60, 200, 60, 120, 220]]}, "#mnist-sure", "probability > 99.9 %"),
        (
            "tictactoe",
            {"board": ["X", "", "", "", "O", "", "", "", ""], "human": "X"},
            "#tictactoe-status",
            "Your move: you are X.",
        ),
    ],
)
def test_each_kind_of_input_comes_back_from_its_address(page, model: str, kept: object, field: str, value: str) -> None:
    visit(page, f"{model}#try={quote(json.dumps(kept))}")
    expect(page.locator(field)).to_have_text(value)


@pytest.mark.slow
def test_an_address_that_holds_nonsense_is_as_good_as_none(page) -> None:
    for nonsense in ("{", quote('{"x": "a"}'), quote("[1, 2]"), quote("null"), "%"):
        visit(page, f"wine#try={nonsense}")
        expect(page.locator("#wine-class")).to_have_text("good")


def test_what_is_wrong_is_said_in_words_at_the_field_and_no_old_answer_stays(page) -> None:
    visit(page, "tox21")
    smiles, message = page.locator("#tox21-smiles"), page.locator("#tox21-message")
    expect(page.locator("#tox21-version")).to_contain_text("version 3")
    smiles.fill("C(C")
    expect(smiles).to_have_attribute("aria-invalid", "true")
    expect(message).to_contain_text("Please give a molecule as SMILES.")
    assert message.get_attribute("id") in (smiles.get_attribute("aria-describedby") or "")
    assert "smiles:" not in (message.text_content() or "")  # as the API's own detail begins
    expect(page.locator("#tox21-bars td:last-child").first).to_have_text("")
    expect(page.locator("#tox21-version")).to_have_text("")
    smiles.fill("CCO")
    expect(page.locator("#tox21-version")).to_contain_text("version 3")
    expect(smiles).not_to_have_attribute("aria-invalid", "true")
    expect(message).to_have_text("")
    nearest = page.locator("#tox21-nearest")
    expect(nearest).to_contain_text("Unlike the training molecules: these answers are less certain.")
    expect(nearest).to_contain_text("Nearest training molecule: similarity 0.19 of 1.")
    smiles.fill("aspirin")
    expect(nearest).to_have_text("Nearest training molecule: similarity 0.75 of 1.")
    smiles.fill("C(C")
    expect(nearest).to_be_empty()


@pytest.mark.slow
def test_a_number_is_asked_as_it_is_typed_or_refused(page) -> None:
    visit(page, "linear")
    number = page.locator("#linear-x")
    for x, y in (("100", "502.000"), ("-7.125", "-33.625")):  # beyond what the picture shows
        number.fill(x)
        expect(page.locator("#linear-y")).to_have_text(y)
        expect(number).to_have_value(x)
    number.fill("")
    expect(number).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#linear-message")).to_have_text("Please give a number.")
    expect(page.locator("#linear-y")).to_have_text("–")
    visit(page, "wine")
    page.get_by_label("sugar").fill("")
    expect(page.get_by_label("sugar")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#wine-message")).to_have_text("Please give a number for sugar.")
    expect(page.locator("#wine-class")).to_have_text("")


def test_words_to_generate_are_not_clamped(page) -> None:
    visit(page, "ptb")
    page.locator("#ptb-words").fill("51")
    page.locator("#ptb-generate").click()
    expect(page.locator("#ptb-message")).to_have_text("Please give a whole number of words from 1 to 50.")
    expect(page.locator("#ptb-words")).to_have_attribute("aria-invalid", "true")


def test_a_pasted_row_of_a_table_fills_the_fields(page) -> None:
    visit(page, "wine")
    paste = """(field, text) => {
      const data = new DataTransfer();
      data.setData("text", text);
      field.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, cancelable: true }));
    }"""
    page.get_by_label("acid").evaluate(paste, "-3\t1.5\t20")
    expect(page.get_by_label("age", exact=True)).to_have_value("20")
    expect(page.locator("#wine-class")).to_have_text("bad")


@pytest.mark.slow
def test_one_message_says_that_a_model_went_and_its_question_is_asked_when_it_is_back(
    page, stand_in: FakeServer
) -> None:
    visit(page, "wine")
    expect(page.locator("#wine-class")).to_have_text("good")
    stand_in.models = tuple(name for name in stand_in.models if name != "wine")
    expect(page.locator("#away")).to_contain_text("No version of this model is served now, since")
    expect(page.locator("body.stale")).to_be_attached()
    page.get_by_label("acid").fill("-3")
    expect(page.locator("#wine-class")).to_have_text("")
    expect(page.locator("#wine-message")).to_be_hidden()  # it would say the same again
    expect(page.locator("[role=alert]:visible")).to_have_count(1)
    stand_in.models = (*stand_in.models, "wine")
    expect(page.locator("#away")).to_be_hidden()
    expect(page.locator("#wine-class")).to_have_text("bad")


@pytest.mark.slow
def test_a_model_server_that_went_and_came_back_is_told_within_five_seconds(browser, tmp_path: Path) -> None:
    fake = FakeServer(models=("wine",))
    server = serve(fake)
    write_manifest(tmp_path / "models", OTHERS["wine"], 3)
    with gateway(fake.target, tmp_path) as url, open_page(browser, url) as page:
        visit(page, "wine")
        expect(page.locator("#health")).to_have_text("Version 3 answers")
        server.stop(None).wait()
        expect(page.locator("#away")).to_contain_text("The model server does not answer, since", timeout=NOTICED)
        expect(page.locator("#tensors tbody tr")).to_have_count(3)  # what the store knows stays
        server = serve(fake, int(fake.target.rpartition(":")[2]))
        expect(page.locator("#away")).to_be_hidden(timeout=NOTICED)
        expect(page.locator("body.stale")).not_to_be_attached()
    server.stop(None).wait()


def test_a_model_that_there_is_not_is_said_to_be_none(page) -> None:
    page.goto("/models/nobody")
    expect(page.locator("#away")).to_contain_text("There is no model of this name.")


def test_figures_versions_and_the_card_are_those_of_the_store(page) -> None:
    visit(page, "wine")
    expect(page.locator("#judged")).to_contain_text("accuracy 0.875. Its 95 % interval is 0.625 to 1.")
    expect(page.locator("#figures")).to_contain_text("off by 3.125 % on average")
    expect(page.locator("#figures td")).to_have_text(["0.875", "8", "8", "4", "100 %", "75 %", "–"])
    rows = {
        row.locator("th").text_content(): row.locator("td").all_text_contents()
        for row in page.locator("#versions tbody tr").all()
    }
    assert rows["state"] == ["answers", "in the store", "in the store", ""]
    assert rows["labels"] == ["canary", "", "", ""]
    assert rows["accuracy (test)"] == ["0.875", "0.75", "0.5", "+0.125"]
    card = page.locator("#card-content")
    expect(card.locator("p").first).to_have_text("It tastes <b>each</b> wine.")
    expect(card.locator("td")).to_have_text(["0.5", "", "80", "20"])
    expect(card.locator("th[scope=col]")).to_have_text(["split", "error", "train", "test"])
    expect(card.locator("strong")).to_have_text("Not for planes.")
    expect(card.locator("li")).to_have_text(["one row", "or more"])
    expect(card.locator("pre")).to_have_text('{"inputs": [[1, 2, 3]]}')


@pytest.mark.slow
def test_another_contract_is_offered_and_not_taken_by_itself(browser, stand_in: FakeServer, tmp_path: Path) -> None:
    stand_in.models = ("wine",)
    store = tmp_path / "models"
    write_manifest(store, OTHERS["wine"], 3)
    with gateway(stand_in.target, tmp_path) as url, open_page(browser, url) as page:
        visit(page, "wine")
        other = Contract(
            "wine", 2, (Tensor("x", "float32", (None, 3)),), (Tensor("scores", "float32", (None, 2)),), task="tensors"
        )
        write_manifest(store, other, 4)
        expect(page.locator("#changed")).to_contain_text("takes or gives something else", timeout=NOTICED)
        expect(page.locator("#wine-row")).to_be_visible()
        page.get_by_role("button", name="Load its form").click()
        expect(page.locator("#wine-body")).to_be_visible()


def test_the_graph_is_outlined_where_the_store_has_one(page) -> None:
    page.goto("/models/wine")
    rows = page.locator("#graph-content tbody tr")
    expect(rows).to_have_text(["MatMul1", "Softmax1", "xinfloat32[rows, 3]", "youtfloat32[rows, 2]"])
    expect(page.locator("#graph-content caption").first).to_contain_text("2 operations in the graph")
    page.goto("/models/double")
    expect(page.locator("#graph-content caption").first).to_contain_text("15 operations in the graph (model.tflite,")
    expect(rows.first).to_have_text("SVDF7")
    page.goto("/models/letters")
    expect(page.locator("#tensors-content table")).to_be_visible()
    expect(page.locator("#card-content p")).to_be_visible()
    expect(page.locator("#graph-content")).to_be_empty()


@pytest.mark.slow
def test_nothing_old_stays_beside_an_error_whatever_the_input_is(page: Page) -> None:
    problem = '{"type": "urn:bookserve:problem:bad-value", "status": 400, "expected": "another one", "given": "this"}'
    acts = {
        "ptb": lambda: page.locator("#ptb-text").fill("the dog"),
        "tox21": lambda: page.locator("#tox21-smiles").fill("CCN"),
        "tictactoe": lambda: page.locator("#tictactoe-board button").first.click(),
        "linear": lambda: page.locator("#linear-canvas").press("ArrowLeft"),
        "logistic": lambda: page.locator("#logistic-canvas").press("ArrowLeft"),
        "wine": lambda: page.locator("#wine-row input").first.fill("7"),
    }
    for model, act in acts.items():
        page.goto(f"/models/{model}")
        expect(page.locator("#code-json")).to_contain_text("predictions")
        page.route("**:predict", lambda route: route.fulfill(status=400, json=json.loads(problem)))
        act()
        expect(page.locator(f"#{model}-message")).to_have_text("Please give another one. This is this.")
        left = page.locator(f":is(#{model}-version, #{model}-value, #{model}-next, #why-content):not(:empty)")
        expect(left).to_have_count(0)
        expect(page.locator("#code-json")).not_to_contain_text("predictions")
        expect(page.locator("#why-ask")).to_be_disabled()
        assert page.locator(f"#{model}-bars progress").evaluate_all("all => all.every(({ value }) => value === 0)")
        page.unroute("**:predict")

"""Each kind of panel in a real Chromium, against a real gateway, whose model server is a stand-in."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN, open_page, wait_for

# Answers of the path in `holding` wait until the test gives them, in any order; an abort does not end the wait.
HELD = """
const asked = window.fetch;
window.held = [];
window.fetch = (path, { signal, ...options } = {}) =>
  path === window.holding ? new Promise((give) => window.held.push(give)) : asked(path, options);
window.give = async (place, content, status = 200) => {
  window.held[place](new Response(JSON.stringify(content), { status }));
  for (let turn = 0; turn < 3; turn++) await new Promise(requestAnimationFrame);
};
"""


@pytest.fixture
def held(page) -> Page:
    """A page on which a test gives the answers; not loaded yet."""
    page.add_init_script(HELD)
    return page


def visit(page: Page, model: str, *, answered: bool = True) -> None:
    """Opens the model's page, waits for its panel, and for the answer to what it asks by itself, if it does."""
    page.goto(f"/models/{model}")
    expect(page.locator("#panel .try")).to_be_visible()
    if answered:
        expect(page.locator(f"#{model}-version")).to_contain_text(f"{model} version 3")


def hold(page: Page, path: str) -> None:
    page.evaluate("path => { window.holding = path }", path)


def wait_held(page: Page, count: int) -> None:
    wait_for(page, "count => window.held.length === count", count)


def give(page: Page, place: int, content: object, status: int = 200) -> None:
    """Answers the question asked as number `place`, and waits until the page has had its turn."""
    page.evaluate("([place, content, status]) => window.give(place, content, status)", [place, content, status])


def stroke(page: Page, across: float = 0.3) -> None:
    canvas = page.locator("#mnist-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.mouse.up()


def digit_answer(digit: int) -> dict[str, object]:
    probabilities = {str(label): float(label == digit) for label in range(10)}
    return {"model": "mnist", "version": digit, "predictions": [{"class": str(digit), "probabilities": probabilities}]}


@pytest.mark.slow
def test_a_point_is_dragged_along_the_line(page) -> None:
    visit(page, "linear")
    expect(page.locator("#linear-y")).to_have_text("4.500")  # 5 * 0.5 + 2
    page.locator("#linear-x").fill("1")
    page.locator("#linear-x").press("Enter")
    expect(page.locator("#linear-y")).to_have_text("7.000")
    box = page.locator("#linear-canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 4, box["y"] + 60, steps=4)
    page.mouse.move(box["x"] - 100, box["y"] + 60)
    page.mouse.up()
    expect(page.locator("#linear-y")).to_have_text("-3.000")  # the left edge, x = -1
    page.locator("#linear-canvas").press("ArrowRight")
    expect(page.locator("#linear-y")).to_have_text("-2.750")


@pytest.mark.slow
def test_a_point_is_dragged_over_the_plane(page) -> None:
    visit(page, "logistic")
    expect(page.locator("#logistic-class")).to_have_text("1")
    box = page.locator("#logistic-canvas").bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.9 * box["height"])
    expect(page.locator("#logistic-class")).to_have_text("0")
    expect(page.locator("#logistic-bars tr").nth(0).locator("td").last).to_contain_text("98.")


def test_a_molecule_is_drawn_and_asked(page) -> None:
    visit(page, "tox21")
    expect(page.locator("#tox21-drawing")).to_be_visible()
    page.locator("#tox21-smiles").fill("CCO")
    expect(page.locator("#tox21-drawing")).to_have_attribute("alt", "Structure of CCO")
    expect(page.locator("#tox21-drawing")).to_be_visible()
    expect(page.locator("#tox21-bars tr").first.locator("td").last).to_have_text("0.6 %")  # 6 of 1024 bits
    assert page.locator("#tox21-drawing").evaluate("image => image.naturalWidth") == 360
    page.get_by_role("button", name="Aspirin").click()
    expect(page.locator("#tox21-smiles")).to_have_value("CC(=O)OC1=CC=CC=C1C(=O)O")
    page.locator("#tox21-smiles").fill("Aspirin")
    expect(page.locator("#tox21-known")).to_have_text("Its SMILES is CC(=O)Oc1ccccc1C(O)=O")
    expect(page.locator("#tox21-bars tr").first).to_contain_text("binds the androgen receptor")
    page.locator("#tox21-smiles").fill('<img src=x onerror="document.title=1">')
    expect(page.locator("#tox21-message")).to_contain_text("Please give a molecule as SMILES")
    expect(page.locator("#tox21-drawing")).to_be_hidden()
    assert page.title() == "tox21 · bookserve"


def test_the_fault_of_a_molecule_is_marked_at_its_place(page) -> None:
    visit(page, "tox21")
    smiles, message = page.locator("#tox21-smiles"), page.locator("#tox21-message")
    smiles.fill(f"{'C' * 30}(X)O")
    expect(message).to_contain_text("at character 32, 'X'")
    expect(message.locator(".place")).to_have_text(f"…{'C' * 19}(X)O")
    expect(message.locator("mark")).to_have_text("X")
    expect(smiles).to_have_attribute("aria-invalid", "true")
    expect(smiles).to_have_attribute("aria-describedby", "tox21-message")
    smiles.fill("CC O")
    expect(message.locator(".place")).to_have_text("CC O")
    smiles.fill("CCO")
    expect(message).to_be_empty()
    expect(smiles).not_to_have_attribute("aria-invalid", "true")


def test_a_digit_is_drawn(page) -> None:
    visit(page, "mnist", answered=False)
    canvas = page.locator("#mnist-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.2 * box["height"], steps=5)
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.mouse.up()
    expect(page.locator("#mnist-sure")).to_have_text("probability > 99.9 %")
    expect(page.locator("#mnist-class")).to_have_text(re.compile("[0-9]"))
    page.locator("#mnist-clear").click()
    expect(page.locator("#mnist-class")).to_have_text("–")


@pytest.mark.slow
def test_an_answer_to_an_older_stroke_is_never_shown_for_a_newer_one(held) -> None:
    visit(held, "mnist", answered=False)
    shown = held.locator("#mnist-class")
    hold(held, "/api/v1/models/mnist:predict")
    stroke(held, 0.3)
    wait_held(held, 1)
    stroke(held, 0.6)
    wait_held(held, 2)
    give(held, 0, digit_answer(1))
    assert shown.text_content() == "–"
    give(held, 1, digit_answer(2))
    assert shown.text_content() == "2"
    held.mouse.down()  # a third stroke has begun
    assert shown.text_content() == "–"
    held.mouse.up()
    wait_held(held, 3)
    give(held, 2, {"detail": "the model server is full"}, 503)
    assert shown.text_content() == "–"
    assert held.locator("#mnist-message").text_content() == "The model cannot answer now."
    stroke(held, 0.5)
    wait_held(held, 4)
    give(held, 3, {"model": "mnist", "version": 3, "predictions": []})
    assert "holds no prediction" in held.locator("#mnist-message").text_content()
    stroke(held, 0.4)
    wait_held(held, 5)
    held.locator("#mnist-clear").click()
    give(held, 4, digit_answer(5))
    assert shown.text_content() == "–"
    assert held.locator("#mnist-message").text_content() == ""


def test_a_drawing_does_not_wait_until_the_browser_is_idle(browser, url) -> None:
    with open_page(browser, url) as page:
        page.add_init_script("HTMLCanvasElement.prototype.toBlob = () => {}")
        visit(page, "mnist", answered=False)
        stroke(page)
        expect(page.locator("#mnist-sure")).to_have_text("probability > 99.9 %")


# From the browser's own time stamp of the event to the frame that has the answer.
STOPWATCH = """
window.waits = [];
window.addEventListener("pointerup", (event) => { window.up = event.timeStamp; }, true);
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    if (document.getElementById("mnist-sure")?.textContent && window.up) {
      const up = window.up;
      window.up = 0;
      requestAnimationFrame((now) => window.waits.push(now - up));
    }
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
});
"""


def test_a_class_that_is_less_likely_than_the_others_together_is_called_unsure(page: Page) -> None:
    page.goto("/models/cifar10")
    found = page.evaluate(
        "import('/page/bars.js').then(({ sureness: told }) =>"
        " [['probability', 0.3], ['probability', 0.5], ['probability', 0.6, 0.61], ['probability', 0.61, 0.61],"
        " ['score', 0.3], ['score', 7]].map((given) => told(...given)))"
    )
    assert found == [
        "probability 30.0 %: not sure",
        "probability 50.0 %",
        "probability 60.0 %: not sure. Below 61.0 %, half or more of the answers for the test rows were wrong.",
        "probability 61.0 %",
        "score 30.0 %",
        "",
    ]


@pytest.mark.slow
def test_how_long_a_drawn_digit_waits_for_its_answer(browser, url, capsys) -> None:
    with open_page(browser, url) as page:
        page.add_init_script(STOPWATCH)
        visit(page, "mnist", answered=False)
        for count in range(1, 21):
            stroke(page, 0.2 + 0.03 * count)
            wait_for(page, "count => window.waits.length === count", count)
        waits = sorted(page.evaluate("window.waits"))
    with capsys.disabled():
        sys.stdout.write(f"\npointer-up to answer, 20 strokes: median {waits[10]:.0f} ms, longest {waits[-1]:.0f} ms\n")


def test_words_are_taken_and_generated(page) -> None:
    visit(page, "ptb")
    text = page.locator("#ptb-text")
    text.fill("The stock")
    first = page.locator("#ptb-next button").first
    expect(first).to_contain_text("market")  # the stand-in's next word is the next of its vocabulary
    first.click()
    expect(text).to_have_value("The stock market")
    expect(first).to_contain_text("do")
    text.fill("a <b>stock</b>")
    expect(page.locator("#ptb-unknown")).to_contain_text("The model does not know “a”")
    text.fill("the")
    page.locator("#ptb-words").fill("3")
    page.locator("#ptb-temperature").fill("0")
    page.locator("#ptb-generate").click()
    expect(text).to_have_value("the stock market do")


def test_a_picture_is_picked_and_one_is_chosen(page, tmp_path) -> None:
    visit(page, "cifar10")
    expect(page.locator("#cifar10-sure")).to_have_text("probability > 99.9 %")
    page.get_by_role("button", name="A drawn frog").click()
    expect(page.locator("#cifar10-version")).to_contain_text("cifar10 version 3")
    page.locator("#cifar10-file").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"},
    )
    expect(page.locator("#cifar10-message")).to_contain_text(
        "Please give a picture. This is 10 bytes: this is no readable picture: give one of PNG, JPEG, WebP,"
    )


def test_a_picture_is_pasted(page) -> None:
    visit(page, "mnist", answered=False)
    paste = """async (letters) => {
      const bytes = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], "seven.png", { type: "image/png" }));
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, cancelable: true }));
    }"""
    page.evaluate(paste, base64.b64encode(SEVEN.read_bytes()).decode())
    expect(page.locator("#mnist-version")).to_contain_text("mnist version 3")
    expect(page.locator("#code-curl")).to_contain_text("file=@seven.png")


@pytest.mark.slow
def test_a_photograph_of_any_size_is_sent(page) -> None:
    chance = np.random.default_rng(0)
    photographs = []
    for side, quality in ((200, 90), (600, 90), (1500, 95)):  # 60 kB, 0.5 MB, 4 MB
        file = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (side, side, 3), np.uint8)).save(file, "JPEG", quality=quality)
        photographs.append({"name": "IMG_1.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()})
    for model in ("cifar10", "mnist"):
        visit(page, model, answered=model == "cifar10")
        for photograph in photographs:
            with page.expect_response(f"**/api/v1/models/{model}:predict") as response:
                page.locator(f"#{model}-file").set_input_files(photograph)
            message = page.locator(f"#{model}-message")
            if response.value.status == 400:  # by what the picture shows, not by its size
                expect(message).to_contain_text("Please give a picture")
            else:
                assert response.value.status == 200
                expect(message).to_have_text("")


def test_over_the_limit_the_page_says_the_limit(page, tmp_path) -> None:
    visit(page, "cifar10")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    (tmp_path / "x.jpg").write_bytes(file.getvalue() + np.random.default_rng(1).bytes(20 << 20))
    page.locator("#cifar10-file").set_input_files(tmp_path / "x.jpg")
    expect(page.locator("#cifar10-message")).to_contain_text("This is too large: please give at most 16 MiB.")
    visit(page, "ptb")
    page.locator("#ptb-text").fill("the stock " * 101)
    expect(page.locator("#ptb-message")).to_have_text(
        "This is too large: please give a text of at most 200 words, in 4000 characters."
    )
    visit(page, "tox21")
    page.locator("#tox21-smiles").fill("C" * 501)
    expect(page.locator("#tox21-message")).to_have_text(
        "This is too large: please give a molecule of at most 500 atoms, in 1000 characters."
    )


def test_a_fast_click_overtakes_the_hints_and_the_game_goes_on(held) -> None:
    visit(held, "tictactoe")
    squares = held.locator("#tictactoe-board button")
    status = held.locator("#tictactoe-status")
    expect(squares.nth(8).locator("small")).to_have_text("20.0 %")
    hold(held, "/api/v1/models/tictactoe:predict")
    held.get_by_role("button", name="New game").click()
    wait_held(held, 1)
    squares.nth(4).click()
    wait_held(held, 2)
    give(held, 0, {"detail": "too late"}, 503)
    assert status.text_content() == "The model thinks …"
    assert held.locator("#tictactoe-message").text_content() == ""
    prediction = {"move": 0, "probabilities": [1.0] + 8 * [0.0], "value": 0.5}
    give(held, 1, {"model": "tictactoe", "version": 3, "predictions": [prediction]})
    expect(squares.nth(0)).to_have_attribute("data-mark", "O")
    expect(status).to_have_text("Your move: you are X.")
    wait_held(held, 3)
    squares.nth(5).click()
    wait_held(held, 4)
    give(held, 3, {"detail": "no such model"}, 404)
    assert "gives no answer" in status.text_content()
    assert held.locator("#tictactoe-message").text_content() == "This model or version is not served now."


@pytest.mark.slow
def test_what_was_typed_meanwhile_is_not_answered_by_what_was_before(held) -> None:
    visit(held, "ptb")
    hold(held, "/api/v1/models/ptb:predict")
    held.locator("#ptb-text").fill("the stock")
    wait_held(held, 1)
    held.locator("#ptb-clear").click()
    give(held, 0, {"version": 3, "predictions": [{"unknown": [], "words": [{"word": "late", "probability": 1}]}]})
    assert held.locator("#ptb-next button").count() == 0
    visit(held, "tox21")
    hold(held, "/api/v1/models/tox21:predict")
    held.locator("#tox21-smiles").fill("CCO")
    wait_held(held, 1)
    held.locator("#tox21-smiles").fill("")
    give(held, 0, {"version": 3, "predictions": [{"probabilities": {"NR-AR": 0.9}}]})
    assert held.locator("#tox21-bars .best").count() == 0
    expect(held.locator("#tox21-drawing")).to_be_hidden()


@pytest.mark.slow
def test_a_game_is_played_on_either_side(page) -> None:
    visit(page, "tictactoe")
    squares = page.locator("#tictactoe-board button")
    status = page.locator("#tictactoe-status")
    expect(status).to_have_text("Your move: you are X.")
    expect(squares.nth(8).locator("small")).to_have_text("20.0 %")  # 9 of 45
    squares.nth(4).click()
    expect(squares.nth(8)).to_have_attribute("data-mark", "O")  # the stand-in takes the last free square
    squares.nth(0).click()
    expect(squares.nth(7)).to_have_attribute("data-mark", "O")
    squares.nth(3).click()
    expect(squares.nth(6)).to_have_attribute("data-mark", "O")
    expect(status).to_have_text("The model wins.")
    expect(page.locator("#tictactoe-board .winning")).to_have_count(3)
    expect(squares.nth(1)).to_be_disabled()
    page.get_by_label("O, second").check()
    expect(squares.nth(8)).to_have_attribute("data-mark", "X")
    expect(status).to_have_text("Your move: you are O.")
    page.locator("#tictactoe-hints").uncheck()
    expect(squares.nth(0).locator("small")).to_have_text("")


@pytest.mark.slow
def test_the_api_page_shows_every_operation_and_tries_one(page, url) -> None:
    page.goto("/docs")
    operations = page.request.get(f"{url}/openapi.json").json()["paths"]
    expect(page.locator(".opblock")).to_have_count(sum(len(methods) for methods in operations.values()))
    linear = page.locator("#operations-models-predictLinear")
    linear.locator(".opblock-summary-control").click()
    linear.get_by_role("button", name="Try it out").click()
    linear.locator("textarea").fill('{"x": 1}')
    linear.get_by_role("button", name="Execute").click()
    answer = linear.locator(".live-responses-table")
    expect(answer).to_contain_text('"y": 7')
    expect(linear.locator(".curl-command")).to_contain_text(f"{url}/api/v1/linear")
    linear.locator("textarea").fill('{"x": "a"}')
    linear.get_by_role("button", name="Execute").click()
    expect(answer).to_contain_text("urn:bookserve:problem:bad-value")


def test_models_of_any_name_have_the_panel_of_their_task(page) -> None:
    visit(page, "wine")
    expect(page.locator("#wine-class")).to_have_text("good")
    page.get_by_label("acid").fill("-3")
    expect(page.locator("#wine-class")).to_have_text("bad")
    expect(page.locator("#wine-bars tr.best td").last).to_have_text("95.3 %")
    visit(page, "letters", answered=False)
    page.locator("#letters-file").set_input_files(SEVEN)
    expect(page.locator("#letters-class")).to_have_text(re.compile("[a-j]"))
    visit(page, "mood", answered=False)
    page.locator("#mood-text").fill("the rose")
    expect(page.locator("#mood-class")).to_have_text("good")
    expect(page.locator("#mood-bars tr.best td").last).to_have_text("5.500")
    visit(page, "double")
    page.locator("#double-body").fill('{"inputs": [[1.5, -2]]}')
    page.locator("#double-ask").click()
    expect(page.locator("#double-answer")).to_contain_text("-4")

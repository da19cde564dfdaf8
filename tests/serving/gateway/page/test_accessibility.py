"""Every page for people with other eyes, hands and screens: axe-core, widths, keyboard, forced colours."""

import io
import time

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

import photos
from book_contracts import CONTRACTS
from gateway_pages import SEVEN, open_page
from page_checks import check_axe, load
from stand_in_models import OTHERS, FakeServer

WIDTHS = (360, 768, 1600)
FEW = ("/", "/models/wine")
REST = ("/docs", *(f"/models/{name}" for name in (*CONTRACTS, *OTHERS) if f"/models/{name}" not in FEW))

LARGEST_SHIFT = 0.1  # of all on a page together, what https://web.dev/articles/cls calls good
# Every shift, also those shortly after an act of the person, as answers come soon here, with what moved.
SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries())
    window.shifts.push([value, sources.map(({ node }) => node?.id || node?.className || node?.nodeName)]);
}).observe({ type: "layout-shift", buffered: true });
"""


def check(page: Page, path: str) -> None:
    """Loads a page and finds nothing wrong with it, in light and dark, at any width."""
    load(page, path)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    check_axe(page)


@pytest.mark.parametrize("path", FEW)
def test_axe_finds_nothing_and_no_width_scrolls_sideways(page, path: str) -> None:
    check(page, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", REST)
def test_axe_finds_nothing_on_the_other_pages(page, path: str) -> None:
    check(page, path)


@pytest.mark.slow
def test_axe_finds_nothing_in_errors_results_and_old_states(page, stand_in: FakeServer) -> None:
    load(page, "/models/wine")
    content = "\n".join(["acid,sugar,age", *["1,2,3"] * 300]).encode()
    page.locator("#batch-files").set_input_files({"name": "wine.csv", "mimeType": "text/csv", "buffer": content})
    expect(page.locator("#batch-table tbody tr")).to_have_count(200)
    page.get_by_label("acid").fill("")
    expect(page.locator("#wine-message")).not_to_be_empty()
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    check_axe(page)
    stand_in.models = ()
    expect(page.locator("body.stale")).to_be_attached()
    check_axe(page)
    page.goto("/")
    expect(page.locator(".card.away")).to_have_count(12)
    page.get_by_label("Search").fill("nothing like it")
    check_axe(page)


@pytest.mark.slow
def test_axe_finds_nothing_in_a_marked_fault_and_the_last_questions(page) -> None:
    load(page, "/models/tox21")
    page.locator("#tox21-smiles").fill("CCO")
    expect(page.locator("#questions-title")).to_have_text("Your last questions (1)")
    page.locator("#questions-title").click()
    page.locator("#tox21-smiles").fill("C" * 200 + "X")
    expect(page.locator("#tox21-message mark")).to_have_text("X")
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    check_axe(page)


@pytest.mark.slow
def test_axe_finds_nothing_in_the_small_forms_of_the_list(page) -> None:
    load(page, "/")
    for name in ("tox21", "wine", "mnist", "tictactoe"):
        page.locator(f"#model-{name} summary").click()
        expect(page.locator(f"#model-{name} .small output")).to_be_attached()
    page.locator("#model-tox21 .small input").fill("C" * 100 + "X")
    page.locator("#model-tox21 .small button").click()
    expect(page.locator("#model-tox21 .message")).to_contain_text("character 101")
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    check_axe(page)


def test_axe_finds_nothing_on_a_board_of_a_model_that_is_sure(page) -> None:
    prediction = {"move": 8, "probabilities": [place / 8 for place in range(9)], "value": 0.5}
    answer = {"model": "tictactoe", "version": 3, "predictions": [prediction]}
    page.route("**/api/v1/models/tictactoe:predict", lambda route: route.fulfill(json=answer))
    load(page, "/models/tictactoe")
    expect(page.locator("#tictactoe-board small").last).to_have_text("> 99.9 %")
    check_axe(page)


def test_the_first_tab_skips_to_the_content_and_arrows_choose_a_program(page) -> None:
    load(page, "/models/wine")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.locator("#code-tab-curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#code-tab-python")).to_be_focused()
    expect(page.locator("#code-python")).to_be_visible()
    expect(page.locator("#code-curl")).to_be_hidden()
    page.keyboard.press("End")
    expect(page.locator("#code-json")).to_be_visible()


def test_a_digit_is_drawn_with_the_keyboard(page) -> None:
    page.goto("/models/mnist")
    page.locator("#mnist-canvas").focus()
    page.keyboard.down(" ")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    page.keyboard.up(" ")
    expect(page.locator("#mnist-version")).to_contain_text("mnist version 3")


def test_bars_and_dots_stay_in_forced_colours_and_nothing_moves_where_that_is_asked(browser, url: str) -> None:
    with open_page(browser, url, forced_colors="active", reduced_motion="reduce") as page:
        load(page, "/models/wine")
        shown = Image.open(io.BytesIO(page.locator("#wine-bars progress").first.screenshot())).convert("RGB")
        full, empty = (shown.getpixel((round(across * shown.width), shown.height // 2)) for across in (0.25, 0.75))
        assert full != empty  # both classes are as probable, so half of the bar is full
        dot, ground = (
            page.locator(selector).evaluate(f"element => getComputedStyle(element{pseudo}).backgroundColor")
            for selector, pseudo in (("#health", ", '::before'"), ("body", ""))
        )
        assert dot != ground
        assert page.locator("html").evaluate("element => getComputedStyle(element).scrollBehavior") == "auto"


@pytest.mark.slow
def test_nothing_below_moves_when_an_answer_arrives(page) -> None:
    load(page, "/models/tox21")
    before = page.locator("#code").evaluate("element => element.offsetTop")
    page.locator("#tox21-smiles").fill("CCO")
    expect(page.locator("#tox21-drawing")).to_have_attribute("alt", "Structure of CCO")
    expect(page.locator("#tox21-version")).to_contain_text("version 3")
    assert page.locator("#code").evaluate("element => element.offsetTop") == before
    page.goto("/models/mnist")
    expect(page.locator("#mnist-canvas")).to_be_visible()
    before = page.locator("#code").evaluate("element => element.offsetTop")
    page.locator("#mnist-file").set_input_files(SEVEN)
    expect(page.locator("#mnist-version")).to_contain_text("version 3")
    assert page.locator("#code").evaluate("element => element.offsetTop") == before


@pytest.mark.slow
@pytest.mark.parametrize(("model", "width"), [("cifar10", 360), ("cifar10", 390), ("mnist", 390)])
def test_nothing_jumps_on_a_phone_while_a_page_loads_and_answers_arrive(
    browser, url: str, model: str, width: int
) -> None:
    with open_page(browser, url, viewport={"width": width, "height": 844}, is_mobile=True, has_touch=True) as page:
        page.add_init_script(SHIFTS)
        load(page, f"/models/{model}")
        expect(page.locator(f"#{model}-sure")).not_to_be_empty()
        page.wait_for_timeout(100)  # until the observer is told
        loading = page.evaluate("window.shifts")
        assert sum(shift for shift, _ in loading) < LARGEST_SHIFT, loading
        page.locator(f"#{model}-class").evaluate("element => element.scrollIntoView({ block: 'center' })")
        # Several pictures, whose answers come late, and a file that is refused.
        page.route("**:predict", lambda route: (time.sleep(0.8), route.continue_()))
        files = page.locator(f"#{model}-file")
        for content in (photos.file_of("JPEG"), SEVEN.read_bytes(), photos.file_of("HEIC")):
            with page.expect_event("requestfinished", lambda request: ":predict" in request.url):
                files.set_input_files({"name": "a", "mimeType": "", "buffer": content})
        files.set_input_files({"name": "a", "mimeType": "", "buffer": b"not a picture"})
        expect(page.locator(f"#{model}-message")).to_contain_text("This is 13 bytes")
        page.wait_for_timeout(100)
        shifts = page.evaluate("window.shifts")[len(loading) :]
        assert sum(shift for shift, _ in shifts) < LARGEST_SHIFT, shifts


@pytest.mark.slow
def test_bars_stay_where_they_are_when_a_class_is_doubtful(browser, url: str) -> None:
    doubt = {"figure": "accuracy", "value": 0.5, "rows": 8, "doubt": 0.6}
    labels = CONTRACTS["cifar10"].labels
    scores = iter([0.3, 0.55, 0.9])

    def tell(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "evaluation": doubt})

    def answer(route: Route) -> None:
        best, score = labels[1], next(scores)
        shares = {label: score if label == best else (1 - score) / 9 for label in labels}
        route.fulfill(
            json={"model": "cifar10", "version": 3, "predictions": [{"class": best, "probabilities": shares}]}
        )

    with open_page(browser, url, viewport={"width": 360, "height": 844}) as page:
        page.route("**/api/v1/models/cifar10", tell)
        page.route("**:predict", answer)
        page.goto("/models/cifar10")
        expect(page.locator("#cifar10-sure")).to_contain_text("30.0 %: not sure. Below 60.0 %")
        place = page.locator("#cifar10-bars").bounding_box()
        for share in ("55.0 %: not sure. Below", "90.0 %"):
            page.locator("#cifar10-file").set_input_files(SEVEN)
            expect(page.locator("#cifar10-sure")).to_contain_text(share)
            assert page.locator("#cifar10-bars").bounding_box() == place

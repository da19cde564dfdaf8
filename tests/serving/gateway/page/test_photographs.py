"""Photographs of phones on a model's page, also in formats that the browser cannot show."""

import pytest
from playwright.sync_api import Browser, Page, expect

import photos
from bookserve.clients.inputs import pictures
from gateway_pages import open_page

# The levels of the canvas at four places, of 100 across and down: sky at the top left and right, grass below.
COLOURS = """canvas => [[10, 10], [90, 10], [10, 95], [90, 95]].map(([x, y]) => {
  const place = [Math.round(x * canvas.width / 100), Math.round(y * canvas.height / 100)];
  return [...canvas.getContext("2d").getImageData(...place, 1, 1).data.slice(0, 3)];
})"""


def choose(page: Page, name: str, content: bytes) -> None:
    page.locator("#cifar10-file").set_input_files(
        {"name": f"IMG_1.{name.lower()}", "mimeType": "application/octet-stream", "buffer": content}
    )


@pytest.mark.parametrize(
    "name", ["HEIC", *(pytest.param(name, marks=pytest.mark.slow) for name in photos.FORMATS[:-1])]
)
def test_a_photograph_in_any_format_is_shown_upright_and_answered(page: Page, name: str) -> None:
    page.goto("/models/cifar10")
    expect(page.locator("#cifar10-version")).to_contain_text("version 3")  # of the drawn one
    with page.expect_response("**/api/v1/models/cifar10:predict") as answered:
        choose(page, name, photos.file_of(name))
    assert answered.value.status == 200
    expect(page.locator("#code-curl")).to_contain_text(f"file=@IMG_1.{name.lower()}")
    expect(page.locator("#cifar10-message")).to_be_empty()
    *sky, left, right = page.locator("#cifar10-canvas").evaluate(COLOURS)
    assert all(blue > red + 30 for red, _, blue in sky)
    assert all(green > blue + 20 and green < 120 for _, green, blue in (left, right))
    page.get_by_role("button", name="Which part mattered?").click()
    expect(page.locator("#why-content canvas")).to_be_visible()
    expect(page.locator("#why-message")).to_be_empty()


def test_the_page_says_beforehand_what_it_takes(page: Page) -> None:
    page.goto("/models/cifar10")
    expect(page.locator("#cifar10-try .hint").first).to_contain_text(
        "PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF and HEIC are taken."
    )
    expect(page.locator("#batch-hint")).to_contain_text("AVIF and HEIC are taken.")
    accept = page.locator("#cifar10-file").get_attribute("accept")
    assert accept == page.locator("#batch-files").get_attribute("accept").removesuffix(",application/zip,.zip")
    assert accept.split(",") == [*pictures.MEDIA_TYPES, *pictures.SUFFIXES]
    assert {"image/heic", ".heic", "image/avif", "image/gif", ".tiff"} <= set(accept.split(","))


def test_a_photograph_that_is_cut_off_or_too_large_is_refused_in_words(page: Page) -> None:
    page.goto("/models/cifar10")
    expect(page.locator("#cifar10-version")).to_contain_text("version 3")
    page.get_by_role("button", name="Which part mattered?").click()
    expect(page.locator("#why-content canvas")).to_be_visible()
    choose(page, "HEIC", photos.file_of("HEIC")[:3000])
    message = page.locator("#cifar10-message")
    expect(message).to_contain_text(
        "Please give a picture. This is 3000 bytes: the file begins as a TIFF, AVIF or HEIC,"
    )
    expect(page.locator("#cifar10-class")).to_have_text("–")  # nothing old stays beside it
    expect(page.locator("#why-content")).to_be_empty()
    expect(page.locator("#why-ask")).to_be_disabled()
    expect(page.locator("#code-curl")).to_contain_text("file=@IMG_1.heic")
    expect(page.locator("#code-json")).not_to_contain_text("predictions")
    assert page.evaluate(
        "() => { const canvas = document.getElementById('cifar10-canvas');"
        " const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        " return pixels.every((level) => level === 255); }"
    )
    choose(page, "AVIF", photos.bomb("AVIF"))
    expect(message).to_have_text("This is too large: please give a picture of at most 50 million pixels and 16 MiB.")
    choose(page, "HEIC", photos.file_of("HEIC"))
    expect(message).to_be_empty()


@pytest.mark.slow
def test_many_photographs_of_every_format_at_once(page: Page) -> None:
    page.goto("/models/cifar10")
    expect(page.locator("#batch-hint")).to_contain_text("HEIC")
    page.locator("#batch-files").set_input_files(
        [{"name": f"{name}.{name.lower()}", "mimeType": "", "buffer": photos.file_of(name)} for name in photos.FORMATS]
    )
    expect(page.locator("#batch-count")).to_have_text("8 of 8")
    rows = page.locator("#batch-table tbody tr")
    expect(rows).to_have_count(8)
    expect(page.locator("#batch-table")).not_to_contain_text("Please give")


def test_a_phone_takes_a_photograph_and_a_desktop_has_no_button_for_that(browser: Browser, url: str) -> None:
    for touch in (True, False):
        with open_page(browser, url, has_touch=touch, is_mobile=touch) as page:
            for model in ("cifar10", "mnist"):
                page.goto(f"/models/{model}")
                expect(page.locator(f"#{model}-canvas")).to_be_visible()
                expect(page.get_by_text("Take a photograph")).to_be_visible(visible=touch)
                assert page.locator(f"#{model}-camera").get_attribute("capture") == "environment"

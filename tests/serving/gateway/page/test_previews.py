"""What a page shows of a picture is what its model is given, for each rule by which pictures are resized."""

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import photos
from book_contracts import CONTRACTS, write_manifest
from bookserve.clients.inputs import pictures
from bookserve.export.contracts import Contract
from gateway_pages import SEVEN, gateway, open_page, wait_for
from stand_in_models import FakeServer, serve

LEVELS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, [...data]];
}"""


def contract_of(model: str, resize: str, size: tuple[int, int]) -> Contract:
    """That of the model of photographs, for another size."""
    book = CONTRACTS["cifar10"]
    inputs = (replace(book.inputs[0], shape=(None, *size, 3)),)
    assert book.preprocessing is not None
    return replace(
        book, model=model, inputs=inputs, preprocessing=replace(book.preprocessing, size=size, resize=resize)
    )


MODELS = {
    "wide_part": contract_of("wide_part", "crop", (16, 24)),
    "tall_part": contract_of("tall_part", "crop", (30, 20)),
    "square_whole": contract_of("square_whole", "stretch", (24, 24)),
    "tall_whole": contract_of("tall_whole", "stretch", (30, 20)),
    "mnist": CONTRACTS["mnist"],  # centred
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("previews")
    for contract in MODELS.values():
        write_manifest(folder / "models", contract, 3)
    fake = FakeServer(models=tuple(MODELS), contracts=MODELS)
    server = serve(fake)
    with gateway(fake.target, folder) as address:
        yield address
    server.stop(None).wait()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with open_page(browser, url) as page:
        yield page


def levels_of(page: Page, model: str) -> np.ndarray:
    """Of the small picture beside the answer: [height,width,3]."""
    height, width, data = page.locator(f"#{model}-small").evaluate(LEVELS)
    return np.array(data, float).reshape(height, width, 4)[..., :3]


def seen(page: Page, model: str) -> np.ndarray:
    """What a person sees in the field of the picture: [height,width,3] of the screen."""
    canvas = page.locator(f"#{model}-canvas")
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))


@pytest.mark.parametrize("model", [name for name in MODELS if name != "mnist"])
@pytest.mark.parametrize("name", ["JPEG", pytest.param("HEIC", marks=pytest.mark.slow)])
def test_a_photograph_is_shown_as_its_model_is_given_it(page: Page, model: str, name: str) -> None:
    contract = MODELS[model]
    content = photos.file_of(name)
    page.goto(f"/models/{model}")
    expect(page.locator(f"#{model}-version")).to_contain_text("version 3")
    with page.expect_response("**:predict"):
        page.locator(f"#{model}-file").set_input_files({"name": "IMG_1", "mimeType": "", "buffer": content})
    expect(page.locator("#code-curl")).to_contain_text("file=@IMG_1")
    assert contract.preprocessing is not None
    given = pictures.levels(content, contract.preprocessing).astype(float)
    assert np.abs(levels_of(page, model) - given).mean() < 6
    # The field is a square, in whose middle the picture has the form of the model's input.
    shown = seen(page, model)
    height, width = given.shape[:2]
    side = min(shown.shape[:2]) / max(height, width)
    middle = [length / 2 for length in shown.shape[:2]]
    top, left = (round(at - side * length / 2) for at, length in zip(middle, (height, width), strict=True))
    part = Image.fromarray(shown).crop((left, top, left + round(side * width), top + round(side * height)))
    small = np.asarray(part.resize((width, height), Image.Resampling.LANCZOS), float)
    assert np.abs(small - given)[1:-1, 1:-1].mean() < 6  # without the field's line


def test_a_sign_is_shown_as_the_gateway_scales_and_centres_it(page: Page) -> None:
    page.goto("/models/mnist")
    expect(page.locator("#mnist-canvas")).to_be_visible()
    large = Image.open(SEVEN).convert("L").resize((90, 90))
    away = Image.new("L", (300, 200), large.getpixel((0, 0)))
    away.paste(large, (200, 10))  # small, in a corner
    for content in (photos.encode(away, "PNG"), SEVEN.read_bytes()):
        with page.expect_response("**/preview?given=true"):
            page.locator("#mnist-file").set_input_files({"name": "a.png", "mimeType": "", "buffer": content})
        given = pictures.digit(content)
        assert given.max() > 200
        expected = np.stack([given] * 3, axis=-1)
        wait_for(page, f"() => ({LEVELS})(document.getElementById('mnist-small'))[2].some((level) => level > 200)")
        np.testing.assert_array_equal(levels_of(page, "mnist"), expected)
    page.get_by_role("button", name="Clear").click()
    assert levels_of(page, "mnist").max() == 0  # nothing old stays

import io

import numpy as np
import pytest
from PIL import Image

import photos
from bookserve.clients.inputs import pictures
from bookserve.serving.wire import picture_file
from gateway_pages import SEVEN
from http_calls import problem_of

PATH = "/api/v1/cifar10"


@pytest.fixture(autouse=True)
def _served(all_models) -> None:
    """Every test has all seven models."""


def _level(value):
    return [[[value] * 3] * 32] * 32


def _png(size=(64, 48)):
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_one_picture_or_several_as_pixels(client, backend) -> None:
    answer = client.post(PATH, json={"pixels": _level(8)}).get_json()
    assert answer["predictions"][0]["class"] == "ship"
    assert answer["predictions"][0]["probabilities"]["ship"] == 1.0
    answer = client.post(PATH, json={"pixels": [_level(0), _level(255)]}).get_json()
    assert [prediction["class"] for prediction in answer["predictions"]] == ["airplane", "dog"]
    sent = backend.asked[1][1]
    assert (sent.dtype, sent.shape) == (np.uint8, (2, 32, 32, 3))


def test_files_and_raw_bodies(client, backend) -> None:
    content = _png()
    files = [(io.BytesIO(content), "a.png"), (io.BytesIO(_png((9, 9))), "b.png")]
    assert len(client.post(PATH, data={"file": files}).get_json()["predictions"]) == 2
    assert client.post(PATH, data=content, content_type="image/png").status_code == 200
    np.testing.assert_array_equal(backend.asked[0][1][0], pictures.photo(content))
    np.testing.assert_array_equal(backend.asked[1][1], [pictures.photo(content)])


@pytest.mark.parametrize("name", photos.FORMATS)
def test_every_format_of_a_phone_is_taken_and_upright(client, backend, name) -> None:
    content = photos.file_of(name)
    assert client.post(PATH, data={"file": (io.BytesIO(content), "IMG_1")}).status_code == 200
    (sent,) = backend.asked[0][1]
    assert np.abs(sent.astype(int) - pictures.photo(photos.file_of("PNG"))).mean() < 3
    assert client.post(PATH, data=content, content_type=f"image/{name.lower()}").status_code == 200
    np.testing.assert_array_equal(backend.asked[1][1], [sent])
    response = client.post(f"{PATH}/preview", data={"file": (io.BytesIO(content), "IMG_1")})
    assert (response.status_code, response.content_type) == (200, "image/png")
    shown = Image.open(io.BytesIO(response.data))
    assert shown.size == photos.SIZE
    assert np.abs(np.asarray(shown).astype(float) - photos.levels()).mean() < 6


def test_a_picture_that_was_previewed_is_decoded_once(client, backend, monkeypatch) -> None:
    decoded, decode = [], picture_file.decode
    monkeypatch.setattr(picture_file, "decode", lambda content: decoded.append(content) or decode(content))
    first, others = photos.file_of("HEIC"), [_png((40, 30 + number)) for number in range(8)]

    def ask(what: str, content: bytes) -> None:
        assert client.post(what, data={"file": (io.BytesIO(content), "a")}).status_code == 200

    for what in (f"{PATH}/preview", PATH, PATH):
        ask(what, first)
    assert decoded == [first]
    np.testing.assert_array_equal(backend.asked[0][1][0], pictures.photo(first))
    np.testing.assert_array_equal(backend.asked[1][1], backend.asked[0][1])
    decoded.clear()
    for other in others:
        ask(f"{PATH}/preview", other)
    ask(PATH, first)
    assert decoded == [*others, first]  # eight pictures are kept


def test_a_preview_is_small_and_refused_as_the_picture_is(client, backend) -> None:
    large = photos.encode(photos.photo().resize((1200, 800)), "JPEG")
    assert Image.open(
        io.BytesIO(client.post(f"{PATH}/preview", data={"file": (io.BytesIO(large), "a")}).data)
    ).size == (
        512,
        341,
    )
    cut = photos.file_of("HEIC")[:3000]
    for path in (PATH, f"{PATH}/preview"):
        assert "cut off" in problem_of(client.post(path, data={"file": (io.BytesIO(cut), "a")}), 400)["detail"]
        bomb = {"file": (io.BytesIO(photos.bomb("HEIC")), "a")}
        assert "6000 x 10000 pixels" in problem_of(client.post(path, data=bomb), 413)["detail"]
    two = {"file": [(io.BytesIO(large), "a"), (io.BytesIO(large), "b")]}
    assert problem_of(client.post(f"{PATH}/preview", data=two), 413)
    assert problem_of(client.post(f"{PATH}/preview", data=large, content_type="image/jpeg"), 415)
    other = problem_of(client.post("/api/v1/linear/preview", data={"file": (io.BytesIO(large), "a")}), 404)
    assert "takes no pictures" in other["detail"]
    assert not backend.asked


def test_a_preview_of_what_the_model_is_given_has_its_levels(client) -> None:
    content = photos.file_of("HEIC")
    seven = SEVEN.read_bytes()
    for path, file, levels in (
        (PATH, content, pictures.photo(content)),
        ("/api/v1/mnist", seven, pictures.digit(seven)),
    ):
        response = client.post(f"{path}/preview?given=true", data={"file": (io.BytesIO(file), "a")})
        assert (response.status_code, response.content_type) == (200, "image/png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.data))), levels)
    for query, field in (("given=yes", "?given"), ("as=given", "?as")):
        response = client.post(f"{PATH}/preview?{query}", data={"file": (io.BytesIO(content), "a")})
        assert problem_of(response, 400)["field"] == field


def _with(value):
    rows = [[list(pixel) for pixel in row] for row in _level(0)]
    rows[3][31] = value
    return rows


@pytest.mark.parametrize(
    ("pixels", "field", "given"),
    [
        (_with([0, 0, 256]), "pixels[3][31][2]", "the number 256"),
        (_with([0, True, 0]), "pixels[3][31][1]", "true"),
        (_with([0, 0]), "pixels[3][31]", "a list of 2"),
        (_with(7), "pixels[3][31]", "the number 7"),
        ([_level(0), _with([0, 0, None])], "pixels[1][3][31][2]", "null"),
        (_level(0)[:31], "pixels", "a list of 31"),
        ([[0] * 32] * 32, "pixels[0][0]", "the number 0"),
        ([], "pixels", "a list of 0"),
        ("x", "pixels", 'the string "x"'),
    ],
)
def test_wrong_pixels_name_the_place_and_show_some_that_work(client, backend, pixels, field, given) -> None:
    document = problem_of(client.post(PATH, json={"pixels": pixels}), 400)
    assert (document["field"], document["given"]) == (field, given)
    assert not backend.asked
    assert client.post(PATH, json=document["example"]).status_code == 200


def test_what_is_no_picture_is_400_and_what_is_too_large_413(client) -> None:
    document = problem_of(client.post(PATH, data=b"GIF89a", content_type="image/png"), 400)
    assert document["field"] == "body"
    assert "/cifar10" in document["example"]
    file = io.BytesIO()
    Image.new("1", (7100, 7100)).save(file, "PNG")
    assert problem_of(client.post(PATH, data=file.getvalue(), content_type="image/png"), 413)
    assert problem_of(client.post(PATH, json={"pixels": [_level(0)] * 33}), 413)["field"] == "pixels"

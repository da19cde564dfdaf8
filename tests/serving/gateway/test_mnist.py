import base64
import io

import numpy as np
import pytest
from PIL import Image

from bookserve.clients.inputs import pictures
from http_calls import problem_of

PATH = "/api/v1/mnist"


def _level(value):
    return [[value] * 28] * 28


def _png(size=28):
    pixels = np.zeros((size, size), np.uint8)
    pixels[size * 10 // 28 : size * 18 // 28, size * 12 // 28 : size * 16 // 28] = 245
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_one_picture_as_pixels(client, backend) -> None:
    response = client.post(PATH, json={"pixels": _level(7)})
    assert response.status_code == 200
    assert response.content_type == "application/json"
    answer = response.get_json()
    assert (answer["model"], answer["version"]) == ("mnist", 3)
    probabilities = {str(digit): 1.0 if digit == 7 else 0.0 for digit in range(10)}
    assert answer["predictions"] == [{"class": "7", "probabilities": probabilities}]
    _, images, version, label, signature, timeout = backend.asked[0]
    assert images.dtype == np.uint8
    assert images.shape == (1, 28, 28)
    assert (version, label, signature, timeout) == (None, None, "serving_default", 10.0)


def test_several_pictures_as_pixels(client) -> None:
    answer = client.post(PATH, json={"pixels": [_level(7), _level(255)]}).get_json()
    assert [prediction["class"] for prediction in answer["predictions"]] == ["7", "5"]


def test_files_of_a_form(client, backend) -> None:
    files = [(io.BytesIO(_png()), "a.png"), (io.BytesIO(_png(280)), "b.png")]
    answer = client.post(PATH, data={"file": files}).get_json()
    assert len(answer["predictions"]) == 2
    np.testing.assert_array_equal(backend.asked[0][1], [pictures.digit(_png()), pictures.digit(_png(280))])


def test_a_raw_body(client, backend) -> None:
    assert client.post(PATH, data=_png(), content_type="image/png").status_code == 200
    np.testing.assert_array_equal(backend.asked[0][1], [pictures.digit(_png())])


def test_version_and_label_are_passed_on(client, backend) -> None:
    assert client.post(f"{PATH}?version=2", json={"pixels": _level(7)}).get_json()["version"] == 2
    client.post(f"{PATH}?label=canary", json={"pixels": _level(7)})
    assert [asked[2:4] for asked in backend.asked] == [(2, None), (None, "canary")]


@pytest.mark.parametrize(
    "query",
    [
        "version=0",
        "version=-1",
        "version=x",
        "version=1.0",
        "version=%D9%A3",
        "version=" + "9" * 19,
        "version=",
        "label=",
        "label=%0d%0aSet-Cookie:a",
        "label=" + "x" * 65,
        "version=1&label=a",
        "versoin=1",
    ],
)
def test_bad_choices_are_refused(client, backend, query) -> None:
    document = problem_of(client.post(f"{PATH}?{query}", json={"pixels": _level(7)}), 400)
    assert document["field"].startswith("?")
    assert document["example"].startswith("?")
    assert not backend.asked


def _row_with(value):
    rows = [list(row) for row in _level(0)]
    rows[3][27] = value
    return rows


@pytest.mark.parametrize(
    ("content", "field", "given"),
    [
        ({"pixels": _row_with(256)}, "pixels[3][27]", "the number 256"),
        ({"pixels": _row_with(-1)}, "pixels[3][27]", "the number -1"),
        ({"pixels": _row_with(0.5)}, "pixels[3][27]", "the number 0.5"),
        ({"pixels": _row_with(True)}, "pixels[3][27]", "true"),
        ({"pixels": _row_with("9")}, "pixels[3][27]", 'the string "9"'),
        ({"pixels": _row_with(None)}, "pixels[3][27]", "null"),
        ({"pixels": _row_with([])}, "pixels[3][27]", "a list of 0"),
        ({"pixels": [_level(0), _row_with({})]}, "pixels[1][3][27]", "an object of 0"),
        ({"pixels": [_level(0), _level(0)[:5]]}, "pixels[1]", "a list of 5"),
        ({"pixels": [[0] * 28] * 27}, "pixels", "a list of 27"),
        ({"pixels": [[0] * 27] * 28}, "pixels[0]", "a list of 27"),
        ({"pixels": [[[[0]]]]}, "pixels[0]", "a list of 1"),
        ({"pixels": []}, "pixels", "a list of 0"),
        ({"pixels": [[]]}, "pixels", "a list of 1"),
        ({"pixels": "x" * 100}, "pixels", 'the string "' + "x" * 40 + '"…'),
        ({"pixels": None}, "pixels", "null"),
        ({}, "pixels", "nothing"),
        ({"pixels": _level(0), "<script>": 1}, "<script>", 'the string "<script>"'),
        ([1], "body", "a list of 1"),
        (7, "body", "the number 7"),
    ],
)
def test_a_wrong_body_names_the_place_and_shows_one_that_works(client, backend, content, field, given) -> None:
    document = problem_of(client.post(PATH, json=content), 400)
    assert document["field"] == field
    assert document["given"] == given
    assert document["expected"]
    assert document["expected"] in document["detail"]
    assert not backend.asked
    assert client.post(PATH, json=document["example"]).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"pixels": NaN}',
        b'{"pixels": Infinity}',
        b"\xff\xfe",
        b"{}{}",
        b"[" * 100_000,
        b'{"pixels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"pixels": 1e999}',
        b"\x00",
        b'{"a": "' + b"[" * 100,
    ],
    ids=lambda body: repr(body[:16]),
)
def test_bodies_that_are_no_json_of_ours_are_400(client, body) -> None:
    document = problem_of(client.post(PATH, data=body, content_type="application/json"), 400)
    assert document["field"] in ("body", "pixels")


def test_brackets_inside_strings_are_not_depth(client) -> None:
    document = problem_of(client.post(PATH, json={"pixels": '["\\[[[[[[[[[[[[['}), 400)
    assert document["field"] == "pixels"


def test_too_many_pictures_are_413(client) -> None:
    assert problem_of(client.post(PATH, json={"pixels": [_level(0)] * 33}), 413)["field"] == "pixels"
    files = [(io.BytesIO(_png()), f"{index}.png") for index in range(33)]
    assert problem_of(client.post(PATH, data={"file": files}), 413)["field"] == "file"


def test_a_json_body_beyond_its_limit_is_413(client) -> None:
    body = b'{"pixels": "' + b"x" * (1 << 20) + b'"}'
    assert "1048576" in problem_of(client.post(PATH, data=body, content_type="application/json"), 413)["detail"]


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a", _png()[:60]])
def test_files_that_are_no_pictures_are_400(client, content) -> None:
    document = problem_of(client.post(PATH, data={"file": (io.BytesIO(content), "x.png")}), 400)
    assert document["field"] == "file[0]"
    assert "curl" in document["example"]
    assert problem_of(client.post(PATH, data=content, content_type="image/png"), 400)["field"] == "body"


def test_pictures_of_too_many_pixels_are_413(client) -> None:
    file = io.BytesIO()
    Image.new("1", (7100, 7100)).save(file, "PNG")
    assert problem_of(client.post(PATH, data=file.getvalue(), content_type="image/png"), 413)["field"] == "body"


def test_forms_with_other_fields_are_400(client) -> None:
    assert problem_of(client.post(PATH, data={"picture": (io.BytesIO(_png()), "x")}), 400)["field"] == "picture"
    assert problem_of(client.post(PATH, data={"file": "text"}, content_type="multipart/form-data"), 400)
    both = {"file": (io.BytesIO(_png()), "x"), "url": "http://127.0.0.1:9/x.png"}
    assert problem_of(client.post(PATH, data=both), 400)["field"] == "url"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "image/jxl", "image/svg+xml", "application/x-www-form-urlencoded", ""]
)
def test_other_media_types_are_415_and_the_right_ones_named(client, content_type) -> None:
    document = problem_of(client.post(PATH, data=b"x", content_type=content_type), 415)
    assert "multipart/form-data" in document["expected"]


def test_compressed_bodies_are_415(client) -> None:
    headers = {"Content-Encoding": "gzip"}
    problem_of(client.post(PATH, data=b"x", content_type="application/json", headers=headers), 415)


def test_multipart_floods_are_413(client) -> None:
    boundary = "x"
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    content_type = f"multipart/form-data; boundary={boundary}"
    problem_of(client.post(PATH, data=part * 10_000 + b"--x--\r\n", content_type=content_type), 413)
    problem_of(client.post(PATH, data={"file": "x" * 100_000}, content_type="multipart/form-data"), 413)


def test_picture_files_as_base64_in_json(client, backend) -> None:
    content = base64.b64encode(_png()).decode()
    one = client.post(PATH, json={"b64": content}).get_json()
    as_file = client.post(PATH, data=_png(), content_type="image/png").get_json()
    assert one == as_file
    assert len(client.post(PATH, json={"b64": [content, content]}).get_json()["predictions"]) == 2
    document = problem_of(client.post(PATH, json={"b64": ["no base64!"]}), 400)
    assert (document["field"], document["expected"]) == ("b64[0]", "a picture of one digit as base64")
    assert problem_of(client.post(PATH, json={"b64": "QUJD"}), 400)["field"] == "b64"

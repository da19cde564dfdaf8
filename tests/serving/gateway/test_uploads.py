"""Pictures of every size up to the limit, as cameras make them: bytes without any pattern, by every road there is."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from book_contracts import write_manifests
from bookserve.clients.errors import PredictError
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.inputs import pictures
from bookserve.serving.gateway.config import Limits
from http_calls import post, problem_of
from stand_in_models import FakeServer, classes_of, serve

BOOKSERVE = str(Path(sys.executable).with_name("bookserve"))
LIMIT = Limits.body_bytes
CHUNK = 64 << 10  # what werkzeug reads at once
# What browsers put between the parts: Chromium's and Firefox's.
BOUNDARIES = (
    "----WebKitFormBoundaryE19zNvXGzXaLvS5C",
    "----geckoformboundary4c1f6d0b8f6e0a5b2f3a9d7c1e8b6a90",
    "---------------WerkzeugFormPart_1795886041.12345670.00012345678901234567",  # longer than RFC 2046 allows
    100 * "b",
)
SIZES = (
    1_000,
    CHUNK - 300,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    200_000,
    700_000,
    1 << 20,
    (1 << 20) + 1,
    5_000_000,
    16_000_000,
)


@pytest.fixture(scope="module")
def noise() -> bytes:
    """16 MiB and a little without a pattern: each of 256 bytes is a line feed or may begin a boundary."""
    return np.random.default_rng(0).bytes(LIMIT + 1000)


def photograph(size: int, noise: bytes) -> bytes:
    """A JPEG of exactly `size` bytes of which none repeats: random pixels, then bytes that a camera may append."""
    side = max(8, int((size / 4) ** 0.5) & ~7)
    pixels = np.frombuffer(noise[: 3 * side * side], np.uint8).reshape(side, side, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    picture = file.getvalue()
    assert len(picture) <= size
    return picture + noise[: size - len(picture)]


def form(*files: bytes, boundary: str = BOUNDARIES[0], name: str = "file") -> tuple[bytes, str]:
    """A form as a browser sends it."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="IMG_{index}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + content
        + b"\r\n"
        for index, content in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize("size", SIZES)
def test_a_photograph_of_any_size_arrives_whole(client, backend, all_models, noise, size) -> None:
    picture = photograph(size, noise)
    for boundary in BOUNDARIES:
        body, content_type = form(picture, boundary=boundary)
        response = client.post("/api/v1/cifar10", data=body, content_type=content_type)
        assert response.status_code == 200, response.text
        np.testing.assert_array_equal(backend.asked[-1][1], [pictures.photo(picture)])


def test_bytes_without_a_pattern_arrive_whole_wherever_they_are_cut(client, noise) -> None:
    places = np.random.default_rng(1).integers(0, LIMIT // 2, size=40)
    for place, size in zip(places, range(CHUNK - 20, 20 * CHUNK, CHUNK // 2), strict=False):
        body, content_type = form(noise[place : place + size])
        document = problem_of(client.post("/api/v1/mnist", data=body, content_type=content_type), 400)
        assert document["given"].startswith(f"{size} bytes: this is no readable picture")


@pytest.mark.parametrize("filling", [b"\r", b"\n", b"\r\n--", b"\r\n" + BOUNDARIES[0].encode(), b"\r\n\r\n"])
def test_bytes_that_could_begin_a_boundary_are_no_end(client, filling) -> None:
    content = (filling * CHUNK)[: 3 * CHUNK + 7]
    body, content_type = form(content)
    document = problem_of(client.post("/api/v1/mnist", data=body, content_type=content_type), 400)
    assert document["given"].startswith(f"{len(content)} bytes: ")


def test_many_photographs_share_a_form(client, backend, all_models, noise) -> None:
    taken = [photograph(400_000 + 1_001 * index, noise[1_000 * index :]) for index in range(Limits.items)]
    body, content_type = form(*taken)
    assert client.post("/api/v1/cifar10", data=body, content_type=content_type).status_code == 200
    np.testing.assert_array_equal(backend.asked[-1][1], [pictures.photo(picture) for picture in taken])


def test_the_limit_of_a_body_is_its_last_byte(client, noise) -> None:
    frame = len(form(b"")[0])
    for more, status in ((-1, 400), (0, 400), (1, 413)):
        body, content_type = form(noise[: LIMIT - frame + more])
        document = problem_of(client.post("/api/v1/mnist", data=body, content_type=content_type), status)
    assert document["detail"] == f"a body may have {LIMIT} bytes (--max-body-bytes): send less at a time"


def test_a_form_that_is_none_is_400_and_says_what_is_wrong(client, noise) -> None:
    body, content_type = form(noise[:100_000])
    for broken in (body[:-30], body[:60_000], noise[:70_000], b"--"):
        document = problem_of(client.post("/api/v1/mnist", data=broken, content_type=content_type), 400)
        assert "multipart form with the boundary" in document["detail"] or "at least one file" in document["detail"]
    for boundary in ("", "; boundary=", f"; boundary={'b' * 101}"):
        document = problem_of(
            client.post("/api/v1/mnist", data=body, content_type=f"multipart/form-data{boundary}"), 400
        )
        assert document["field"] == "Content-Type"
    nameless = body.replace(b' name="file";', b"")
    assert problem_of(client.post("/api/v1/mnist", data=nameless, content_type=content_type), 400)["field"] == "None"


def test_headers_and_text_of_a_part_are_bounded(client, noise) -> None:
    text = noise.translate(None, bytes(range(32)))[: Limits.form_field_bytes + 1]
    head = b"X: " + text + b"\r\nContent-Type: image/jpeg"
    body, content_type = form(noise[:1000])
    for large in (
        body.replace(b"Content-Type: image/jpeg", head),
        body.replace(b'; filename="IMG_0.jpg"', b"").replace(noise[:1000], text),
    ):
        document = problem_of(client.post("/api/v1/mnist", data=large, content_type=content_type), 413)
        assert "--max-form-field-bytes" in document["detail"]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A gateway process in front of a stand-in of the picture models."""
    fake = FakeServer(models=("mnist", "cifar10"))
    server = serve(fake)
    store = write_manifests(tmp_path_factory.mktemp("models"), fake.models)
    options = [f"--model-server={fake.target}", f"--models-dir={store}", "--drain-seconds=0"]
    command = [BOOKSERVE, "gateway", "--port=0", *options]
    with (tmp_path_factory.mktemp("gateway") / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert match
    yield match[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()
    server.stop(None).wait()


def expected(picture: bytes) -> str:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return names[classes_of(pictures.photo(picture)[None])[0]]


@pytest.mark.parametrize("size", [CHUNK, 230_000, 900_000, 3_000_000, 16_000_000])
def test_the_client_and_curl_send_photographs(url, noise, tmp_path, size) -> None:
    path = tmp_path / "IMG 1.jpg"
    path.write_bytes(photograph(size, noise))
    right = expected(path.read_bytes())
    assert GatewayClient(url).cifar10([path])["predictions"][0]["class"] == right
    if shutil.which("curl"):
        for option in (["-F", f"file=@{path}"], ["-H", "Content-Type: image/jpeg", "--data-binary", f"@{path}"]):
            line = ["curl", "--silent", "--show-error", *option, f"{url}/api/v1/cifar10"]
            answer = json.loads(subprocess.run(line, capture_output=True, timeout=60, check=True).stdout)
            assert answer["predictions"][0]["class"] == right


@pytest.mark.parametrize("size", [LIMIT - 1000, LIMIT, LIMIT + 1, 2 * LIMIT, 4 * LIMIT])
def test_over_the_limit_every_client_hears_the_limit(url, noise, tmp_path, size) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes((noise * 6)[:size])
    reason = "no readable picture" if size < LIMIT else f"{LIMIT} bytes (--max-body-bytes)"
    with pytest.raises(PredictError, match=re.escape(reason)):
        GatewayClient(url).cifar10([path])
    for header in ([], ["-H", "Expect:"]) if shutil.which("curl") else ():
        line = ["curl", "--silent", "--show-error", *header, "-F", f"file=@{path}", f"{url}/api/v1/cifar10"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert reason in done.stdout, done.stderr


def test_the_command_line_sends_a_photograph_and_hears_the_limit(url, noise, tmp_path) -> None:
    path = tmp_path / "IMG 1.jpg"
    line = [BOOKSERVE, "predict", "cifar10", str(path), "--gateway", url, "--json"]
    path.write_bytes(photograph(1_500_000, noise))
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["class"] == expected(path.read_bytes())
    path.write_bytes(noise)
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{LIMIT} bytes (--max-body-bytes)" in done.stderr


def test_a_body_of_real_text_and_numbers_is_bounded_by_its_bytes_alone(url) -> None:
    port = int(url.rpartition(":")[2])
    chance = np.random.default_rng(2)
    levels = chance.integers(0, 256, (Limits.items, 28, 28)).tolist()
    assert post(port, "/api/v1/mnist", json.dumps({"pixels": levels})).status == 200
    levels = chance.integers(0, 256, (Limits.items, 32, 32, 3)).tolist()
    assert post(port, "/api/v1/cifar10", json.dumps({"pixels": levels})).status == 200
    for alphabet in ('"\\', "[{]}", "äöü€𝄞", '\\"[{', "\r\n\t"):
        text = "".join(chance.choice(list(alphabet + "abc "), 100_000))
        for body in (json.dumps({"pixels": text}), json.dumps({"pixels": text}, ensure_ascii=False).encode()):
            answer = post(port, "/api/v1/mnist", body)
            assert answer.status == 400
            assert answer.problem()["field"] == "pixels"

import base64
import json
import socket
import threading

import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.clients.answers import TensorInfo, VersionStatus
from bookserve.clients.rest_client import RestClient

IMAGES = np.stack([np.full((28, 28), level, np.uint8) for level in (7, 23)])


def _info(dtype, *sizes):
    dims = [{"size": str(size), "name": ""} for size in sizes]
    return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": "x:0"}


def _metadata(outputs):
    signature = {"inputs": {"images": _info("DT_UINT8", -1, 28, 28)}, "outputs": outputs, "method_name": ""}
    return {
        "model_spec": {"name": "mnist", "signature_name": "", "version": "3"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


TWO = {"probabilities": _info("DT_FLOAT", -1, 10), "classes": _info("DT_INT64", -1)}
PREDICT = "/v1/models/mnist/versions/3:predict"


def test_predict_pins_the_version_and_restores_the_types(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/mnist/metadata", _metadata(TWO))
    http_fake.answer("POST", PREDICT, {"outputs": {"probabilities": [[0.25] * 10] * 2, "classes": [7, 3]}})
    prediction = RestClient(http_fake.url).predict("mnist", {"images": IMAGES})
    assert prediction.version == 3
    assert prediction.outputs["classes"].dtype == np.int64
    assert prediction.outputs["probabilities"].dtype == np.float32
    np.testing.assert_array_equal(prediction.outputs["classes"], [7, 3])
    body = json.loads(http_fake.received[-1][3])
    assert body["signature_name"] == "serving_default"
    np.testing.assert_array_equal(body["inputs"]["images"], IMAGES)


def test_a_single_output_comes_without_its_name_and_may_hold_nan(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/mnist/labels/stable/metadata", _metadata({"y": _info("DT_FLOAT", -1)}))
    http_fake.answer("POST", PREDICT, b'{"outputs": [1.5, NaN, -Infinity]}')
    outputs = RestClient(http_fake.url).predict("mnist", {"images": IMAGES}, label="stable").outputs
    np.testing.assert_array_equal(outputs["y"], np.array([1.5, np.nan, -np.inf], np.float32))


def test_strings_travel_as_base64_or_text(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/mnist/metadata", _metadata({"y_bytes": _info("DT_STRING", -1)}))
    b64 = base64.b64encode(b"\xff\x00").decode()
    http_fake.answer("POST", PREDICT, {"outputs": [{"b64": b64}, "text"]})
    inputs = {"images": np.array([b"\xff", b"a"], dtype=object)}
    outputs = RestClient(http_fake.url).predict("mnist", inputs).outputs
    assert outputs["y_bytes"].tolist() == [b"\xff\x00", b"text"]
    assert json.loads(http_fake.received[-1][3])["inputs"]["images"] == [{"b64": "/w=="}, {"b64": "YQ=="}]


def test_metadata_and_status(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/mnist/versions/3/metadata", _metadata(TWO))
    entries = [
        {"version": "2", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "disk full"}},
        {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
    ]
    http_fake.answer("GET", "/v1/models/mnist", {"model_version_status": entries})
    client = RestClient(http_fake.url)
    metadata = client.metadata("mnist", version=3)
    assert metadata.signatures["serving_default"].inputs == {"images": TensorInfo("uint8", (None, 28, 28))}
    assert client.status("mnist") == [VersionStatus(3, "AVAILABLE", ""), VersionStatus(2, "END", "disk full")]


def test_errors_carry_the_servers_own_words(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/mnist", {"error": "Could not find any versions of model mnist"}, status=404)
    with pytest.raises(errors.NotFound, match="Could not find any versions"):
        RestClient(http_fake.url).status("mnist")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"model_version_status": [{}]}', b"[" * 100_000])
def test_an_answer_of_another_form_is_a_bad_answer(http_fake, body) -> None:
    http_fake.answer("GET", "/v1/models/mnist", body)
    with pytest.raises(errors.BadAnswer):
        RestClient(http_fake.url).status("mnist")


def test_names_cannot_leave_their_place_in_the_path(http_fake) -> None:
    with pytest.raises(errors.NotFound):
        RestClient(http_fake.url).status("../x?y#z")
    assert http_fake.received[-1][1] == "/v1/models/..%2Fx%3Fy%23z"


def test_nobody_there_is_unavailable_and_says_where() -> None:
    with pytest.raises(errors.Unavailable, match=r"nothing answers at http://127\.0\.0\.1:1"):
        RestClient("http://127.0.0.1:1").status("mnist")


def test_a_server_that_never_answers_is_a_deadline_exceeded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(errors.DeadlineExceeded):
        RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}").status("mnist", timeout=0.2)


def test_a_server_that_speaks_no_http_is_a_bad_answer() -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(errors.BadAnswer, match="gRPC port"):
            RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}").status("mnist")
        thread.join()


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "ftp://x", "http://", "http://x:99999", "http://x:a"])
def test_what_is_no_url_is_refused(url) -> None:
    with pytest.raises(ValueError, match=r"no URL|port"):
        RestClient(url)

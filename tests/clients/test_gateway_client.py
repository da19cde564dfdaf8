import email.parser
import email.policy
import json
import math

import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.clients.errors import InvalidArgument
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.gateway_methods import json_body

ANSWER = {"model": "mnist", "version": 3, "predictions": [{"class": "7", "probabilities": {"7": 1.0}}]}


def test_pictures_go_as_files_of_one_form(http_fake, tmp_path) -> None:
    http_fake.answer("POST", "/api/v1/mnist?version=3", ANSWER)
    path = tmp_path / "one.png"
    path.write_bytes(b"from a file\r\n--")
    assert GatewayClient(http_fake.url).mnist([b"\x00\xff", path], version=3) == ANSWER
    _, _, content_type, body = http_fake.received[-1]
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    parts = list(form.iter_parts())
    assert [part.get_param("name", header="content-disposition") for part in parts] == ["file", "file"]
    assert [part.get_payload(decode=True) for part in parts] == [b"\x00\xff", b"from a file\r\n--"]


def test_a_picture_alone_is_told_from_a_sequence(http_fake) -> None:
    for picture in ("one.png", b"\x89PNG"):
        with pytest.raises(TypeError, match=r"write \[picture\] for one"):
            GatewayClient(http_fake.url).mnist(picture)


def test_models_and_readiness(http_fake) -> None:
    http_fake.answer("GET", "/api/v1/models", {"models": [{"name": "mnist"}]})
    http_fake.answer("GET", "/api/v1/models/mnist", {"name": "mnist", "versions": []})
    http_fake.answer("GET", "/readyz", {"status": "ready", "models": {"mnist": 3}})
    client = GatewayClient(http_fake.url)
    assert client.models() == [{"name": "mnist"}]
    assert client.model("mnist")["versions"] == []
    assert client.ready()["models"] == {"mnist": 3}


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, errors.InvalidArgument), (404, errors.NotFound), (413, errors.ResourceExhausted), (503, errors.Unavailable)],
)
def test_problems_become_errors_with_their_detail(http_fake, status, error) -> None:
    http_fake.answer("GET", "/readyz", {"title": "t", "detail": "what was wrong"}, status=status)
    with pytest.raises(error, match="what was wrong"):
        GatewayClient(http_fake.url).ready()


@pytest.mark.parametrize(("status", "error"), [(200, errors.BadAnswer), (500, errors.Internal)])
def test_something_else_than_the_gateway(http_fake, status, error) -> None:
    http_fake.answer("GET", "/readyz", b"<html>", status=status)
    with pytest.raises(error, match="is this the gateway"):
        GatewayClient(http_fake.url).ready()


def test_a_version_and_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        GatewayClient().mnist([b""], version=1, label="stable")


@pytest.mark.parametrize(
    ("ask", "path", "body"),
    [
        (lambda client: client.linear([1, 2.5]), "linear", {"x": [1, 2.5]}),
        (lambda client: client.logistic([(1, 2)]), "logistic", {"x": [[1, 2]]}),
        (lambda client: client.tox21(["CCO"]), "tox21", {"smiles": ["CCO"]}),
        (lambda client: client.ptb(["a"], top_k=3), "ptb", {"text": ["a"], "top_k": 3}),
        (
            lambda client: client.ptb_generate(["a"], words=2, temperature=0, seed=7),
            "ptb/generate",
            {"text": ["a"], "words": 2, "temperature": 0, "seed": 7},
        ),
        (lambda client: client.tictactoe([[""] * 9]), "tictactoe", {"board": [[""] * 9]}),
    ],
)
def test_json_models_send_their_lists(http_fake, ask, path, body) -> None:
    http_fake.answer("POST", f"/api/v1/{path}", ANSWER)
    assert ask(GatewayClient(http_fake.url)) == ANSWER
    _, _, content_type, sent = http_fake.received[-1]
    assert content_type == "application/json"
    assert json.loads(sent) == body


def test_photographs_go_as_files(http_fake) -> None:
    http_fake.answer("POST", "/api/v1/cifar10?label=stable", ANSWER)
    assert GatewayClient(http_fake.url).cifar10([b"picture"], label="stable") == ANSWER
    assert b"picture" in http_fake.received[-1][3]


def test_missing_numbers_go_as_null_and_infinite_ones_not_at_all() -> None:
    body = {
        "inputs": {"a": [[math.nan], (1.5,)], "b": np.float32([[1, math.nan]]), "c": np.float64(math.nan), "d": "NaN"}
    }
    assert json.loads(json_body(body)) == {"inputs": {"a": [[None], [1.5]], "b": [[1.0, None]], "c": None, "d": "NaN"}}
    with pytest.raises(InvalidArgument, match="JSON has no infinite numbers"):
        json_body({"x": [math.nan, math.inf]})

import email.parser
import email.policy

import pytest

from bookserve.clients import errors
from bookserve.clients.gateway_client import GatewayClient

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

import http

import grpc
import pytest

from bookserve.clients import errors


def _all_below(kind: type[errors.PredictError]) -> set[type[errors.PredictError]]:
    return {kind, *(found for child in kind.__subclasses__() for found in _all_below(child))}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_grpc_code_has_its_error(code: grpc.StatusCode) -> None:
    error = errors.from_grpc(code, "what the server said", "127.0.0.1:1")
    assert error.code == code.name
    assert "what the server said" in str(error)


def test_every_error_of_the_tree_is_reachable_by_its_code() -> None:
    assert set(errors.BY_CODE.values()) == _all_below(errors.PredictError) - {errors.BadAnswer}


@pytest.mark.parametrize("status", [status.value for status in http.HTTPStatus if status.value >= 400])
def test_every_http_error_status_has_an_error(status: int) -> None:
    error = errors.from_http(status, "what the server said")
    assert isinstance(error, errors.PredictError)
    assert str(error) == "what the server said"
    if status < 500:
        assert not isinstance(error, errors.Internal | errors.Unavailable)


def test_statuses_of_tensorflow_serving_map_back_to_their_code() -> None:
    codes = {
        400: "INVALID_ARGUMENT",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
    assert {status: errors.from_http(status, "").code for status in codes} == codes

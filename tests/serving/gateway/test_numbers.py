import numpy as np
import pytest

from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig, Limits
from http_calls import problem_of

LINEAR, LOGISTIC = "/api/v1/linear", "/api/v1/logistic"


@pytest.fixture(autouse=True)
def _served(all_models) -> None:
    """Every test has all seven models."""


def test_linear_takes_a_number_or_a_list(client, backend) -> None:
    answer = client.post(LINEAR, json={"x": 1.5}).get_json()
    assert answer == {"model": "linear", "version": 3, "predictions": [{"y": 9.5}]}
    answer = client.post(f"{LINEAR}?version=2", json={"x": [1, -2]}).get_json()
    assert (answer["version"], answer["predictions"]) == (2, [{"y": 7.0}, {"y": -8.0}])
    sent = backend.asked[1][1]
    assert (sent.dtype, sent.shape) == (np.float32, (2, 1))


def test_logistic_takes_a_point_or_a_list(client, backend) -> None:
    answer = client.post(LOGISTIC, json={"x": [0.2, 0.8]}).get_json()
    assert answer["predictions"] == [{"class": "1", "probability": 0.731059}]
    answer = client.post(LOGISTIC, json={"x": [[-3, 1], [0, 0]]}).get_json()
    assert [prediction["class"] for prediction in answer["predictions"]] == ["0", "1"]
    sent = backend.asked[1][1]
    assert (sent.dtype, sent.shape) == (np.float32, (2, 2))


@pytest.mark.parametrize(
    ("path", "body", "field", "given"),
    [
        (LINEAR, {"x": False}, "x", "false"),
        (LINEAR, {"x": "1"}, "x", 'the string "1"'),
        (LINEAR, {"x": None}, "x", "null"),
        (LINEAR, {"x": 1e39}, "x", "the number 1e+39"),
        (LINEAR, {"x": [1, True]}, "x[1]", "true"),
        (LINEAR, {"x": [[1]]}, "x[0]", "a list of 1"),
        (LINEAR, {"x": []}, "x", "a list of 0"),
        (LINEAR, {}, "x", "nothing"),
        (LINEAR, {"x": 1, "y": 2}, "y", 'the string "y"'),
        (LOGISTIC, {"x": 1}, "x", "the number 1"),
        (LOGISTIC, {"x": [1]}, "x", "a list of 1"),
        (LOGISTIC, {"x": [1, False]}, "x[1]", "false"),
        (LOGISTIC, {"x": [[1, 2], [1]]}, "x[1]", "a list of 1"),
        (LOGISTIC, {"x": [[1, 2], [1, {}]]}, "x[1][1]", "an object of 0"),
        (LOGISTIC, {"x": []}, "x", "a list of 0"),
    ],
)
def test_wrong_bodies_name_the_place_and_show_one_that_works(client, backend, path, body, field, given) -> None:
    document = problem_of(client.post(path, json=body), 400)
    assert (document["field"], document["given"]) == (field, given)
    assert not backend.asked
    assert client.post(path, json=document["example"]).status_code == 200


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e400", "[" * 200 + "]" * 200])
def test_what_is_no_number_in_json_is_400(client, text) -> None:
    problem_of(client.post(LINEAR, data=f'{{"x": {text}}}', content_type="application/json"), 400)


def test_other_media_types_are_415(client) -> None:
    assert problem_of(client.post(LINEAR, data="x=1", content_type="text/plain"), 415)["expected"] == "application/json"


def test_too_many_points_are_413(backend, molecule_pool, models_dir) -> None:
    client = create_app(
        GatewayConfig(models_dir=models_dir, limits=Limits(points=3)), backend, molecule_pool
    ).test_client()
    assert client.post(LINEAR, json={"x": [1, 2, 3]}).status_code == 200
    assert problem_of(client.post(LINEAR, json={"x": [1, 2, 3, 4]}), 413)["field"] == "x"

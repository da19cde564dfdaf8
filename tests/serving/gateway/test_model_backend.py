import dataclasses

import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.clients import errors
from bookserve.clients.answers import ModelMetadata, Signature, TensorInfo
from bookserve.clients.forms import mismatch as contract_mismatch
from bookserve.serving.gateway.model_backend import ModelBackend
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.request_parsing import Choice

IMAGES = {"images": np.full((2, 28, 28), 7, np.uint8)}
FLOATS = {"images": TensorInfo("float32", (None, 28, 28))}
FLAT = {"images": TensorInfo("uint8", (None, 784))}
BATCH_OF_ONE = {"images": TensorInfo("uint8", (1, 28, 28))}


@pytest.fixture
def models(backend) -> ModelBackend:
    return ModelBackend(backend, "127.0.0.1:8500", 1.0)


def _refused(models, choice=None) -> Problem:
    with pytest.raises(Problem) as caught:
        models.predict(CONTRACTS["mnist"], IMAGES, choice or Choice())
    return caught.value


def test_a_version_is_checked_once(models, backend) -> None:
    for _ in range(3):
        assert models.predict(CONTRACTS["mnist"], IMAGES, Choice()).version == 3
    assert backend.metadata_calls == 1
    backend.version = 4
    models.predict(CONTRACTS["mnist"], IMAGES, Choice())
    assert backend.metadata_calls == 2


@pytest.mark.parametrize(
    ("inputs", "text"),
    [(FLOATS, "float32 [n,28,28]"), (FLAT, "uint8 [n,784]"), (BATCH_OF_ONE, "uint8 [1,28,28]"), ({}, "nothing")],
)
def test_a_version_of_another_contract_is_refused(models, backend, inputs, text) -> None:
    backend.signature = dataclasses.replace(backend.signature, inputs=inputs)
    problem = _refused(models)
    assert problem.status == 502
    assert problem.detail.endswith(f"input 'images' should be uint8 [n,28,28], is {text}")
    readiness = models.readiness(CONTRACTS["mnist"])
    assert (readiness.ready, readiness.absent, readiness.reason) == (False, False, problem.detail)


def test_an_input_that_the_contract_does_not_have_is_a_mismatch(models, backend) -> None:
    inputs = {**backend.signature.inputs, "more": TensorInfo("float32", ())}
    backend.signature = dataclasses.replace(backend.signature, inputs=inputs)
    assert "an input 'more' as well" in _refused(models).detail


def test_a_version_may_fix_an_outputs_size_that_the_contract_frees_but_no_inputs_and_no_batch() -> None:
    def mismatch(tokens, probabilities):
        outputs = {
            "probabilities": TensorInfo("float32", probabilities),
            "top_ids": TensorInfo("int32", (None, 10)),
            "top_probabilities": TensorInfo("float32", (None, 10)),
        }
        signature = Signature({"tokens": TensorInfo("int32", tokens)}, outputs)
        return contract_mismatch(CONTRACTS["ptb"], ModelMetadata("ptb", 1, {"serving_default": signature}))

    assert mismatch((None, None), (None, 10_000)) == ""
    assert "should be int32 [n,n], is int32 [n,20]" in mismatch((None, 20), (None, 10_000))
    assert "is float32 [1,10000]" in mismatch((None, None), (1, 10_000))


def test_free_shapes_and_more_outputs_are_no_mismatch(models, backend) -> None:
    outputs = {**backend.signature.outputs, "logits": TensorInfo("float32", (None, 10))}
    backend.signature = Signature({"images": TensorInfo("uint8", None)}, outputs)
    assert models.predict(CONTRACTS["mnist"], IMAGES, Choice()).version == 3
    assert models.readiness(CONTRACTS["mnist"]).ready


def test_a_refused_tensor_is_explained_by_the_contract_when_that_differs(models, backend) -> None:
    backend.fail = errors.InvalidArgument("Expects arg[0] to be float but uint8 is provided")
    assert _refused(models).status == 400
    backend.signature = dataclasses.replace(backend.signature, inputs=FLOATS)
    fresh = ModelBackend(backend, "127.0.0.1:8500", 1.0)
    assert _refused(fresh).status == 502


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.NotFound("x"), 404, "GET /api/v1/models/mnist"),
        (errors.Unavailable("x"), 503, "make serve"),
        (errors.ResourceExhausted("x"), 503, "full"),
        (errors.DeadlineExceeded("x"), 504, "in time"),
        (errors.Internal("secret path"), 502, "INTERNAL"),
        (errors.BadAnswer("x"), 502, "failed"),
        (errors.DataLoss("x"), 502, "DATA_LOSS"),
    ],
)
def test_errors_of_the_model_server(models, backend, error, status, text) -> None:
    backend.fail = error
    problem = _refused(models)
    assert problem.status == status
    assert text in problem.detail
    assert "secret" not in problem.detail
    assert ("Retry-After" in problem.headers) == (status == 503)


def test_every_error_of_the_clients_tree_gives_a_problem(models, backend) -> None:
    for kind in [*errors.BY_CODE.values(), errors.BadAnswer]:
        backend.fail = kind("x")
        assert _refused(models).status in (400, 404, 502, 503, 504)


def test_an_unknown_label_is_404(models, backend) -> None:
    backend.fail = errors.InvalidArgument("Unrecognized servable version label: canary")
    problem = _refused(models, Choice(label="canary"))
    assert (problem.status, problem.field) == (404, "?label")


def test_a_version_swapped_between_answer_and_check_is_asked_again(models, backend) -> None:
    original, gone = backend.metadata, []

    def once_gone(model, *, version=None, label=None, timeout=0.0):
        if not gone:
            gone.append(version)
            backend.version = 4
            raise errors.NotFound("Servable not found for request: Specific(mnist, 3)")
        return original(model, version=version, label=label, timeout=timeout)

    backend.metadata = once_gone
    assert models.predict(CONTRACTS["mnist"], IMAGES, Choice()).version == 4


def test_an_outage_forgets_what_was_checked(models, backend) -> None:
    models.predict(CONTRACTS["mnist"], IMAGES, Choice())
    backend.fail = errors.Unavailable("x")
    _refused(models)
    backend.fail = None
    models.predict(CONTRACTS["mnist"], IMAGES, Choice())
    assert backend.metadata_calls == 2


PROBABILITIES = np.full((2, 10), 0.1, np.float32)
CLASSES = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    "outputs",
    [
        {"probabilities": PROBABILITIES},
        {"probabilities": PROBABILITIES[:1], "classes": CLASSES[:1]},
        {"probabilities": PROBABILITIES[:, :9], "classes": CLASSES},
        {"probabilities": PROBABILITIES.astype(np.float64), "classes": CLASSES},
        {"probabilities": PROBABILITIES, "classes": CLASSES[:, None]},
        {"probabilities": np.full((2, 10), np.nan, np.float32), "classes": CLASSES},
        {"probabilities": np.full((2, 10), np.inf, np.float32), "classes": CLASSES},
        {"probabilities": np.float32(1).reshape(()), "classes": CLASSES},
    ],
    ids=["missing", "rows", "columns", "dtype", "rank", "nan", "infinity", "scalar"],
)
def test_outputs_that_break_the_contract_are_502(models, backend, outputs) -> None:
    backend.outputs = outputs
    assert _refused(models).status == 502


def test_a_model_that_is_not_there_is_absent_and_one_that_is_away_is_not(models, backend) -> None:
    backend.fail_metadata = errors.NotFound("x")
    assert models.readiness(CONTRACTS["mnist"]).absent
    backend.fail_metadata = errors.Unavailable("x")
    readiness = models.readiness(CONTRACTS["mnist"])
    assert not readiness.ready
    assert not readiness.absent
    assert "make serve" in readiness.reason

import asyncio
import re
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.clients.answers import TensorInfo, VersionStatus
from bookserve.clients.grpc_client import AsyncGrpcClient, GrpcClient
from bookserve.serving.wire import tensors

IMAGES = np.stack([np.full((28, 28), level, np.uint8) for level in (7, 23)])  # classes 7 and 3


def test_predict_gives_the_outputs_and_the_version_that_answered(fake) -> None:
    with GrpcClient(fake.target) as client:
        prediction = client.predict("mnist", {"images": IMAGES})
    assert prediction.version == 3
    np.testing.assert_array_equal(prediction.outputs["classes"], [7, 3])
    assert prediction.outputs["probabilities"].shape == (2, 10)
    assert prediction.outputs["probabilities"].dtype == np.float32
    np.testing.assert_array_equal(tensors.to_array(fake.received[0].inputs["images"]), IMAGES)


def test_version_label_and_signature_are_sent(fake) -> None:
    with GrpcClient(fake.target) as client:
        assert client.predict("mnist", {"images": IMAGES}, version=2).version == 2
        assert client.predict("mnist", {"images": IMAGES}, label="stable", signature="serving_default").version == 2
        with pytest.raises(ValueError, match="not both"):
            client.predict("mnist", {"images": IMAGES}, version=2, label="stable")
    assert [request.model_spec.signature_name for request in fake.received] == ["", "serving_default"]


def test_metadata_gives_types_and_shapes(fake) -> None:
    with GrpcClient(fake.target) as client:
        metadata = client.metadata("mnist", version=2)
    assert metadata.version == 2
    signature = metadata.signatures["serving_default"]
    assert signature.inputs == {"images": TensorInfo("uint8", (None, 28, 28))}
    assert signature.outputs == {
        "probabilities": TensorInfo("float32", (None, 10)),
        "classes": TensorInfo("int64", (None,)),
    }
    assert metadata.signatures["text"].inputs == {"s": TensorInfo("object", None)}


def test_status_lists_the_newest_first(fake) -> None:
    with GrpcClient(fake.target) as client:
        statuses = client.status("mnist")
    assert [status.version for status in statuses] == [3, 2, 1]
    assert statuses[0] == VersionStatus(3, "AVAILABLE", "")
    assert statuses[2] == VersionStatus(1, "END", "disk full")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "nope"}, errors.NotFound),
        ({"model": "mnist", "version": 9}, errors.NotFound),
        ({"model": "mnist", "label": "canary"}, errors.InvalidArgument),
    ],
)
def test_what_the_server_refuses_is_raised_by_kind(fake, arguments, error) -> None:
    with GrpcClient(fake.target) as client, pytest.raises(error):
        client.predict(inputs={"images": IMAGES}, **arguments)


def test_a_late_answer_is_a_deadline_exceeded(fake) -> None:
    fake.delay = 2.0
    started = time.monotonic()
    with GrpcClient(fake.target) as client, pytest.raises(errors.DeadlineExceeded):
        client.predict("mnist", {"images": IMAGES}, timeout=0.2)
    assert time.monotonic() - started < 1.5


def test_nobody_there_is_unavailable_and_says_where() -> None:
    with (
        GrpcClient("127.0.0.1:1") as client,
        pytest.raises(errors.Unavailable, match=r"nothing answers .* 127\.0\.0\.1:1"),
    ):
        client.status("mnist")


@pytest.mark.parametrize("wrong", ["localhost:8500", "127.0.0.2", "127.0.0.2:x", ""])
def test_one_of_several_addresses_that_is_none_is_named(wrong) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{wrong!r} is not an IPv4 address with a port")):
        GrpcClient(f"127.0.0.1:8500,{wrong}")


def test_messages_beyond_grpcs_default_of_4_mib_pass(fake) -> None:
    images = np.zeros((8000, 28, 28), np.uint8)  # 6 MiB
    with GrpcClient(fake.target) as client:
        assert client.predict("mnist", {"images": images}).outputs["classes"].shape == (8000,)


def test_a_malformed_tensor_is_a_bad_answer(fake) -> None:
    def broken(request, context):
        response = fake.predict(request, context)
        response.outputs["classes"].tensor_shape.dim[0].size = 1 << 40
        return response

    client = GrpcClient(channel=_CannedChannel(broken))
    with pytest.raises(errors.BadAnswer, match="malformed tensor"):
        client.predict("mnist", {"images": IMAGES})


class _CannedChannel:
    """A channel whose every method is `method`."""

    def __init__(self, method) -> None:
        self._method = method

    def unary_unary(self, path, serializer, deserializer):
        return lambda request, timeout, metadata: self._method(request, None)


def test_an_injected_channel_stays_open(fake) -> None:
    with grpc.insecure_channel(fake.target) as channel:
        with GrpcClient(fake.target, channel=channel) as client:
            client.status("mnist")
        with GrpcClient(fake.target, channel=channel) as client:
            client.status("mnist")


def test_asyncio_client_answers_the_same(fake) -> None:
    async def ask():
        async with AsyncGrpcClient(fake.target) as client:
            predictions = await asyncio.gather(*(client.predict("mnist", {"images": IMAGES}) for _ in range(8)))
            metadata, status = await client.metadata("mnist"), await client.status("mnist")
            with pytest.raises(errors.NotFound):
                await client.predict("nope", {"images": IMAGES})
            fake.delay = 2.0
            with pytest.raises(errors.DeadlineExceeded):
                await client.predict("mnist", {"images": IMAGES}, timeout=0.2)
        return predictions, metadata, status

    predictions, metadata, status = asyncio.run(ask())
    assert [list(prediction.outputs["classes"]) for prediction in predictions] == [[7, 3]] * 8
    with GrpcClient(fake.target) as client:
        assert client.metadata("mnist") == metadata
        assert client.status("mnist") == status


@pytest.mark.parametrize(
    ("code", "calls", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4, errors.Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, errors.ResourceExhausted),
        (grpc.StatusCode.INVALID_ARGUMENT, 1, errors.InvalidArgument),
    ],
)
def test_only_what_is_unavailable_is_sent_again(code, calls, error) -> None:
    asked = []

    def refuse(request, context):
        asked.append(request)
        context.abort(code, "not now")

    methods = {"Predict": grpc.unary_unary_rpc_method_handler(refuse)}
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with GrpcClient(f"127.0.0.1:{port}") as client, pytest.raises(error):
            client.predict("mnist", {"images": IMAGES})
    finally:
        server.stop(None).wait()
    assert len(asked) == calls

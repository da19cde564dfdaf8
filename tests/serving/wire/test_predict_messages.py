"""The short ways of Predict's messages give what the message classes give, for every tensor and order of bytes."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow_serving.apis import predict_pb2

from bookserve.serving.wire.predict_messages import _MAX_REMEMBERED, PredictRequests, write_response
from bookserve.serving.wire.tensors import Array, TensorError

DTYPES = (
    *(np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint32),
    *(np.uint64, np.bool_, np.complex64),
)
TENSORS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(
        dtype,
        arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
        elements={"allow_nan": False} if np.dtype(dtype).kind in "fc" else None,
    )
)


def request_of(array: Any, name: str = "m", **spec: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if spec:
        request.model_spec.version.value = spec["version"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
    return request


def read(requests: PredictRequests, data: bytes) -> tuple[Any, dict[str, Array]]:
    request, inputs = requests.read(data)
    return request, requests.tensors(request, data) if inputs is None else inputs


@given(TENSORS, TENSORS)
def test_requests_read_alike_the_first_time_and_later(first: Array, second: Array) -> None:
    requests = PredictRequests()
    for array in (first, first, second, first, second):
        request, inputs = read(requests, request_of(array).SerializeToString())
        assert request.model_spec.name == "m"
        assert inputs["x"].dtype == array.dtype
        np.testing.assert_array_equal(inputs["x"], array)


def test_a_request_that_begins_like_another_is_read_at_once_with_its_own_values() -> None:
    requests = PredictRequests()
    ones, twos = np.full((2, 20), 1, np.float32), np.full((2, 20), 2, np.float32)
    read(requests, request_of(ones, version=7).SerializeToString())
    request, inputs = requests.read(request_of(twos, version=7).SerializeToString())
    assert inputs is not None
    np.testing.assert_array_equal(inputs["x"], twos)
    assert inputs["x"].flags.aligned
    assert request.model_spec.version.value == 7
    for other in (request_of(twos, version=8), request_of(twos.T, version=7), request_of(twos, "n", version=7)):
        assert requests.read(other.SerializeToString())[1] is None


def test_a_request_that_ends_with_something_like_its_values_is_always_read_in_full() -> None:
    unknown_field = b"\xfa\x07\x01A"
    array = np.frombuffer(unknown_field * 40, np.float32)
    request = request_of(array)
    data = request.SerializeToString() + unknown_field  # ends with the bytes of the values, four bytes behind them
    assert data.endswith(array.tobytes())
    requests = PredictRequests()
    for _ in range(2):
        ours, inputs = requests.read(data)
        assert inputs is None
        np.testing.assert_array_equal(requests.tensors(ours, data)["x"], array)


def test_a_request_that_begins_like_another_and_has_more_behind_its_values_is_read_in_full() -> None:
    requests = PredictRequests()
    small, large = np.arange(4, dtype=np.float32), np.arange(12, dtype=np.float32)
    read(requests, request_of(small).SerializeToString())
    read(requests, request_of(large).SerializeToString())
    filtered = request_of(small)
    filtered.output_filter.append("y" * 30)  # as long as the request with the large tensor
    data = filtered.SerializeToString()
    assert len(data) == len(request_of(large).SerializeToString())
    request, inputs = read(requests, data)
    assert list(request.output_filter) == ["y" * 30]
    np.testing.assert_array_equal(inputs["x"], small)


def test_what_is_no_request_and_what_is_no_tensor() -> None:
    requests = PredictRequests()
    with pytest.raises(DecodeError):
        requests.read(b"\xff")
    request = request_of(np.zeros(8, np.float32))
    request.inputs["x"].tensor_shape.dim[0].size = 9
    data = request.SerializeToString()
    ours, inputs = requests.read(data)
    assert inputs is None
    with pytest.raises(TensorError, match=r"^x: tensor of shape \[9\]"):
        requests.tensors(ours, data)


def test_only_so_many_requests_are_remembered() -> None:
    requests = PredictRequests()
    for width in range(20, 20 + 3 * _MAX_REMEMBERED):
        read(requests, request_of(np.zeros((1, width), np.float32)).SerializeToString())
    assert len(requests._known) <= _MAX_REMEMBERED
    assert len(requests._prefixes) <= _MAX_REMEMBERED


@pytest.mark.parametrize("as_content", [False, True])
@given(first=TENSORS, second=TENSORS)
def test_responses_are_what_the_message_classes_write(as_content: bool, first: Array, second: Array) -> None:
    data = write_response("m", 7, "s", {"first": first, "second": second}, as_content=as_content)
    response = predict_pb2.PredictResponse.FromString(data)
    assert (response.model_spec.name, response.model_spec.version.value, response.model_spec.signature_name) == (
        *("m", 7, "s"),
    )
    for alias, array in (("first", first), ("second", second)):
        tensor = response.outputs[alias]
        assert tf.dtypes.as_dtype(tensor.dtype) == array.dtype
        np.testing.assert_array_equal(tf.make_ndarray(tensor).reshape(array.shape), array)
        if as_content:
            assert tensor.tensor_content == array.tobytes()
        else:
            assert not tensor.tensor_content


def test_arrays_that_are_views_strings_and_foreign_bytes() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    words = np.array([b"a", b"bc"], object)
    foreign = np.arange(3, dtype=">f4")
    data = write_response("m", 1, "s", {"t": turned, "w": words, "f": foreign}, as_content=False)
    outputs = predict_pb2.PredictResponse.FromString(data).outputs
    np.testing.assert_array_equal(tf.make_ndarray(outputs["t"]), turned)
    assert tf.make_ndarray(outputs["w"]).tolist() == [b"a", b"bc"]
    np.testing.assert_array_equal(tf.make_ndarray(outputs["f"]), [0, 1, 2])

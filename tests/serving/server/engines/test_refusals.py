"""Which errors of an engine are a request's fault, and what of them a client reads."""

import pytest

from bookserve.serving.server.engines import refusals
from bookserve.serving.wire import tensorflow_error_pb2

_RUNNING = "[ONNXRuntimeError] : {} : Non-zero status code returned while running {} node. Name:'/m/x' Status Message: "


class Fail(Exception):
    """Named as ONNX Runtime's."""


class EPFail(Exception):
    """Named as ONNX Runtime's."""


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            _RUNNING.format("1 : FAIL", "Add") + "/onnxruntime_src/onnxruntime/core/providers/cpu/math/"
            "element_wise_ops.h:540 void onnxruntime::BroadcastIterator::Append(ptrdiff_t, ptrdiff_t) axis == 1 ||"
            " axis == largest was false. Attempting to broadcast an axis by a dimension other than 1. 3 by 2\n",
            "Add: axis == 1 || axis == largest was false. Attempting to broadcast an axis by a dimension other than 1."
            " 3 by 2",
        ),
        (
            _RUNNING.format("1 : FAIL", "Div") + "element_wise_ops.cc:703 Compute Integer division by zero",
            "Div: Integer division by zero",
        ),
        ("no file at /home/me/models/x.onnx", "no file at (path)"),
    ],
)  # fmt: skip
def test_a_kernel_that_fails_over_values_is_the_requests_fault_and_the_reason_has_no_paths(
    message: str, reason: str
) -> None:
    error = refusals.of_onnx(Fail(message))
    assert error is not None
    assert error.code == tensorflow_error_pb2.INVALID_ARGUMENT
    assert error.message == f"the model refuses the request: {reason}"


def test_a_device_that_fails_is_not() -> None:
    assert refusals.of_onnx(EPFail("the device is gone")) is None
    assert refusals.of_onnx(Fail("CUDA failure 700: an illegal memory access")) is None
    assert refusals.of_onnx(KeyError("x")) is None
    assert refusals.of_tensorflow(tensorflow_error_pb2.INTERNAL, "cuDNN launch failure") is None


def test_memory_that_is_not_there_is_exhausted() -> None:
    for error in (
        refusals.of_onnx(Fail("Failed to allocate memory for requested buffer of size 4398046511104")),
        refusals.of_onnx(MemoryError()),
        refusals.of_tflite(RuntimeError("std::bad_alloc")),
    ):
        assert error is not None
        assert error.code == tensorflow_error_pb2.RESOURCE_EXHAUSTED


def test_tensorflows_nodes_and_stacks_are_left_out() -> None:
    message = (
        "{{function_node __inference_f_12}} Input to reshape is a tensor with 6 values, but the requested shape has 4\n"
        '\t [[{{node Reshape}}]]\n\nOriginal stack trace for x:\n  File "/home/me/f.py", line 3'
    )
    error = refusals.of_tensorflow(tensorflow_error_pb2.INVALID_ARGUMENT, message)
    assert error is not None
    assert error.message == "Input to reshape is a tensor with 6 values, but the requested shape has 4"


def test_bytes_that_are_no_message_are_the_requests_fault() -> None:
    error = refusals.of_tensorflow(tensorflow_error_pb2.DATA_LOSS, "CountFields: Failed to consume entire buffer")
    assert error is not None
    assert error.code == tensorflow_error_pb2.INVALID_ARGUMENT


def test_why_a_version_does_not_load_is_one_line() -> None:
    message = (
        "Graph execution error:\n\nDetected at node 'init/FromFile' defined at (most recent call last):\n"
        "  File \"/home/me/f.py\", line 3, in f\nNode: 'init/FromFile'\n"
        "/models/m/1/assets/words.txt; No such file or directory\n\t [[{{node init/FromFile}}]]\n\n"
        "Original stack trace for 'init/FromFile':\n  File \"/home/me/f.py\", line 3"
    )
    assert refusals.of_loading(message) == "/models/m/1/assets/words.txt; No such file or directory"
    truncated = "Graph execution error:\n\nRead less bytes than requested\n\t [[{{node RestoreV2}}]]"
    assert refusals.of_loading(truncated) == "Read less bytes than requested"

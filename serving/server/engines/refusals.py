"""Whose fault it is when an engine fails over a request, and what of its message is for the client.

A version that loaded fails over what a request holds: sizes that do not fit each other, an index out of range, a length
that asks for more memory than there is. The tables tell by the engine's own classes and words; what they do not list is
a fault of the model, the engine or the machine: it stays INTERNAL, and only the log has it.
"""

import re

from bookserve.serving.server.types.errors import ServingError, internal, invalid_argument, out_of_memory
from bookserve.serving.wire import tensorflow_error_pb2

_MAX_LENGTH = 1000  # letters of a reason
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|Failed to allocate|failed to allocate|OOM when allocating|Available memory of|cannot allocate", re.ASCII
)
# A processor's or a driver's fault, whatever class it comes with.
_DEVICE = re.compile(r"\b(CUDA|CUDNN|CUBLAS|cuda[A-Z]\w+|MIGraphX|TensorRT)\b", re.ASCII)

# ONNX Runtime: the classes of onnxruntime.capi.onnxruntime_pybind11_state. A kernel that meets values it cannot use
# raises any of these four. The others (NoSuchFile, EPFail, NotImplemented, InvalidGraph …) are not the request's.
_ONNX_REQUEST = frozenset(("InvalidArgument", "Fail", "RuntimeException", "ValueError"))
# LiteRT: what its Python interface raises over shapes, values and nodes that fail.
_TFLITE_REQUEST = frozenset(("ValueError", "RuntimeError", "TypeError", "IndexError"))
# TensorFlow tells by its codes, which the client gets as from TensorFlow Serving, but for INTERNAL.
_TENSORFLOW_FAULTS = frozenset((tensorflow_error_pb2.INTERNAL,))

# "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node.
# Name:'…' Status Message: …"
_ONNX_HEAD = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_ONNX_NODE = re.compile(
    r"(?:Non-zero status code returned|Exception caught) while running (\S+) node\. Name:'.*?' Status Message: ",
    re.DOTALL,
)
# "/build/…/file.h:540 void onnxruntime::f(long int) const [with T = float] " and "file.cc:703 Compute "
_LONG_PLACE = re.compile(
    r"/\S*\.(?:cc|cpp|h|hpp|cu|cuh):\d+ [^\n]*?\)(?: const)?(?: \[with [^\n]*?\])? (?!\()", re.ASCII
)
_SHORT_PLACE = re.compile(r"[\w./-]+\.(?:cc|cpp|h|hpp|cu|cuh):\d+ (?:operator\(\) |[A-Za-z_]\w* )?", re.ASCII)
_TFLITE_PLACE = re.compile(r"[\w./-]+\.(?:cc|cpp|h|hpp):\d+ ", re.ASCII)
_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][\w.+@-]+){2,}", re.ASCII)
# TensorFlow's "[[{{node StatefulPartitionedCall/f/x}}]]", with the file and line of the Python that built it.
_TENSORFLOW_NODE = re.compile(r"\s*(?:\[\[)?\{\{(?:node|function_node) [^}]*\}\}(?:\]\])?(?:\s*\[\[[^\]]*\]\])*")
# What its sessions write around the reason, while a version loads.
_TENSORFLOW_TRACE = re.compile(
    r"Graph execution error:\s*|Detected at node .*?\nNode: '[^\n]*'\n|\n\s*Original stack trace for .*", re.DOTALL
)
_TENSORFLOW_STACK = re.compile(r"\n\s*Original stack trace.*|\n\s*Detected at node.*|\n\s*File \".*", re.DOTALL)


def of_onnx(error: Exception) -> ServingError | None:
    """The answer to a request over which ONNX Runtime raised `error`; None where it is not the request's fault."""
    text = str(error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return out_of_memory()
    if type(error).__name__ not in _ONNX_REQUEST or _DEVICE.search(text):
        return None
    text = _ONNX_NODE.sub(r"\1: ", _ONNX_HEAD.sub("", text))
    return _refused(_SHORT_PLACE.sub("", _LONG_PLACE.sub("", text)))


def of_tflite(error: Exception) -> ServingError | None:
    """The answer to a request over which LiteRT raised `error`; None where it is not the request's fault."""
    text = str(error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return out_of_memory()
    if type(error).__name__ not in _TFLITE_REQUEST:
        return None
    return _refused(_TFLITE_PLACE.sub("", text))


def of_tensorflow(code: tensorflow_error_pb2.Code, message: str) -> ServingError | None:
    """The answer to a request over which TensorFlow failed with that code; None where it is not the request's fault."""
    if code in _TENSORFLOW_FAULTS:
        return None
    if code == tensorflow_error_pb2.DATA_LOSS:  # of what the request brought: no file is read while it is answered
        code = tensorflow_error_pb2.INVALID_ARGUMENT
    return ServingError(code, _plain(_TENSORFLOW_NODE.sub("", _TENSORFLOW_STACK.sub("", message))))


def of_loading(message: str) -> str:
    """Why TensorFlow does not load a version, on one line; for the operator, so paths stay."""
    return " ".join(_TENSORFLOW_NODE.sub("", _TENSORFLOW_TRACE.sub("", message)).split())[:_MAX_LENGTH]


def fault() -> ServingError:
    """The answer where it is not the request's fault; what it was is for the log."""
    return internal("the model failed: see the server's log")


def _refused(reason: str) -> ServingError:
    return invalid_argument(f"the model refuses the request: {_plain(reason)}")


def _plain(reason: str) -> str:
    """One line without paths, of bounded length."""
    return " ".join(_PATH.sub("(path)", reason).split()).rstrip(": ")[:_MAX_LENGTH] or "no reason given"

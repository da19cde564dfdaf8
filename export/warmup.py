"""The warm-up requests of a version, which a server answers to itself before it takes the first call.

A TFRecord file of `tensorflow.serving.PredictionLog`. That message belongs to TensorFlow Serving, not to TensorFlow, so
its four nested messages are written here field by field; the tensors in them are TensorFlow's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from bookserve.export.contracts import SIGNATURE

LOCATION = "assets.extra/tf_serving_warmup_requests"  # inside the version folder
BATCHES = (1, 8, 32)  # rows of the requests: the first call of each size is the slow one


def write(path: Path, model: str, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    """One Predict request for each size in BATCHES, made of the first rows of `rows` (input -> array)."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in BATCHES:
            writer.write(prediction_log(model, {name: array[:size] for name, array in rows.items()}))


def prediction_log(model: str, inputs: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A serialised PredictionLog with one PredictRequest for the signature `serving_default`."""
    spec = _field(1, model.encode()) + _field(3, SIGNATURE.encode())  # ModelSpec: name, signature_name
    request = _field(1, spec)  # PredictRequest: model_spec
    for name, array in inputs.items():
        tensor = tf.make_tensor_proto(array).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # inputs, a map: key, value
    return _field(6, _field(1, request))  # PredictionLog: predict_log; PredictLog: request


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protobuf message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])

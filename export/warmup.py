"""The warm-up requests of a version, which a server answers to itself before it takes the first call.

A TFRecord file of `tensorflow.serving.PredictionLog`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from bookserve.export.contracts import SIGNATURE
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog
from bookserve.serving.wire.tensors import to_proto

LOCATION = "assets.extra/tf_serving_warmup_requests"  # inside the version folder
BATCHES = (1, 8, 32)  # rows of the requests: the first call of each size is the slow one


def write(path: Path, model: str, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    """One Predict request for each size in BATCHES, made of the first rows of `rows` (input -> array)."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in BATCHES:
            writer.write(prediction_log(model, {name: array[:size] for name, array in rows.items()}))


def prediction_log(model: str, inputs: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A serialised PredictionLog with one PredictRequest for the signature `serving_default`."""
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.signature_name = SIGNATURE
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_proto(array, as_content=True))
    return log.SerializeToString()

"""The warm-up requests of a version, which a server answers to itself before it takes the first call.

A TFRecord file of `tensorflow.serving.PredictionLog`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bookserve.export import golden
from bookserve.export.contracts import SIGNATURE, Contract
from bookserve.serving.wire import version_folder
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog
from bookserve.serving.wire.tensors import to_proto
from bookserve.serving.wire.tfrecord import framed

LOCATION = version_folder.WARMUP  # inside the version folder
BATCHES = (1, 8, 32)  # rows of the requests: the first call of each size is the slow one


def write(path: Path, contract: Contract, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    """One Predict request for each size in BATCHES, made of the first rows of `rows` (input -> array).

    A size that `rows` do not have is left out, but for the smallest; inputs without free rows go as they are.
    """
    most = min((len(rows[tensor.name]) for tensor in contract.inputs if tensor.shape[:1] == (None,)), default=1)
    with path.open("wb") as stream:
        for size in [size for size in BATCHES if size == BATCHES[0] or size <= most]:
            inputs = golden.first_rows(contract, rows, size)
            stream.write(framed(prediction_log(contract.model, inputs, contract.signature)))


def prediction_log(model: str, inputs: Mapping[str, npt.NDArray[Any]], signature: str = SIGNATURE) -> bytes:
    """A serialised PredictionLog with one PredictRequest for a signature."""
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_proto(array, as_content=True))
    return log.SerializeToString(deterministic=True)

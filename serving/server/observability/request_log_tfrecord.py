"""The request log as TensorFlow Serving writes it where it is built to: a PredictionLog a request, in TFRecord files.

Such a file may serve as the warm-up file of a version (`models/warmup.py`).
"""

from collections.abc import Mapping
from typing import Any

from bookserve.serving.server.types.examples import CLASSIFY, INPUTS, REGRESS
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog
from bookserve.serving.wire.tensors import Array, to_proto
from bookserve.serving.wire.tfrecord import framed

# By the names that gRPC's and REST's APIs have; requests of others have no record.
_PREDICTS = ("Predict", "predict", "ModelInfer", "infer")
_CLASSIFIES = ("Classify", "classify")
_REGRESSES = ("Regress", "regress")
LOGGED = frozenset((*_PREDICTS, *_CLASSIFIES, *_REGRESSES))


def encode(
    seconds: float, fields: Mapping[str, Any], inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> bytes:
    """The record of one request that was answered, as it stands in the file."""
    spec = messages.ModelSpec(name=fields["model"], signature_name=fields["signature"])
    spec.version.value = fields["version"]
    log = PredictionLog()
    log.log_metadata.model_spec.CopyFrom(spec)
    log.log_metadata.sampling_config.sampling_rate = fields["sampling_rate"]
    log.log_metadata.timestamp_secs = int(seconds)
    api = fields["api"]
    if api in _PREDICTS:
        predict = log.predict_log
        for tensors, protos in ((inputs, predict.request.inputs), (outputs, predict.response.outputs)):
            for name, tensor in tensors.items():
                protos[name].CopyFrom(to_proto(tensor))
        predict.request.model_spec.CopyFrom(spec)
        predict.response.model_spec.CopyFrom(spec)
    else:
        method, entry = (CLASSIFY, log.classify_log) if api in _CLASSIFIES else (REGRESS, log.regress_log)
        examples = inputs[INPUTS].tolist()
        entry.request.input.example_list.examples.extend(map(tensorflow_pb2.Example.FromString, examples))
        entry.request.model_spec.CopyFrom(spec)
        response: Any = method.response(model_spec=spec, result=method.read(outputs, len(examples)))
        entry.response.CopyFrom(response)
    return framed(log.SerializeToString())

"""The message modules: wire-identical to TensorFlow's, and generated from the .proto files beside them."""

from pathlib import Path

import pytest
import tritonclient.grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from bookserve.serving.wire import generate, open_inference_pb2, tensorflow_pb2, tensorflow_serving_pb2
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog

PAIRS = [
    (tensorflow_pb2.TensorProto, tensor_pb2.TensorProto),
    (tensorflow_pb2.SignatureDef, meta_graph_pb2.SignatureDef),
    (tensorflow_pb2.SavedModel, saved_model_pb2.SavedModel),
    (tensorflow_pb2.Example, example_pb2.Example),
    (tensorflow_serving_pb2.PredictRequest, predict_pb2.PredictRequest),
    (tensorflow_serving_pb2.PredictResponse, predict_pb2.PredictResponse),
    (tensorflow_serving_pb2.ClassificationRequest, classification_pb2.ClassificationRequest),
    (tensorflow_serving_pb2.ClassificationResponse, classification_pb2.ClassificationResponse),
    (tensorflow_serving_pb2.RegressionRequest, regression_pb2.RegressionRequest),
    (tensorflow_serving_pb2.RegressionResponse, regression_pb2.RegressionResponse),
    (tensorflow_serving_pb2.MultiInferenceRequest, inference_pb2.MultiInferenceRequest),
    (tensorflow_serving_pb2.MultiInferenceResponse, inference_pb2.MultiInferenceResponse),
    (tensorflow_serving_pb2.SignatureDefMap, get_model_metadata_pb2.SignatureDefMap),
    (tensorflow_serving_pb2.GetModelMetadataRequest, get_model_metadata_pb2.GetModelMetadataRequest),
    (tensorflow_serving_pb2.GetModelMetadataResponse, get_model_metadata_pb2.GetModelMetadataResponse),
    (tensorflow_serving_pb2.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
    (tensorflow_serving_pb2.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    (tensorflow_serving_pb2.ReloadConfigRequest, model_management_pb2.ReloadConfigRequest),
    (tensorflow_serving_pb2.ReloadConfigResponse, model_management_pb2.ReloadConfigResponse),
    (PredictionLog, prediction_log_pb2.PredictionLog),
    (tensorflow_serving_pb2.ModelServerConfig, model_server_config_pb2.ModelServerConfig),
    *(
        (getattr(open_inference_pb2, name), getattr(tritonclient.grpc.service_pb2, name))
        for name in open_inference_pb2.DESCRIPTOR.message_types_by_name
    ),
]


def _compare(ours: Descriptor, theirs: Descriptor, seen: set[str]) -> None:
    assert ours.full_name == theirs.full_name
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    for name, field in ours.fields_by_name.items():
        original: FieldDescriptor = theirs.fields_by_name[name]
        assert (field.number, field.type, field.is_repeated) == (
            original.number,
            original.type,
            original.is_repeated,
        ), field.full_name
        if field.message_type:
            _compare(field.message_type, original.message_type, seen)
        if field.enum_type:
            theirs_values = {value.name: value.number for value in original.enum_type.values}
            for value in field.enum_type.values:
                assert theirs_values[value.name] == value.number, value.full_name


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda message: message.DESCRIPTOR.full_name)
def test_every_field_has_the_number_and_type_of_the_original(ours: type, theirs: type) -> None:
    _compare(ours.DESCRIPTOR, theirs.DESCRIPTOR, set())


def test_a_text_config_may_set_every_field_of_the_original() -> None:
    def names(message: Descriptor) -> set[str]:
        inner = [field.message_type for field in message.fields if field.message_type]
        below = (names(one) for one in inner if one.full_name.startswith("tensorflow."))
        return {field.full_name for field in message.fields}.union(*below)

    ours, theirs = tensorflow_serving_pb2.ModelServerConfig, model_server_config_pb2.ModelServerConfig
    assert names(ours.DESCRIPTOR) == names(theirs.DESCRIPTOR)


def test_the_committed_modules_are_what_the_proto_files_generate(tmp_path: Path) -> None:
    for module in generate.generate(tmp_path):
        assert module.read_text() == (generate.HERE / module.name).read_text(), f"{module.name}: run 'make protos'"

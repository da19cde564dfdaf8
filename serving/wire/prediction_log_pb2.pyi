from bookserve.serving.wire import tensorflow_serving_pb2 as _tensorflow_serving_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyLog(_message.Message):
    __slots__ = ("request", "response")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    request: _tensorflow_serving_pb2.ClassificationRequest
    response: _tensorflow_serving_pb2.ClassificationResponse
    def __init__(self, request: _Optional[_Union[_tensorflow_serving_pb2.ClassificationRequest, _Mapping]] = ..., response: _Optional[_Union[_tensorflow_serving_pb2.ClassificationResponse, _Mapping]] = ...) -> None: ...

class RegressLog(_message.Message):
    __slots__ = ("request", "response")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    request: _tensorflow_serving_pb2.RegressionRequest
    response: _tensorflow_serving_pb2.RegressionResponse
    def __init__(self, request: _Optional[_Union[_tensorflow_serving_pb2.RegressionRequest, _Mapping]] = ..., response: _Optional[_Union[_tensorflow_serving_pb2.RegressionResponse, _Mapping]] = ...) -> None: ...

class PredictLog(_message.Message):
    __slots__ = ("request", "response")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    request: _tensorflow_serving_pb2.PredictRequest
    response: _tensorflow_serving_pb2.PredictResponse
    def __init__(self, request: _Optional[_Union[_tensorflow_serving_pb2.PredictRequest, _Mapping]] = ..., response: _Optional[_Union[_tensorflow_serving_pb2.PredictResponse, _Mapping]] = ...) -> None: ...

class MultiInferenceLog(_message.Message):
    __slots__ = ("request", "response")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    request: _tensorflow_serving_pb2.MultiInferenceRequest
    response: _tensorflow_serving_pb2.MultiInferenceResponse
    def __init__(self, request: _Optional[_Union[_tensorflow_serving_pb2.MultiInferenceRequest, _Mapping]] = ..., response: _Optional[_Union[_tensorflow_serving_pb2.MultiInferenceResponse, _Mapping]] = ...) -> None: ...

class LogMetadata(_message.Message):
    __slots__ = ("model_spec", "sampling_config", "timestamp_secs")
    MODEL_SPEC_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_SECS_FIELD_NUMBER: _ClassVar[int]
    model_spec: _tensorflow_serving_pb2.ModelSpec
    sampling_config: _tensorflow_serving_pb2.SamplingConfig
    timestamp_secs: int
    def __init__(self, model_spec: _Optional[_Union[_tensorflow_serving_pb2.ModelSpec, _Mapping]] = ..., sampling_config: _Optional[_Union[_tensorflow_serving_pb2.SamplingConfig, _Mapping]] = ..., timestamp_secs: _Optional[int] = ...) -> None: ...

class PredictionLog(_message.Message):
    __slots__ = ("log_metadata", "classify_log", "regress_log", "predict_log", "multi_inference_log")
    LOG_METADATA_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_LOG_FIELD_NUMBER: _ClassVar[int]
    REGRESS_LOG_FIELD_NUMBER: _ClassVar[int]
    PREDICT_LOG_FIELD_NUMBER: _ClassVar[int]
    MULTI_INFERENCE_LOG_FIELD_NUMBER: _ClassVar[int]
    log_metadata: LogMetadata
    classify_log: ClassifyLog
    regress_log: RegressLog
    predict_log: PredictLog
    multi_inference_log: MultiInferenceLog
    def __init__(self, log_metadata: _Optional[_Union[LogMetadata, _Mapping]] = ..., classify_log: _Optional[_Union[ClassifyLog, _Mapping]] = ..., regress_log: _Optional[_Union[RegressLog, _Mapping]] = ..., predict_log: _Optional[_Union[PredictLog, _Mapping]] = ..., multi_inference_log: _Optional[_Union[MultiInferenceLog, _Mapping]] = ...) -> None: ...

from bookserve.serving.wire import tensorflow_serving_pb2 as _tensorflow_serving_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AddOrReplaceModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _tensorflow_serving_pb2.ModelConfig
    def __init__(self, model: _Optional[_Union[_tensorflow_serving_pb2.ModelConfig, _Mapping]] = ...) -> None: ...

class AddOrReplaceModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConfigResponse(_message.Message):
    __slots__ = ("config",)
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    config: _tensorflow_serving_pb2.ModelServerConfig
    def __init__(self, config: _Optional[_Union[_tensorflow_serving_pb2.ModelServerConfig, _Mapping]] = ...) -> None: ...

from bookserve.serving.wire import tensorflow_serving_pb2 as _tensorflow_serving_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

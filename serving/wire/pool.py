"""A descriptor pool of our own, so that our messages live beside TensorFlow's in one process.

Protobuf allows a full name such as `tensorflow.TensorProto` once a pool. TensorFlow and `tensorflow-serving-api` take
that name in the default pool; the generated modules of this folder register here instead.
"""

from google.protobuf import any_pb2, descriptor_pool, wrappers_pb2

POOL = descriptor_pool.DescriptorPool()
for _module in (any_pb2, wrappers_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)

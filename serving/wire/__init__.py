"""The protocol of TensorFlow Serving without TensorFlow: messages and tensor codecs."""

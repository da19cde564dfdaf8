"""The requests that a version answers to itself before it is available, so that no client pays for its set-up.

They come from `assets.extra/tf_serving_warmup_requests`, as in TensorFlow Serving
(servables/tensorflow/saved_model_warmup_util.cc): a TFRecord file of PredictionLog. Where there is none, one row of
zeros runs through each signature that it fits, unless the engine keeps state from run to run.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError

from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.types.errors import ServingError, invalid_argument, unimplemented
from bookserve.serving.server.types.examples import CLASSIFY, METHODS, REGRESS, ExampleMethod, read_examples
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE, find_signature
from bookserve.serving.wire import tensorflow_error_pb2, tensorflow_pb2, version_folder
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog
from bookserve.serving.wire.tensors import Array, TensorError, TensorSpec, to_array
from bookserve.serving.wire.tfrecord import FOOTER, HEADER, LENGTH, masked_crc

log = logging.getLogger(__name__)

LOCATION = version_folder.WARMUP
MAX_RECORDS = 1000


def warm_up(engine: Engine, version_path: Path, iterations: int) -> int:
    """Runs the version's own requests, each `iterations` times, or zeros where it has none; returns how many it has.

    Raises ServingError when a record cannot be read or its request fails: such a version is not to be served.
    """
    path = version_path / LOCATION
    if not path.is_file():
        if engine.keeps_state:  # the first client is to find it as it was saved
            log.info("No warmup data file found at %s", path)
            return 0
        log.info("No warmup data file found at %s: running zeros", path)
        _run_zeros(engine, version_path)
        return 0
    count = 0
    for record in read_records(path):
        count += 1
        if count > MAX_RECORDS:
            raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        try:
            entry = PredictionLog.FromString(record)
        except DecodeError as error:
            raise invalid_argument(f"Failed to parse warmup record: {record[:64]!r} from {path}") from error
        for _ in range(max(1, iterations)):
            _run(engine, entry)
    log.info("Finished reading warmup data for model at %s. Number of warmup records read: %d.", path, count)
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file.

    Raises ServingError (DATA_LOSS) where the file is no such file, is cut off, or a checksum does not hold.
    """
    with path.open("rb") as stream:
        position = 0
        left = path.stat().st_size
        while header := stream.read(HEADER.size):
            if len(header) < HEADER.size:
                raise _data_loss(f"truncated record at {position}")
            length, length_crc = HEADER.unpack(header)
            if masked_crc(header[: LENGTH.size]) != length_crc:
                raise _data_loss(f"corrupted record at {position}")
            left -= HEADER.size + length + FOOTER.size
            if left < 0:
                raise _data_loss(f"truncated record at {position}")
            yield _checked(stream, length, position)
            position = stream.tell()


def _checked(stream: BinaryIO, length: int, position: int) -> bytes:
    record = stream.read(length)
    (crc,) = FOOTER.unpack(stream.read(FOOTER.size))
    if masked_crc(record) != crc:
        raise _data_loss(f"corrupted record at {position}")
    return record


def _data_loss(problem: str) -> ServingError:
    return ServingError(
        tensorflow_error_pb2.DATA_LOSS, f"{problem}. Please verify your warmup data is in TFRecord format."
    )


def _run(engine: Engine, entry: PredictionLog) -> None:
    match entry.WhichOneof("log_type"):
        case "predict_log":
            _predict(engine, entry.predict_log.request)
        case "classify_log":
            classify = entry.classify_log.request
            _run_examples(engine, CLASSIFY, classify.model_spec, classify.input)
        case "regress_log":
            regress = entry.regress_log.request
            _run_examples(engine, REGRESS, regress.model_spec, regress.input)
        case "multi_inference_log":
            request = entry.multi_inference_log.request
            for task in request.tasks:
                if task.method_name not in METHODS:
                    raise unimplemented(f"Unsupported signature method_name: {task.method_name}")
                _run_examples(engine, METHODS[task.method_name], task.model_spec, request.input)
        case _:
            raise unimplemented("Unsupported log_type for warmup: none of those known")


def _run_examples(engine: Engine, method: ExampleMethod, spec: messages.ModelSpec, source: messages.Input) -> None:
    name = spec.signature_name or DEFAULT_SIGNATURE
    signature = engine.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name}")
    outputs = method.outputs(signature, check_method_name=False)
    examples = read_examples(source)
    arrays = engine.run(signature, dict.fromkeys(signature.inputs, examples), outputs)
    method.read(dict(zip(outputs, arrays, strict=True)), len(examples))


def _predict(engine: Engine, request: messages.PredictRequest) -> None:
    signature = find_signature(engine.signatures, request.model_spec.signature_name)
    try:
        inputs: Mapping[str, Array] = {alias: to_array(proto) for alias, proto in request.inputs.items()}
    except TensorError as error:
        raise invalid_argument(f"tensor parsing error: {error}") from error
    inputs = signature.complete(inputs)
    engine.run(signature, inputs, signature.choose_outputs(list(request.output_filter)))


def _run_zeros(engine: Engine, version_path: Path) -> None:
    for signature in engine.signatures.values():
        if all(_has_known_rows(spec) for spec in signature.required.values()):
            try:
                inputs = {name: _one_row(spec) for name, spec in signature.required.items()}
                engine.run(signature, inputs, tuple(signature.outputs))
            except Exception as error:  # a model may well refuse zeros
                log.info("the warm-up of %s with zeros was refused: %s", version_path, error)


def _has_known_rows(spec: TensorSpec) -> bool:
    is_string = spec.data_type == tensorflow_pb2.DT_STRING
    return spec.shape is not None and None not in spec.shape[1:] and not is_string


def _one_row(spec: TensorSpec) -> Array:
    return np.zeros([1 if size is None else size for size in spec.shape or ()], dtype=spec.dtype)

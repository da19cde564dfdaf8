"""Pictures in predict requests, for models whose manifest says how a picture becomes their input.

A client then sends the JPEG, PNG or another picture file itself: `{"b64": …}` over REST, a string tensor over gRPC.
Decoding takes milliseconds, so threads of their own do it, and the number of pictures that they hold is bounded.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bookserve.serving.server.types.errors import (
    ServingError,
    exhausted,
    internal,
    invalid_argument,
    out_of_memory,
    unavailable,
)
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import pictures, tensorflow_pb2
from bookserve.serving.wire.pictures import PictureError, PictureRule
from bookserve.serving.wire.tensorflow_pb2 import DataType
from bookserve.serving.wire.tensors import Array, TensorSpec, numpy_type

log = logging.getLogger(__name__)

_THREADS = 2  # Pillow decodes and scales without holding the interpreter
Done = Callable[[Array | ServingError], None]


class PictureDecoder:
    """The threads that decode for all models of this process. Called on the event loop."""

    def __init__(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        """`most` pictures may wait or be decoded at once (--max_pictures)."""
        self.most = most
        self._loop = loop
        self._held = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")

    def decode(self, files: list[bytes], rule: PictureRule, spec: TensorSpec, done: Done) -> None:
        """Calls `done` on the event loop with the rows of the input, or what is wrong with a picture.

        Raises ServingError (RESOURCE_EXHAUSTED) where too many pictures are held.
        """
        if self._held + len(files) > self.most:
            raise exhausted(
                f"the request has {len(files)} pictures, {self._held} are being decoded, and the server holds"
                f" {self.most} at once (--max_pictures): send fewer at a time"
            )
        self._held += len(files)

        def decoded(future: "asyncio.Future[Array | ServingError]") -> None:
            self._held -= len(files)
            done(unavailable("the server is stopping") if future.cancelled() else future.result())

        self._loop.run_in_executor(self._threads, _rows, files, rule, spec).add_done_callback(decoded)

    def close(self) -> None:
        """Ends the threads; what waits is not decoded."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class PictureInput:
    """The input of one loaded version that takes pictures."""

    def __init__(self, rule: PictureRule, decoder: PictureDecoder) -> None:
        self._rule = rule
        self._decoder = decoder

    def types(self, signature: Signature, body: bytes) -> Mapping[str, DataType]:
        """The types of the signature's inputs in a JSON body: the input is strings where it may hold pictures."""
        if b'"b64"' not in body or not self.takes(signature, self._rule.input):
            return signature.input_types
        return {**signature.input_types, self._rule.input: tensorflow_pb2.DT_STRING}

    def takes(self, signature: Signature, name: str) -> bool:
        """Whether that input of the signature is the one, and is of numbers."""
        spec = signature.inputs.get(name)
        known = spec is not None and spec.data_type != tensorflow_pb2.DT_STRING and spec.shape is not None
        return known and name == self._rule.input

    def is_given(self, signature: Signature, inputs: Mapping[str, Array]) -> bool:
        """Whether a request has strings where the signature wants numbers."""
        given = inputs.get(self._rule.input)
        return given is not None and given.dtype == object and self.takes(signature, self._rule.input)

    def decode(self, signature: Signature, inputs: Mapping[str, Array], done: Callable[[Any], None]) -> None:
        """Calls `done` on the event loop with all inputs, the pictures as rows; or with what is wrong.

        Raises ServingError as PictureDecoder.decode, and INVALID_ARGUMENT for strings in another form than one a row.
        """
        name = self._rule.input
        given = inputs[name]
        if given.ndim > 1:
            raise invalid_argument(f"input '{name}' has pictures of shape {list(given.shape)}: give one a row")

        def decoded(outcome: Array | ServingError) -> None:
            done(outcome if isinstance(outcome, ServingError) else {**inputs, name: outcome})

        self._decoder.decode([bytes(file) for file in given.ravel()], self._rule, signature.inputs[name], decoded)


def _rows(files: list[bytes], rule: PictureRule, spec: TensorSpec) -> Array | ServingError:
    assert spec.shape is not None
    levels = []
    try:
        for number, file in enumerate(files):
            try:
                levels.append(pictures.levels(file, rule))
            except PictureError as error:
                return invalid_argument(f"input '{rule.input}', picture {number}: {error}")
        if not levels:
            return invalid_argument(f"input '{rule.input}' has no picture")
        return pictures.tensor(np.stack(levels), rule, numpy_type(spec.data_type), len(spec.shape))
    except MemoryError:
        return out_of_memory()
    except Exception:
        log.exception("a picture could not be decoded")
        return internal()

"""A version on a running model server, asked over gRPC or REST with several calls under way.

A server that goes away for a moment (a restart, a full queue) is asked again, after pauses that grow.
"""

import random
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from bookserve.clients import errors
from bookserve.clients.answers import Array, Prediction
from bookserve.clients.ask_server import Asked
from bookserve.clients.errors import PredictError
from bookserve.serving.batch.model import ModelLost, Pace, RowsRefused

# That asking later may mend. A server that was started anew does not know its models at first (NotFound).
_MOMENTARY = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.ResourceExhausted,
    errors.Aborted,
    errors.Cancelled,
    errors.NotFound,
)
_OF_THE_VALUES = (errors.InvalidArgument, errors.OutOfRange, errors.Internal)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds


class Client(Protocol):
    """`GrpcClient` and `RestClient` fit."""

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = 10.0,
    ) -> Prediction:
        """One prediction."""


class ServedModel:
    """See Model."""

    def __init__(self, client: Client, asked: Asked, pace: Pace, call_seconds: float, retry_seconds: float) -> None:
        """A call may take `call_seconds`; it is made again for `retry_seconds` while the server is away."""
        self.contract = asked.contract
        self.version = asked.version
        self.pace = pace
        self.identity = f"version {asked.version} on a server"
        self._client = client
        self._call_seconds = call_seconds
        self._retry_seconds = retry_seconds
        self._closed = threading.Event()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Model.run."""
        end = time.monotonic() + self._retry_seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._ask(inputs)
            except _OF_THE_VALUES as error:
                raise RowsRefused(str(error)) from error
            except _MOMENTARY as error:
                if time.monotonic() + pause > end:
                    raise ModelLost(f"{error} (asked again for {self._retry_seconds:g} s: --retry-seconds)") from error
            except PredictError as error:
                raise ModelLost(str(error)) from error
            if self._closed.wait(pause * random.uniform(0.5, 1.0)):
                raise ModelLost("the run was stopped")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """See Model.close: also ends what waits to ask again."""
        self._closed.set()

    def _ask(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        answer = self._client.predict(
            self.contract.model,
            inputs,
            version=self.version,
            signature=self.contract.signature,
            timeout=self._call_seconds,
        )
        missing = [tensor.name for tensor in self.contract.outputs if tensor.name not in answer.outputs]
        if missing:
            raise errors.BadAnswer(f"the server's answer has no output '{missing[0]}'")
        return {tensor.name: answer.outputs[tensor.name] for tensor in self.contract.outputs}

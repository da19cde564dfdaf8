"""The one place where requests are observed: metrics, request lines in the log, the request log, traces, request ids.

`grpc` and `rest` stand around the handlers of the two transports, so no function of an API counts or logs anything. A
request gets a `Record` only while something wants one; the transport ends it, whatever the request's fate.
"""

import asyncio
import itertools
import json
import logging
import random
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bookserve.serving.server.inference.trace import Record
from bookserve.serving.server.models.config import TFRECORD, ModelSetting, RequestLogSetting
from bookserve.serving.server.observability.metrics import Metrics
from bookserve.serving.server.observability.request_log import RequestLog
from bookserve.serving.server.observability.request_log_tfrecord import LOGGED
from bookserve.serving.server.transport.grpc_call import GrpcCall
from bookserve.serving.server.transport.grpc_call import Handler as GrpcHandler
from bookserve.serving.server.transport.http_exchange import Handler as RestHandler
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

if TYPE_CHECKING:
    from bookserve.serving.server.observability.tracing import Tracing

log = logging.getLogger(__name__)

# What TensorFlow Serving counts on gRPC, and the one call of the open inference protocol that is like it.
_COUNTED_METHODS = ("Predict", "Classify", "Regress", "ModelInfer")
_COUNTED_PATH = re.compile(r"/v1/|/v2/models/", re.IGNORECASE)
_REQUEST_ID = re.compile(r"[\w.:/+=@~-]{1,128}", re.ASCII)
_PLAIN = re.compile(r"[\w.:/+@~-]+", re.ASCII)
_OK = tensorflow_error_pb2.OK
# What a log keeps of texts that a client has made long.
_MAX_NAME = 200
_MAX_ERROR = 1024


class Observer:
    """Follows the requests of one process."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        log_requests: str,
        log_all: RequestLogSetting | None,
        max_file_bytes: int,
        max_files: int,
        worker: int = 0,
        tracing: "Tracing | None" = None,
    ) -> None:
        """`log_requests` is none, errors or all; `log_all` is the request log of models that have none of their own.

        Every `worker` but 0 writes request logs to files of its own, with its number in their names.
        """
        self.metrics = metrics
        self._tracing = tracing
        self._log_requests = log_requests
        self._log_all = log_all
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._log_suffix = f"-worker{worker}" if worker else ""
        self._settings: dict[str, RequestLogSetting] = {}  # by model
        self._logs: dict[tuple[str, str], RequestLog] = {}  # by prefix and format
        self._id_prefix = secrets.token_hex(8)
        self._id_numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._on_end = self._end
        self._active = False  # whether requests get a record
        self._makes_ids = False  # whether they get an id where the client gave none
        self._choose()

    def follow(self, settings: Sequence[ModelSetting]) -> None:
        """Takes over the request logs of the models that are configured now."""
        self.metrics.models = frozenset(setting.name for setting in settings)
        self._settings = {setting.name: setting.request_log for setting in settings if setting.request_log}
        self._choose()

    def _choose(self) -> None:
        settings = (*self._settings.values(), self._log_all)
        wanted = {(setting.prefix, setting.format) for setting in settings if setting}
        for prefix, format in wanted - self._logs.keys():
            self._logs[prefix, format] = RequestLog(
                prefix + self._log_suffix, self._max_file_bytes, self._max_files, self._lost, format
            )
        for key in self._logs.keys() - wanted:
            self._logs.pop(key).stop()
        self._makes_ids = self._log_requests != "none" or bool(wanted)
        self._active = self._makes_ids or self.metrics.enabled or self._tracing is not None

    def _lost(self, model: str) -> None:
        self._loop.call_soon_threadsafe(self.metrics.logged, model, "UNKNOWN")

    def close(self) -> None:
        """Waits until the request logs have written what they hold, and the last spans are sent."""
        if self._tracing is not None:
            self._tracing.close()
        for request_log in self._logs.values():
            request_log.stop()
        for request_log in self._logs.values():
            request_log.join()

    # Around the handlers

    def grpc(self, handlers: Mapping[bytes, GrpcHandler]) -> dict[bytes, GrpcHandler]:
        """The handlers of gRPC calls, observed."""
        return {path: self._observed(path, handler) for path, handler in handlers.items()}

    def _observed(self, path: bytes, handler: GrpcHandler) -> GrpcHandler:
        api = path.rpartition(b"/")[2].decode()
        counted = api in _COUNTED_METHODS

        def handle(call: GrpcCall, data: bytes) -> None:
            if self._active or call.request_id:
                request_id = ""
                if (call.request_id or self._makes_ids) and (request_id := self._request_id(call.request_id)):
                    call.trailers.append((b"x-request-id", request_id.encode()))
                if self._active:
                    call.record = record = Record("GRPC", api, counted, request_id, self._on_end)
                    if self._tracing is not None:
                        headers = dict(call.scope["headers"])
                        record.traceparent = headers.get(b"traceparent", b"").decode("latin-1")
                        record.tracestate = headers.get(b"tracestate", b"").decode("latin-1")
            handler(call, data)

        return handle

    def rest(self, handler: RestHandler) -> RestHandler:
        """A handler of REST requests, observed."""

        def handle(exchange: HttpExchange) -> None:
            given = exchange.headers.get("x-request-id", "")
            if self._active or given:
                request_id = ""
                if (given or self._makes_ids) and (request_id := self._request_id(given)):
                    exchange.answer_headers.append(("x-request-id", request_id))
                if self._active:
                    path = exchange.path
                    verb = ""
                    if exchange.method == "POST":
                        verb = path[max(path.rfind(":"), path.rfind("/")) + 1 :]
                    counted = exchange.method != "OPTIONS" and _COUNTED_PATH.match(path) is not None
                    api = verb
                    exchange.record = record = Record("REST", api, counted, request_id, self._on_end)
                    if self._tracing is not None:
                        record.traceparent = exchange.headers.get("traceparent", "")
                        record.tracestate = exchange.headers.get("tracestate", "")
            handler(exchange)

        return handle

    def _request_id(self, given: str) -> str:
        """The client's id where it is one; else, where requests are logged, one of ours; else nothing."""
        if given and _REQUEST_ID.fullmatch(given):
            return given
        if self._makes_ids:
            return f"{self._id_prefix}-{next(self._id_numbers):x}"
        return ""

    # The end of a request

    def _end(self, record: Record, code: Code, message: str, nbytes: int) -> None:
        micros = (time.perf_counter() - record.start) * 1e6
        try:
            if self.metrics.enabled and record.counted:
                self._counted(record, code, micros, nbytes)
            if self._log_requests == "all" or (code != _OK and self._log_requests == "errors"):
                self._log_line(record, code, message, micros)
            if self._logs and record.counted:
                self._log_record(record, code, message, micros)
            if self._tracing is not None:
                self._tracing.ended(record, code, message)
        except Exception:
            log.exception("fault while recording a request")  # it gets its answer all the same

    def _counted(self, record: Record, code: Code, micros: float, nbytes: int) -> None:
        metrics = self.metrics
        task = record.task
        if code != _OK:
            signature = task.signature.name if task is not None else ""
            metrics.failed(record.model, Code.Name(code), record.version, signature)
        elif task is not None and (run := task.run) is not None:
            key = (record.model, record.version, task.signature.name, record.api, record.entrypoint, record.engine)
            started = run.started
            queued_micros, run_micros = (started - task.queued) * 1e6, (run.ended - started) * 1e6
            metrics.predicted(key, micros, nbytes, task.rows or 1, queued_micros, run_micros)
        else:
            metrics.succeeded((record.model, 0, "", record.api, record.entrypoint, ""), micros, nbytes)

    @staticmethod
    def _log_line(record: Record, code: Code, message: str, micros: float) -> None:
        fields = _fields(record, code, message, micros)
        words = [f"{name}={_word(value)}" for name, value in fields.items() if value not in ("", 0)]
        level = logging.INFO if code == _OK else logging.WARNING
        log.log(level, "request %s", " ".join(words), extra={"fields": fields})

    def _log_record(self, record: Record, code: Code, message: str, micros: float) -> None:
        setting = self._settings.get(record.model, self._log_all)
        if setting is None or (setting.rate < 1 and random.random() >= setting.rate):
            return
        if setting.format == TFRECORD and (code != _OK or record.api not in LOGGED or record.task is None):
            return  # as in TensorFlow Serving, answers alone
        fields = _fields(record, code, message, micros) | {"sampling_rate": setting.rate}
        inputs = record.task.inputs if record.task is not None else {}
        taken = self._logs[setting.prefix, setting.format].put(fields, inputs, record.outputs)
        self.metrics.logged(record.model, "OK" if taken else "RESOURCE_EXHAUSTED")


def _fields(record: Record, code: Code, message: str, micros: float) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "entrypoint": record.entrypoint,
        "api": record.api[:_MAX_NAME],
        "model": record.model[:_MAX_NAME],
        "version": record.version,
        "signature": record.task.signature.name if record.task is not None else "",
        "status": Code.Name(code),
        "latency_us": round(micros),
        "error": (record.error.message if record.error is not None else message)[:_MAX_ERROR],
    }


def _word(value: object) -> str:
    """A value in a line of words: quoted where it could be taken for something else."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)

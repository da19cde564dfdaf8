"""TensorFlow Serving's REST API over the inference core: route, decode, call, encode."""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from bookserve.serving.server.api.open_inference_repository import OipExtensions
from bookserve.serving.server.api.open_inference_rest import OipRest
from bookserve.serving.server.api.rest_errors import fail
from bookserve.serving.server.inference import requests
from bookserve.serving.server.models.catalog import Models
from bookserve.serving.server.observability.metrics import CONTENT_TYPE
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import HTTP_STATUS, ServingError, invalid_argument, not_found
from bookserve.serving.server.types.examples import CLASSIFY, REGRESS, ExampleMethod
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE
from bookserve.serving.wire import json_numbers, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.json_examples import read_examples, write_classifications, write_regressions
from bookserve.serving.wire.json_tensors import read_tensors, write_columns, write_rows
from bookserve.serving.wire.json_text import JsonError, parse_object, quoted

log = logging.getLogger(__name__)

_VERSION = rb"(?:/versions/(\d+)|/labels/([^/:]+))?"
# The verb itself in lower case only.
_POST = re.compile(rb"/v1/models/([^/:]+)" + _VERSION + rb":(classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rb"/v1/models(?:/([^/:]+))?" + _VERSION + rb"(/metadata)?", re.IGNORECASE)
_MAX_VERSION = 2**63 - 1
_CORS = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, GET"),
    ("access-control-allow-headers", "Content-Type"),
]


class _BareError(ServingError):
    """An error that TensorFlow Serving answers with its status and an empty body."""


class RestApi:
    """Answers the requests of all REST connections; `draining` turns readiness off."""

    def __init__(
        self,
        manager: Models,
        *,
        cors: bool = False,
        metrics_path: bytes | None = None,
        metrics_page: Callable[[Callable[[bytes], None]], None] | None = None,
        extensions: OipExtensions | None = None,
    ) -> None:
        """`metrics_page` calls its argument with the page for `metrics_path`, now or later, on the event loop."""
        self.draining = False
        self._manager = manager
        self._cors = cors  # whether browsers may let pages of other origins read the answers
        self._metrics_path = metrics_path
        self._metrics_page = metrics_page
        self._oip = OipRest(manager, lambda: self.ready, extensions)

    @property
    def ready(self) -> bool:
        """Whether the server should be asked: what can be served is, and goes on being served."""
        return self._manager.ready and not self.draining

    def handle(self, exchange: HttpExchange) -> None:
        """Answers one request, now or from a callback."""
        if self._cors and _is_v1(exchange.path) and _CORS[0] not in exchange.answer_headers:  # with lazy loading
            exchange.answer_headers += _CORS
        try:
            if exchange.method == b"POST" and (match := _POST.fullmatch(exchange.path)):
                self._post(exchange, match)
            elif exchange.path == self._metrics_path and self._metrics_page is not None:
                self._metrics_page(lambda page: exchange.respond(200, page, CONTENT_TYPE))
            elif exchange.path.startswith(b"/v2"):
                self._oip.handle(exchange)
            elif exchange.method == b"GET":
                self._get(exchange)
            elif not _is_v1(exchange.path):
                raise _nothing_at(exchange)
            elif exchange.method == b"OPTIONS":
                _preflight(exchange)
            else:
                raise _malformed(exchange)
        except _BareError as error:
            exchange.respond(HTTP_STATUS[error.code], b"")
        except ServingError as error:
            fail(exchange, error)

    def _post(self, exchange: HttpExchange, match: re.Match[bytes]) -> None:
        match match[4]:
            case b"predict":
                self._predict(exchange, _spec(exchange, match))
            case b"classify":
                request = messages.ClassificationRequest(model_spec=_spec(exchange, match))
                self._classify_or_regress(exchange, CLASSIFY, request, write_classifications)
            case b"regress":
                regression = messages.RegressionRequest(model_spec=_spec(exchange, match))
                self._classify_or_regress(exchange, REGRESS, regression, write_regressions)
            case _:
                raise _malformed(exchange)

    def _get(self, exchange: HttpExchange) -> None:
        path = exchange.path
        if path == b"/healthz":
            exchange.respond(200, b"ok\n", "text/plain")
        elif path == b"/readyz":
            self._readiness(exchange)
        elif (match := _GET.fullmatch(path)) and not any(match.groups()):
            exchange.respond(200, _json({"models": self._models()}))
        elif match and match[1] is None:
            raise invalid_argument("Missing model name in request.")
        elif match and match[4]:
            spec = _spec(exchange, match)
            request = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
            exchange.respond(200, _metadata_json(requests.metadata(self._manager, request)))
        elif match:
            status = requests.status(self._manager, messages.GetModelStatusRequest(model_spec=_spec(exchange, match)))
            exchange.respond(200, _json(_fields(status)))
        elif _is_v1(path):
            raise _malformed(exchange)
        else:
            raise _nothing_at(exchange)

    def _models(self) -> list[dict[str, Any]]:
        """Every model: its labels, and its versions as its own status shows them."""
        return [
            {
                "name": name,
                "labels": {label: str(version) for label, version in sorted(labels.items())},
                **_fields(messages.GetModelStatusResponse(model_version_status=versions)),
            }
            for name, (labels, versions) in self._manager.overview().items()
        ]

    def _readiness(self, exchange: HttpExchange) -> None:
        if self.draining:
            exchange.respond(503, b"draining\n", "text/plain")
        elif not self._manager.ready:
            exchange.respond(503, b"loading\n", "text/plain")
        else:
            exchange.respond(200, b"ready\n", "text/plain")

    def _predict(self, exchange: HttpExchange, spec: messages.ModelSpec) -> None:
        try:
            body: dict[str, Any] = json_numbers.read(exchange.body) or parse_object(exchange.body)
            name = _signature_name(body)
            servable = requests.find(self._manager, spec, exchange)
            signature = servable.engine.signatures.get(name or DEFAULT_SIGNATURE)
            if signature is None:
                raise invalid_argument(
                    f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in signature def'
                )
            if not signature.inputs:
                raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
            types = {alias: tensor.data_type for alias, tensor in signature.inputs.items()}
            inputs = read_tensors(body, types, _may_have_booleans(exchange.body))
        except JsonError as error:
            raise ServingError(error.code, str(error)) from error
        write = write_rows if "instances" in body else write_columns
        done = _answer(exchange, lambda prediction: write(prediction.outputs))
        requests.predict(servable, signature, inputs, [], exchange, done)

    def _classify_or_regress(
        self,
        exchange: HttpExchange,
        method: ExampleMethod,
        request: messages.ClassificationRequest | messages.RegressionRequest,
        write: Callable[[Any], bytes],
    ) -> None:
        try:
            body = parse_object(exchange.body)
            request.model_spec.signature_name = _signature_name(body)
            request.input.CopyFrom(read_examples(body))
        except JsonError as error:
            raise ServingError(error.code, str(error)) from error
        done = _answer(exchange, lambda response: write(response.result))
        requests.classify_or_regress(self._manager, method, request, exchange, done)


def _may_have_booleans(body: bytes) -> bool:
    # The search for one letter is so much faster that it comes first: a body of numbers has neither.
    return (b"u" in body and b"true" in body) or (b"f" in body and b"false" in body)


def _signature_name(body: dict[str, Any]) -> str:
    """`signature_name`; "" without one. Raises JsonError when it is no string."""
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise JsonError(f"{quoted(body)} not formatted correctly. 'signature_name' key must be a string value.")
    return name.encode("utf-8", "replace").decode()  # what is no UTF-8 is no signature's name


def _answer(exchange: HttpExchange, encode: Callable[[Any], bytes]) -> Callable[[Any], None]:
    def done(result: Any) -> None:
        if not exchange.open:
            return
        if isinstance(result, ServingError):
            fail(exchange, result)
            return
        try:
            exchange.respond(200, encode(result))
        except JsonError as error:
            fail(exchange, invalid_argument(str(error)))
        except Exception:
            log.exception("fault while encoding an answer to %s", exchange.path)
            fail(exchange, ServingError(tensorflow_error_pb2.INTERNAL, "internal error"))

    return done


def _is_v1(path: bytes) -> bool:
    return path[:4].lower() == b"/v1/"


def _preflight(exchange: HttpExchange) -> None:
    """A browser's question before it lets a page send a request (CORS), answered as TensorFlow Serving does."""
    origin = exchange.headers.get("origin", "")
    exchange.respond(200 if "http://" in origin or "https://" in origin else 400, b"")


def _nothing_at(exchange: HttpExchange) -> ServingError:
    path = exchange.path.decode("utf-8", "replace")
    return not_found(f"nothing is served at {path}: the models are under /v1/models")


def _malformed(exchange: HttpExchange) -> ServingError:
    method, path = (text.decode("utf-8", "replace") for text in (exchange.method, exchange.path))
    return invalid_argument(f"Malformed request: {method} {path}")


def _spec(exchange: HttpExchange, match: re.Match[bytes]) -> messages.ModelSpec:
    spec = messages.ModelSpec(name=match[1].decode("utf-8", "replace"))
    if exchange.record is not None:
        exchange.record.model = spec.name
    if match[2]:
        digits = match[2].lstrip(b"0") or b"0"
        if len(digits) > len(str(_MAX_VERSION)) or int(digits) > _MAX_VERSION:
            raise _BareError(tensorflow_error_pb2.INVALID_ARGUMENT, "Failed to convert version to numeric.")
        spec.version.value = int(digits)
    elif match[3]:
        spec.version_label = match[3].decode("utf-8", "replace")
    return spec


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _fields(message: Message) -> dict[str, Any]:
    """A message as TensorFlow Serving prints it: the names of the .proto file, and every default."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _metadata_json(response: messages.GetModelMetadataResponse) -> bytes:
    signatures = messages.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec = response.model_spec
    return _json(
        {
            "model_spec": {"name": spec.name, "signature_name": "", "version": str(spec.version.value)},
            "metadata": {"signature_def": _fields(signatures)},
        }
    )

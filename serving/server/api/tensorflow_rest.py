"""TensorFlow Serving's REST API over the inference core: route, decode, call, encode."""

import json
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from bookserve.serving.server.api.rest_handlers import RestAnswer, answer_with
from bookserve.serving.server.inference import requests
from bookserve.serving.server.inference.requests import Prediction
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.examples import CLASSIFY, REGRESS, ExampleMethod
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE, existing
from bookserve.serving.wire import json_numbers, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.json_examples import read_examples, write_classifications, write_regressions
from bookserve.serving.wire.json_tensors import read_tensors, write_columns, write_rows
from bookserve.serving.wire.json_text import JsonError, parse_object, quoted

_MAX_VERSION = 2**63 - 1


class BareError(ServingError):
    """An error that TensorFlow Serving answers with its status and an empty body."""


class TensorFlowRest:
    """Answers the requests under /v1 that TensorFlow Serving knows; each raises ServingError where it cannot."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def predict(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """POST …:predict."""
        spec = _spec(exchange, match)
        try:
            body: dict[str, Any] = json_numbers.read(exchange.body) or parse_object(exchange.body)
            name = _signature_name(body)
            servable = requests.find(self._catalog, spec, exchange)
            signature = servable.engine.signatures.get(name or DEFAULT_SIGNATURE)
            if signature is None:
                raise invalid_argument(
                    f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in signature def.'
                    f" {existing(servable.engine.signatures)}"
                )
            if not signature.inputs:
                raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
            if isinstance(sent := body.get("inputs"), dict):
                signature.check_sent(sent)
            booleans = _may_have_booleans(exchange.body)
            pictures = servable.pictures
            types = signature.input_types if pictures is None else pictures.types(signature, exchange.body)
            inputs = read_tensors(body, types, booleans, signature.may_be_omitted)
        except JsonError as error:
            raise ServingError(error.code, str(error)) from error
        write = write_rows if "instances" in body else write_columns

        def encode(prediction: Prediction) -> RestAnswer:
            return RestAnswer(write(prediction.outputs))

        requests.predict(servable, signature, inputs, [], exchange, answer_with(exchange, encode, requests.values))

    def classify(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """POST …:classify."""
        request = messages.ClassificationRequest(model_spec=_spec(exchange, match))
        self._classify_or_regress(exchange, CLASSIFY, request, write_classifications)

    def regress(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """POST …:regress."""
        request = messages.RegressionRequest(model_spec=_spec(exchange, match))
        self._classify_or_regress(exchange, REGRESS, request, write_regressions)

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

        def encode(response: Any) -> RestAnswer:
            return RestAnswer(write(response.result))

        requests.classify_or_regress(self._catalog, method, request, exchange, answer_with(exchange, encode))

    def models(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """Every model: its labels, and its versions as its own status shows them."""
        models = [
            {
                "name": name,
                "labels": {label: str(version) for label, version in sorted(labels.items())},
                **_fields(messages.GetModelStatusResponse(model_version_status=versions)),
            }
            for name, (labels, versions) in self._catalog.overview().items()
        ]
        exchange.respond(200, _json({"models": models}))

    def metadata(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """The signatures of a version."""
        spec = _spec(exchange, match)
        request = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        exchange.respond(200, _metadata_json(requests.metadata(self._catalog, request)))

    def status(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """The states of a model's versions, or of one."""
        status = requests.status(self._catalog, messages.GetModelStatusRequest(model_spec=_spec(exchange, match)))
        exchange.respond(200, _json(_fields(status)))

    def nameless(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """A version or the metadata of no model."""
        raise invalid_argument("Missing model name in request.")

    def preflight(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """A browser's question before it lets a page send a request (CORS), answered as TensorFlow Serving does."""
        origin = exchange.headers.get("origin", "")
        exchange.respond(200 if "http://" in origin or "https://" in origin else 400, b"")


def _may_have_booleans(body: bytes) -> bool:
    # The search for one letter is so much faster that it comes first: a body of numbers has neither.
    return (b"u" in body and b"true" in body) or (b"f" in body and b"false" in body)


def _signature_name(body: dict[str, Any]) -> str:
    """`signature_name`; "" without one. Raises JsonError when it is no string."""
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise JsonError(f"{quoted(body)} not formatted correctly. 'signature_name' key must be a string value.")
    return name.encode("utf-8", "replace").decode()  # what is no UTF-8 is no signature's name


def _spec(exchange: HttpExchange, match: re.Match[str]) -> messages.ModelSpec:
    spec = messages.ModelSpec(name=match["name"])
    if exchange.record is not None:
        exchange.record.model = spec.name
    if match["version"]:
        digits = match["version"].lstrip("0") or "0"
        if len(digits) > len(str(_MAX_VERSION)) or int(digits) > _MAX_VERSION:
            raise BareError(tensorflow_error_pb2.INVALID_ARGUMENT, "Failed to convert version to numeric.")
        spec.version.value = int(digits)
    elif match["label"]:
        spec.version_label = match["label"]
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

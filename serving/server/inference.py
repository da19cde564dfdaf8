"""What both transports call: predict, metadata and status over the loaded models.

A transport decodes its request, calls here, and encodes what comes back; nothing of gRPC or HTTP is known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bookserve.serving.server.batching import Outcome, Owner, Task
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.manager import ModelManager
from bookserve.serving.server.record import Record
from bookserve.serving.server.servable import Servable
from bookserve.serving.server.signatures import Signature
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one predict request: outputs by alias, and which version and signature they come from."""

    model: str
    version: int
    signature: str
    outputs: Mapping[str, Array]


Done = Callable[[Prediction | ServingError], None]


class Caller(Owner, Protocol):
    """A request of one of the transports."""

    record: Record | None


def find(manager: ModelManager, spec: messages.ModelSpec, caller: Caller | None) -> Servable:
    """The loaded version that a ModelSpec names. Raises ServingError as ModelManager.find."""
    if caller is not None and caller.record is not None:
        caller.record.model = spec.name
    choice = spec.WhichOneof("version_choice")
    if choice is None:
        return manager.find(spec.name)
    if choice == "version":
        return manager.find(spec.name, version=spec.version.value)
    return manager.find(spec.name, label=spec.version_label)


def predict(
    servable: Servable,
    signature: Signature,
    inputs: Mapping[str, Array],
    output_filter: list[str],
    caller: Caller,
    done: Done,
) -> None:
    """Queues one request; `done` is called on the event loop with the prediction or the error, once.

    Raises ServingError when the inputs or the filter do not fit the signature, or the model's queue is full.
    """
    signature.check_inputs(inputs)

    def finish(outcome: Outcome) -> None:
        servable.release()
        if isinstance(outcome, ServingError):
            done(outcome)
        else:
            if caller.record is not None:
                caller.record.outputs = outcome
            done(Prediction(servable.model, servable.version, signature.name, outcome))

    task = Task(signature, inputs, signature.choose_outputs(output_filter), caller, finish)
    if caller.record is not None:
        caller.record.asks(servable.version, servable.engine.name, task)
    servable.batcher.submit(task)
    servable.in_flight += 1


def metadata(manager: ModelManager, request: messages.GetModelMetadataRequest) -> messages.GetModelMetadataResponse:
    """The signatures of a version, as TensorFlow Serving's GetModelMetadata answers them.

    Raises ServingError: INVALID_ARGUMENT for a request without spec or field, or for another field than signature_def.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for name in request.metadata_field:
        if name != "signature_def":
            raise invalid_argument(f"Metadata field {name} is not supported")
    servable = find(manager, request.model_spec, None)
    signatures = messages.SignatureDefMap()
    for name, definition in servable.engine.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    response = messages.GetModelMetadataResponse()
    response.model_spec.name = servable.model
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(manager: ModelManager, request: messages.GetModelStatusRequest) -> messages.GetModelStatusResponse:
    """The states of a model's versions. Raises ServingError as ModelManager.status."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
    return messages.GetModelStatusResponse(model_version_status=manager.status(spec.name, version))

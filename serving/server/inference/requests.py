"""What both transports call: predict, classify, regress, metadata and status over the loaded models.

A transport decodes its request, calls here, and encodes what comes back; nothing of gRPC or HTTP is known here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bookserve.serving.server.batching.batcher import Outcome, Owner, Task
from bookserve.serving.server.inference.trace import Record
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.types.errors import ServingError, invalid_argument, unimplemented
from bookserve.serving.server.types.examples import METHODS, ExampleMethod, Response, join, read_examples
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE, Signature
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one predict request: outputs by alias, and which version and signature they come from."""

    model: str
    version: int
    signature: str
    outputs: Mapping[str, Array]


def values(prediction: Prediction) -> int:
    """How many values its outputs have together."""
    return sum([array.size for array in prediction.outputs.values()])


Done = Callable[[Prediction | ServingError], None]


class Caller(Owner, Protocol):
    """A request of one of the transports."""

    record: Record | None


def find(catalog: Catalog, spec: messages.ModelSpec, caller: Caller | None) -> Servable:
    """The loaded version that a ModelSpec names. Raises ServingError as Catalog.find."""
    if caller is not None and caller.record is not None:
        caller.record.model = spec.name
    choice = spec.WhichOneof("version_choice")
    if choice is None:
        return catalog.find(spec.name)
    if choice == "version":
        return catalog.find(spec.name, version=spec.version.value)
    return catalog.find(spec.name, label=spec.version_label)


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
    if servable.check_method_names:
        signature.check_predict_method()
    if servable.pictures is not None and servable.pictures.is_given(signature, inputs):
        _predict_pictures(servable, signature, inputs, output_filter, caller, done)
        return

    def answer(outcome: Outcome) -> None:
        if isinstance(outcome, ServingError):
            done(outcome)
        else:
            done(Prediction(servable.model, servable.version, signature.name, outcome))

    inputs = signature.complete(inputs)
    _submit(servable, signature, inputs, signature.choose_outputs(output_filter), caller, answer)


def _predict_pictures(
    servable: Servable,
    signature: Signature,
    inputs: Mapping[str, Array],
    output_filter: list[str],
    caller: Caller,
    done: Done,
) -> None:
    """`predict` once the pictures are decoded; the version stays loaded meanwhile. Raises ServingError."""

    def decoded(outcome: Mapping[str, Array] | ServingError) -> None:
        try:
            if isinstance(outcome, ServingError):
                done(outcome)
            else:
                predict(servable, signature, outcome, output_filter, caller, done)
        except ServingError as error:
            done(error)
        finally:
            servable.release()

    assert servable.pictures is not None
    servable.pictures.decode(signature, inputs, decoded)
    servable.in_flight += 1


def classify_or_regress(
    catalog: Catalog,
    method: ExampleMethod,
    request: messages.ClassificationRequest | messages.RegressionRequest,
    caller: Caller,
    done: Callable[[Response | ServingError], None],
) -> None:
    """Queues a Classify or Regress request; `done` is called on the event loop with the response or the error, once.

    Raises ServingError as `find`, for a signature that cannot be asked this way, and without examples.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    servable = find(catalog, request.model_spec, caller)
    signature = _example_signature(servable, request.model_spec, "No signature was found with the name")
    outputs = method.outputs(signature, servable.check_method_names)
    examples = read_examples(request.input)

    def answer(outcome: Outcome) -> None:
        if isinstance(outcome, ServingError):
            done(outcome)
            return
        try:
            result = method.read(outcome, len(examples))
        except ServingError as error:
            done(error)
            return
        done(method.response(model_spec=_spec_of(servable, signature), result=result))

    _submit(servable, signature, dict.fromkeys(signature.inputs, examples), outputs, caller, answer)


def multi_inference(
    catalog: Catalog,
    request: messages.MultiInferenceRequest,
    caller: Caller,
    done: Callable[[messages.MultiInferenceResponse | ServingError], None],
) -> None:
    """Queues one run for all tasks of the request; `done` is called as for classify_or_regress.

    As in TensorFlow Serving all tasks are of one model, and the first says which version. Other than there, signatures
    with inputs of their own are served too: every input gets the examples.
    Raises ServingError as classify_or_regress, UNIMPLEMENTED for another method than Classify and Regress.
    """
    spec = request.tasks[0].model_spec if request.tasks else messages.ModelSpec()
    servable = find(catalog, spec, caller)
    tasks: list[tuple[ExampleMethod, Signature, tuple[str, ...]]] = []
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if any(signature.name == name for _, signature, _ in tasks):
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        signature = _example_signature(servable, task.model_spec, "Requested signature not found in model graph")
        method = METHODS.get(task.method_name)
        if method is None:
            raise unimplemented(f"Unsupported signature method_name: {task.method_name}")
        tasks.append((method, signature, method.outputs(signature, servable.check_method_names)))
    examples = read_examples(request.input)
    joined = join(tuple([signature for _, signature, _ in tasks]))

    def key(signature: Signature, alias: str) -> str:
        return alias if signature is joined else signature.outputs[alias].tensor

    def answer(outcome: Outcome) -> None:
        if isinstance(outcome, ServingError):
            done(outcome)
            return
        response = messages.MultiInferenceResponse()
        try:
            for method, signature, outputs in tasks:
                result = method.read({alias: outcome[key(signature, alias)] for alias in outputs}, len(examples))
                response.results.add(model_spec=_spec_of(servable, signature), **{method.result_field: result})
        except ServingError as error:
            done(error)
            return
        done(response)

    fetched = tuple(sorted({key(signature, alias) for _, signature, outputs in tasks for alias in outputs}))
    _submit(servable, joined, dict.fromkeys(joined.inputs, examples), fetched, caller, answer)


def _submit(
    servable: Servable,
    signature: Signature,
    inputs: Mapping[str, Array],
    outputs: tuple[str, ...],
    caller: Caller,
    done: Callable[[Outcome], None],
) -> None:
    """Queues a run, keeps the version loaded until it is done, and counts it."""

    task: Task | None

    def finish(outcome: Outcome) -> None:
        nonlocal task
        asked, task = task, None  # it holds this function: while both held each other, neither would be freed at once
        assert asked is not None
        counts, run = servable.counts, asked.run
        if run is None or isinstance(outcome, ServingError):
            counts.failed += 1
            counts.failed_seconds += time.perf_counter() - asked.queued
        else:
            counts.answered += 1
            counts.rows += asked.rows or 1
            counts.queued_seconds += run.started - asked.queued
            counts.run_seconds += run.ended - run.started
        servable.release()
        if caller.record is not None and not isinstance(outcome, ServingError):
            caller.record.outputs = outcome
        done(outcome)

    task = Task(signature, inputs, outputs, caller, finish)
    if caller.record is not None:
        caller.record.asks(servable.version, servable.engine.name, task)
    try:
        servable.batcher.submit(task)
    except ServingError:
        task = None
        raise
    servable.in_flight += 1


def _example_signature(servable: Servable, spec: messages.ModelSpec, complaint: str) -> Signature:
    name = spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.engine.signatures.get(name)
    if signature is None:
        in_model = name in servable.engine.signature_defs
        hint = f" (it is in the SavedModel, not in what the {servable.engine.name} engine serves)" if in_model else ""
        raise invalid_argument(f"{complaint}: {name}{hint}")
    return signature


def _spec_of(servable: Servable, signature: Signature) -> messages.ModelSpec:
    spec = messages.ModelSpec(name=servable.model, signature_name=signature.name)
    spec.version.value = servable.version
    return spec


def metadata(catalog: Catalog, request: messages.GetModelMetadataRequest) -> messages.GetModelMetadataResponse:
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
    servable = find(catalog, request.model_spec, None)
    signatures = messages.SignatureDefMap()
    for name, definition in servable.engine.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    response = messages.GetModelMetadataResponse()
    response.model_spec.name = servable.model
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(catalog: Catalog, request: messages.GetModelStatusRequest) -> messages.GetModelStatusResponse:
    """The states of a model's versions. Raises ServingError as Catalog.status."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
    return messages.GetModelStatusResponse(model_version_status=catalog.status(spec.name, version))

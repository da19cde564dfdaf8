"""The gRPC methods that change models: ModelService/HandleReloadConfigRequest and our own ModelAdminService."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from bookserve.serving.server.admin import Access, Admin
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.http2 import GrpcCall, Handler
from bookserve.serving.server.metrics import Metrics
from bookserve.serving.wire import model_admin_pb2, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


def handlers(admin: Admin, access: Access, metrics: Metrics) -> dict[bytes, Handler]:
    """The handler of each method path; `metrics` is for the increases that a reload may ask for."""

    async def reload(request: messages.ReloadConfigRequest) -> Message:
        before = _first_points(request.metric_names, metrics)
        await admin.reload(request.config)
        response = messages.ReloadConfigResponse(status=messages.StatusProto(error_code=tensorflow_error_pb2.OK))
        for name, value in _first_points(request.metric_names, metrics).items():
            response.metric.add(name=name, int64_value_increase=value - before.get(name, 0))
        return response

    async def add_or_replace(request: model_admin_pb2.AddOrReplaceModelRequest) -> Message:
        await admin.add_or_replace(request.model)
        return model_admin_pb2.AddOrReplaceModelResponse()

    async def remove(request: model_admin_pb2.RemoveModelRequest) -> Message:
        await admin.remove(request.name)
        return model_admin_pb2.RemoveModelResponse()

    async def config(request: model_admin_pb2.GetConfigRequest) -> Message:
        return model_admin_pb2.GetConfigResponse(config=await admin.config())

    guarded = _Guarded(access)
    return {
        b"/tensorflow.serving.ModelService/HandleReloadConfigRequest": guarded.unary(
            messages.ReloadConfigRequest, reload
        ),
        b"/bookserve.ModelAdminService/AddOrReplaceModel": guarded.unary(
            model_admin_pb2.AddOrReplaceModelRequest, add_or_replace
        ),
        b"/bookserve.ModelAdminService/RemoveModel": guarded.unary(model_admin_pb2.RemoveModelRequest, remove),
        b"/bookserve.ModelAdminService/GetConfig": guarded.unary(model_admin_pb2.GetConfigRequest, config),
    }


def _first_points(names: Sequence[str], metrics: Metrics) -> dict[str, int]:
    """The first series of each counter that is named, as in TensorFlow Serving; other names are left out."""
    if not names:
        return {}
    snapshot = metrics.snapshot()
    found = {name: snapshot[name][0][1] for name in names if snapshot.get(name)}
    return {name: int(values[0]) for name, values in found.items() if len(values) == 1}


class _Guarded:
    """Makes handlers of coroutines, for callers with access. A change that is begun is seen through, caller or not."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._tasks: set[asyncio.Task[None]] = set()

    def unary(self, request_type: type[Request], answer: Callable[[Request], Coroutine[Any, Any, Message]]) -> Handler:
        def handle(call: GrpcCall, data: bytes) -> None:
            task = asyncio.get_running_loop().create_task(self._answer(call, data, request_type, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(
        self,
        call: GrpcCall,
        data: bytes,
        request_type: type[Request],
        answer: Callable[[Request], Coroutine[Any, Any, Message]],
    ) -> None:
        try:
            self._access.check(call.peer, call.authorization)
            try:
                request = request_type.FromString(data)
            except DecodeError:
                raise invalid_argument(f"the message is no {request_type.DESCRIPTOR.full_name}") from None
            call.reply((await answer(request)).SerializeToString())
        except ServingError as error:
            call.fail(error.code, error.message)
        except Exception:
            log.exception("fault while changing the models")
            call.fail(tensorflow_error_pb2.INTERNAL, "internal error")

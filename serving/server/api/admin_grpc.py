"""The gRPC methods that change models: ModelService/HandleReloadConfigRequest and our own ModelAdminService."""

from collections.abc import Sequence

from google.protobuf.message import Message

from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.grpc_handlers import Coroutines
from bookserve.serving.server.observability.metrics import Metrics
from bookserve.serving.server.transport.grpc_call import Handler
from bookserve.serving.wire import model_admin_pb2, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages


def handlers(admin: Admin, access: Access, metrics: Metrics) -> dict[bytes, Handler]:
    """The handler of each method path; `metrics` is for the increases that a reload may ask for."""

    async def reload(request: messages.ReloadConfigRequest) -> Message:
        before = _first_points(request.metric_names, metrics)
        await admin.reload(request.config)
        response = messages.ReloadConfigResponse(status=messages.StatusProto(error_code=tensorflow_error_pb2.OK))
        for name, value in _first_points(request.metric_names, metrics).items():
            response.metric.add(name=name, int64_value_increase=value - before[name])
        return response

    async def add_or_replace(request: model_admin_pb2.AddOrReplaceModelRequest) -> Message:
        await admin.add_or_replace(request.model)
        return model_admin_pb2.AddOrReplaceModelResponse()

    async def remove(request: model_admin_pb2.RemoveModelRequest) -> Message:
        await admin.remove(request.name)
        return model_admin_pb2.RemoveModelResponse()

    async def config(request: model_admin_pb2.GetConfigRequest) -> Message:
        return model_admin_pb2.GetConfigResponse(config=await admin.config())

    guarded = Coroutines(access)
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
    """The first series of each counter that is named, as in TensorFlow Serving; 0 for a name that is none of them."""
    if not names:
        return {}
    snapshot = metrics.snapshot()
    first = {name: snapshot[name][0][1] if snapshot.get(name) else [] for name in names}
    return {name: int(values[0]) if len(values) == 1 else 0 for name, values in first.items()}

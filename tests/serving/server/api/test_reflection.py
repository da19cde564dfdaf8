"""Server reflection, asked by the official client's descriptor database (v1alpha) and by the messages of v1."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bookserve.serving.server.api.reflection import Reflection
from bookserve.serving.wire.grpc_reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from transports import Transport, serving

PATHS = [b"/tensorflow.serving.PredictionService/Predict", b"/grpc.health.v1.Health/Check", b"/no.such.Service/Do"]


@pytest.fixture(scope="module")
def server() -> Iterator[Transport]:
    with serving({}, streams=Reflection(PATHS).streams) as transport:
        yield transport


def test_services_are_listed_and_described(server: Transport) -> None:
    with grpc.insecure_channel(server.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = database.get_services()
        assert services == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "tensorflow.serving.PredictionService",
        ]
        pool = DescriptorPool(database)
        for name in services:
            assert pool.FindServiceByName(name).methods
        predict = pool.FindServiceByName("tensorflow.serving.PredictionService").methods_by_name["Predict"]
        assert predict.input_type.fields_by_name["inputs"].message_type.GetOptions().map_entry
        assert pool.FindMessageTypeByName("tensorflow.TensorProto").fields_by_name["dtype"].number == 1


def ask(server: Transport, *requests: ServerReflectionRequest) -> list[ServerReflectionResponse]:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )
        return list(call(iter(requests), timeout=20))


def test_v1_answers_each_request_with_its_own(server: Transport) -> None:
    requests = [
        ServerReflectionRequest(host="h", list_services=""),
        ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
        ServerReflectionRequest(file_by_filename="no/such.proto"),
        ServerReflectionRequest(all_extension_numbers_of_type="tensorflow.TensorProto"),
        ServerReflectionRequest(),
    ]
    responses = ask(server, *requests)
    assert [response.original_request for response in responses] == requests
    assert responses[0].valid_host == "h"
    assert [response.error_response.error_code for response in responses] == [0, 5, 5, 0, 5]
    assert "no.such.Symbol" in responses[1].error_response.error_message
    assert responses[3].all_extension_numbers_response.base_type_name == "tensorflow.TensorProto"

"""gRPC's health service, asked by the official stubs."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bookserve.serving.server.api.health import Health
from model_servers import wait_until
from transports import Transport, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def of(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[Transport]:
    with serving(health.handlers) as transport:
        yield transport


@pytest.fixture
def stub(server: Transport) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize(
    "service",
    ["", "ModelService", "PredictionService", "tensorflow.serving.PredictionService", "inference.GRPCInferenceService"],
)
def test_check_and_watch_follow_the_drain(
    server: Transport, health: Health, stub: health_pb2_grpc.HealthStub, service: str
) -> None:
    assert stub.Check(of(service), timeout=20).status == SERVING
    watched = stub.Watch(of(service), timeout=60)
    assert next(watched).status == SERVING
    server.on_loop(health.drain)
    assert next(watched).status == NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        next(watched)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert stub.Check(of(service), timeout=20).status == NOT_SERVING
    assert next(stub.Watch(of(service), timeout=20)).status == NOT_SERVING


def test_the_list_names_every_service_and_follows_the_drain(
    server: Transport, health: Health, stub: health_pb2_grpc.HealthStub
) -> None:
    def listed() -> dict[str, int]:
        statuses = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
        return {service: status.status for service, status in statuses.items()}

    services = listed()
    assert set(services.values()) == {SERVING}
    assert {"", "ModelService", "tensorflow.serving.ModelService"} < services.keys()
    for service in services:
        assert stub.Check(of(service), timeout=20).status == SERVING
    server.on_loop(health.drain)
    assert listed() == dict.fromkeys(services, NOT_SERVING)


def test_unknown_services(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(of("tensorflow.serving.Other"), timeout=20)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watched = stub.Watch(of("tensorflow.serving.Other"), timeout=20)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()


def test_those_who_stop_watching_are_forgotten(
    server: Transport, health: Health, stub: health_pb2_grpc.HealthStub
) -> None:
    watches = [stub.Watch(of(""), timeout=60) for _ in range(50)]
    assert {next(watched).status for watched in watches} == {SERVING}
    assert server.idle
    for watched in watches:
        watched.cancel()
    wait_until(lambda: not len(health._watching), "nobody is watched for")


def test_what_is_no_request(server: Transport) -> None:
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff", timeout=20)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

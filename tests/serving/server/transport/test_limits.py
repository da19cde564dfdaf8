"""What the flags and --grpc_channel_arguments make of the limits of both ports."""

import resource

import grpc
import pytest

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.limits import Limits, UnfinishedBytes, grpc_limits, rest_limits
from bookserve.serving.wire.connections import affordable
from transports import echo, serving

FLAGS = Flags()


def with_arguments(arguments: str) -> tuple[Limits, list[str]]:
    return grpc_limits(Flags(grpc_channel_arguments=arguments))


def test_channel_arguments_that_mean_something_here_are_followed() -> None:
    limits, warnings = with_arguments(
        "grpc.max_receive_message_length=1000,grpc.max_concurrent_streams=7,grpc.max_metadata_size=4096,"
        "grpc.max_connection_idle_ms=60000"
    )
    assert warnings == []
    assert (limits.message_bytes, limits.streams, limits.header_bytes, limits.idle_seconds) == (1000, 7, 4096, 60)


@pytest.mark.parametrize(
    ("files", "ports", "expected"),
    [(1 << 20, 2, 4096), (1024, 2, 384), (1024, 3, 256), (256, 1, 128), (4, 9, 1), (resource.RLIM_INFINITY, 2, 4096)],
)
def test_connections_are_no_more_than_the_files_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: int, ports: int, expected: int
) -> None:
    limits = [64, files]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.__setitem__(slice(None), new))
    assert affordable(4096, ports) == expected
    assert limits == [files, files]


def test_no_limit() -> None:
    limits, warnings = with_arguments("grpc.max_receive_message_length=-1,grpc.max_connection_idle_ms=2147483647")
    assert (limits.message_bytes, warnings) == (2**31 - 1, [])
    assert limits.idle_seconds > 86400 * 365


@pytest.mark.parametrize(
    "argument",
    [
        "grpc.lb_policy_name=grpclb",
        "grpc.keepalive_time_ms=10000",
        "grpc.keepalive_timeout_ms=2500",
        "grpc.max_connection_age_ms=90000",
        "grpc.max_connection_age_grace_ms=500",
        "grpc.so_reuseport",
    ],
)
def test_what_means_nothing_here_is_said(argument: str) -> None:
    limits, warnings = with_arguments(f"{argument},")
    assert limits == grpc_limits(FLAGS)[0]
    assert warnings == [f"--grpc_channel_arguments: {argument.partition('=')[0]} has no effect on this server"]


def test_what_is_no_number_is_said() -> None:
    limits, warnings = with_arguments("grpc.max_concurrent_streams=many")
    assert limits == grpc_limits(FLAGS)[0]
    assert warnings == [
        "--grpc_channel_arguments: grpc.max_concurrent_streams=many is passed over, as it is no whole number"
    ]


def test_flags_are_the_limits_of_both_ports() -> None:
    flags = Flags(
        max_connections=1,
        max_request_bytes=2,
        max_header_bytes=3,
        max_buffered_bytes=100 << 10,
        handshake_seconds=4,
        request_seconds=5,
        stalled_seconds=6,
        grpc_idle_seconds=7,
        rest_idle_seconds=8,
        rest_api_timeout_in_ms=9000,
    )
    common = {
        "connections": 1,
        "message_bytes": 2,
        "header_bytes": 3,
        "calls": 6,
        "handshake_seconds": 4,
        "request_seconds": 5,
        "stalled_seconds": 6,
    }
    assert grpc_limits(flags)[0] == Limits(**common, idle_seconds=7)  # type: ignore[arg-type]
    assert rest_limits(flags) == Limits(**common, idle_seconds=8, answer_seconds=9)  # type: ignore[arg-type]


def test_unfinished_bytes_are_counted_up_to_their_limit() -> None:
    unfinished = UnfinishedBytes(100)
    assert unfinished.take(60)
    assert not unfinished.take(41)
    assert unfinished.take(40)
    unfinished.give_back(60)
    assert unfinished.take(60)
    assert not unfinished.take(1)
    assert "100 bytes (--max_buffered_bytes)" in str(unfinished)


def test_channel_arguments_reach_the_port(caplog: pytest.LogCaptureFixture) -> None:
    arguments = "grpc.max_receive_message_length=1000,grpc.max_connection_age_ms=1"
    with (
        serving({b"/t/Echo": echo}, grpc_channel_arguments=arguments) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        call = channel.unary_unary("/t/Echo")
        assert call(b"x" * 1000, timeout=20) == b"x" * 1000
        with pytest.raises(grpc.RpcError) as caught:
            call(b"x" * 1001, timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc.max_connection_age_ms has no effect on this server" in caplog.text

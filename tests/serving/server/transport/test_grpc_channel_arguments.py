import math

from bookserve.serving.server.transport.grpc_channel_arguments import apply
from bookserve.serving.server.transport.http2 import Http2Limits


def test_what_means_something_here_is_followed() -> None:
    limits, warnings = apply(
        "grpc.max_receive_message_length=1000,grpc.max_concurrent_streams=7,grpc.max_metadata_size=4096,"
        "grpc.keepalive_time_ms=10000,grpc.keepalive_timeout_ms=2500,grpc.max_connection_idle_ms=60000,"
        "grpc.max_connection_age_ms=90000,grpc.max_connection_age_grace_ms=500",
        Http2Limits(),
    )
    assert warnings == []
    assert limits == Http2Limits(
        max_message_bytes=1000,
        max_streams=7,
        max_header_bytes=4096,
        keepalive_seconds=10,
        keepalive_timeout_seconds=2.5,
        idle_seconds=60,
        age_seconds=90,
        age_grace_seconds=0.5,
    )


def test_no_limit() -> None:
    limits, warnings = apply("grpc.max_receive_message_length=-1,grpc.max_connection_idle_ms=2147483647", Http2Limits())
    assert (limits.max_message_bytes, limits.idle_seconds, warnings) == (2**31 - 1, math.inf, [])


def test_what_means_nothing_here_is_said() -> None:
    given = Http2Limits(max_streams=5)
    limits, warnings = apply("grpc.lb_policy_name=grpclb,grpc.max_concurrent_streams=many,,grpc.so_reuseport", given)
    assert limits == given
    assert warnings == [
        "--grpc_channel_arguments: grpc.lb_policy_name has no effect on this server",
        "--grpc_channel_arguments: grpc.max_concurrent_streams=many is passed over, as it is no whole number",
        "--grpc_channel_arguments: grpc.so_reuseport has no effect on this server",
    ]
    assert apply("", given) == (given, [])

"""--grpc_channel_arguments: gRPC's own settings, as far as they mean something to this server's transport.

Times are kept to about a second: the server looks at its connections once a second.
"""

import math
from dataclasses import replace
from typing import Any

from bookserve.serving.server.transport.http2_limits import Http2Limits

# Argument -> field of Http2Limits, and what one unit of it is there.
_KNOWN: dict[str, tuple[str, float]] = {
    "grpc.max_receive_message_length": ("max_message_bytes", 1),
    "grpc.max_concurrent_streams": ("max_streams", 1),
    "grpc.max_metadata_size": ("max_header_bytes", 1),
    "grpc.keepalive_time_ms": ("keepalive_seconds", 1e-3),
    "grpc.keepalive_timeout_ms": ("keepalive_timeout_seconds", 1e-3),
    "grpc.max_connection_idle_ms": ("idle_seconds", 1e-3),
    "grpc.max_connection_age_ms": ("age_seconds", 1e-3),
    "grpc.max_connection_age_grace_ms": ("age_grace_seconds", 1e-3),
}
_INT_MAX = 2**31 - 1  # gRPC's "no limit", as is -1 for a length


def apply(text: str, limits: Http2Limits) -> tuple[Http2Limits, list[str]]:
    """The limits with the `name=value,...` of `text` in them, and what the user should be told about it."""
    changes: dict[str, Any] = {}
    warnings = []
    for argument in filter(None, text.split(",")):
        name, _, value = argument.partition("=")
        if name not in _KNOWN:
            warnings.append(f"--grpc_channel_arguments: {name} has no effect on this server")
            continue
        field, unit = _KNOWN[name]
        try:
            number = int(value)
        except ValueError:
            warnings.append(f"--grpc_channel_arguments: {argument} is passed over, as it is no whole number")
            continue
        if unit == 1:
            changes[field] = _INT_MAX if number < 0 else number
        else:
            changes[field] = math.inf if number == _INT_MAX else number * unit
    return replace(limits, **changes), warnings

"""What the flags and --grpc_channel_arguments allow a client, for both ports."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bookserve.serving.server.settings.flags import Flags

_NO_LIMIT = 2**31 - 1  # gRPC's, as is -1 for a length
_FOR_EVER = 10.0 * 365 * 86400  # seconds
_CALL_BYTES = 16 << 10  # what a gRPC call takes, whatever it carries

# Argument -> field of Limits, and what its value means there.
_CHANNEL_ARGUMENTS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "grpc.max_receive_message_length": ("message_bytes", lambda value: _NO_LIMIT if value < 0 else value),
    "grpc.max_concurrent_streams": ("streams", lambda value: _NO_LIMIT if value < 0 else max(1, value)),
    "grpc.max_metadata_size": ("header_bytes", lambda value: _NO_LIMIT if value < 0 else value),
    "grpc.max_connection_idle_ms": (
        "idle_seconds",
        lambda value: _FOR_EVER if value == _NO_LIMIT else value / 1e3,
    ),
}


@dataclass(frozen=True)
class Limits:
    """What the clients of one port may make the server hold, and how long they may take."""

    connections: int = 4096  # more wait to be accepted
    message_bytes: int = 64 << 20  # one request, also after decompression
    header_bytes: int = 16 << 10  # the headers of one request
    streams: int = 2048  # calls at a time on one gRPC connection
    calls: int = 32768  # and on all of them
    handshake_seconds: float = 10.0
    request_seconds: float = 28.0  # from a request's headers to its last byte
    stalled_seconds: float = 60.0  # for a client to read anything of an answer that waits for it
    idle_seconds: float = 3600.0  # of a connection without requests
    answer_seconds: float = 0.0  # from a REST request to its answer; 0 is for ever


def grpc_limits(flags: Flags) -> tuple[Limits, list[str]]:
    """The limits of the gRPC port, and what the user should be told about --grpc_channel_arguments."""
    limits = replace(_common(flags), idle_seconds=flags.grpc_idle_seconds)
    warnings = []
    for argument in filter(None, flags.grpc_channel_arguments.split(",")):
        name, _, text = argument.partition("=")
        if name not in _CHANNEL_ARGUMENTS:
            warnings.append(f"--grpc_channel_arguments: {name} has no effect on this server")
            continue
        field, read = _CHANNEL_ARGUMENTS[name]
        try:
            limits = replace(limits, **{field: read(int(text))})
        except ValueError:
            warnings.append(f"--grpc_channel_arguments: {argument} is passed over, as it is no whole number")
    return limits, warnings


def rest_limits(flags: Flags) -> Limits:
    """The limits of the REST port."""
    answer_seconds = max(0, flags.rest_api_timeout_in_ms) / 1000
    return replace(_common(flags), idle_seconds=flags.rest_idle_seconds, answer_seconds=answer_seconds)


def _common(flags: Flags) -> Limits:
    return Limits(
        connections=flags.max_connections,
        message_bytes=flags.max_request_bytes,
        header_bytes=flags.max_header_bytes,
        calls=max(1, flags.max_buffered_bytes // _CALL_BYTES),
        handshake_seconds=flags.handshake_seconds,
        request_seconds=flags.request_seconds,
        stalled_seconds=flags.stalled_seconds,
    )


class UnfinishedBytes:
    """The bytes of requests that have not come in whole yet, over both ports: slow clients cannot fill the memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, size: int) -> bool:
        """Counts `size` more bytes; false, and nothing is counted, where they would exceed the limit."""
        if self._held + size > self._limit:
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        """Ends what `take` began."""
        self._held -= size

    def __str__(self) -> str:
        return f"unfinished requests take more than {self._limit} bytes (--max_buffered_bytes): try again later"

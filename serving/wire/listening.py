"""Listening sockets: bound before they listen, and, on Linux, one that takes over from another."""

import ctypes
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

BACKLOG = 1024  # connections that wait to be accepted
_SO_ATTACH_FILTER = 26  # Linux's socket(7); Python has no name for it
_SO_ATTACH_REUSEPORT_CBPF = 51  # nor for this one


def bound(
    family: int, kind: int, protocol: int, address: Any, *, shared: bool = False, dual: bool = False
) -> socket.socket:
    """A socket that has its address, but does not listen yet. Raises OSError where it cannot have it.

    A `dual` one of IPv6 takes connections of IPv4, too, where its address is that of all.
    """
    endpoint = socket.socket(family, kind, protocol)
    try:
        endpoint.setblocking(False)
        if os.name == "posix":
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual))
        endpoint.bind(address)
    except OSError:
        endpoint.close()
        raise
    return endpoint


def successor(endpoint: socket.socket) -> socket.socket | None:
    """A second listening socket at the address of this one, which all new connections go to from now on, where there
    can be one: on Linux, beside a socket that shares its port and is alone there.

    What the first has accepted, or is about to, stays with it. Only when it is closed, the next successor may come.
    """
    if not sys.platform.startswith("linux") or endpoint.family == socket.AF_UNIX:
        return None
    try:
        _attach(endpoint, _SO_ATTACH_REUSEPORT_CBPF, _CHOOSE_SECOND)
        dual = endpoint.family == socket.AF_INET6 and not endpoint.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        found = bound(endpoint.family, endpoint.type, endpoint.proto, endpoint.getsockname(), shared=True, dual=dual)
        found.listen(BACKLOG)
    except OSError:
        return None
    return found


# A packet filter (Linux's filter.h): what asks for a connection is dropped. Everything else passes, and must: a
# handshake that is half done when this comes is a connection already on the client's side.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP's flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # then keep nothing
    (0x06, 0, 0, 0xFFFFFFFF),  # else all
)


# Of the sockets that share a port, the second. Where there is one only, Linux takes that.
_CHOOSE_SECOND = ((0x06, 0, 0, 1),)


def drop_new_handshakes(endpoint: socket.socket) -> None:
    """Attaches the packet filter to a listening socket; the connections that come of it inherit it."""
    with suppress(OSError):
        _attach(endpoint, _SO_ATTACH_FILTER, _DROP_SYN)


def _attach(endpoint: socket.socket, option: int, steps: tuple[tuple[int, int, int, int], ...]) -> None:
    """Gives a socket a program of the kernel's packet filter. Raises OSError."""
    instructions = ctypes.create_string_buffer(b"".join([struct.pack("HBBI", *step) for step in steps]))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(instructions))
    endpoint.setsockopt(socket.SOL_SOCKET, option, program)

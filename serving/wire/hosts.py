"""The Host header against DNS rebinding: a page whose name was pointed at this machine still sends its own name."""

import ipaddress
import re
from collections.abc import Collection

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:/\[\]]+))(?::\d*)?")
_ANY = ("", "0.0.0.0", "::")  # bound to these, a server may be addressed by each address that it has


def listed(text: str) -> list[str]:
    """The names of a flag, which has them with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def is_expected(header: str, bound: str, allowed: Collection[str]) -> bool:
    """Whether a Host header names loopback, the address that the server is `bound` to, or one of `allowed`.

    No name can be an address, so that any address will do where the server is bound to all of them. With "*" among the
    `allowed` any name will do.
    """
    if "*" in allowed:
        return True
    match = _HOST.fullmatch(header.strip())
    if match is None:
        return False
    host = (match[1] or match[2]).lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost") or host in (bound.lower(), *map(str.lower, allowed)):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or bound in _ANY

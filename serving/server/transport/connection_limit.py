"""When a port has too many connections."""

from collections.abc import Set
from typing import Protocol


class Connection(Protocol):
    """One that is open; `turned_away` while it stays open only to be told that there are too many."""

    turned_away: bool


def is_full(connections: Set[Connection], limit: int) -> bool:
    """Whether there are more than `limit`. Those that are turned away leave by themselves and take nobody's place."""
    return len(connections) > limit and sum(not connection.turned_away for connection in connections) > limit

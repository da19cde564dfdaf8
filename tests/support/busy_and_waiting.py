"""A plugin of pytest: files whose tests keep a processor busy take turns with those whose tests wait for servers.

Workers take file after file in this order, so both kinds run beside each other and the processors are never idle.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]
_BUSY = (_TESTS / "training", _TESTS / "export")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    busy = [some for folder in _BUSY for path, some in files.items() if path.is_relative_to(folder)]
    waiting = [some for path, some in files.items() if not any(path.is_relative_to(folder) for folder in _BUSY)]
    items[:] = chain.from_iterable(_in_turns(busy, waiting))


def _in_turns(*kinds: Sequence[list[pytest.Item]]) -> Iterator[list[pytest.Item]]:
    for some in zip_longest(*kinds, fillvalue=[]):
        yield from some

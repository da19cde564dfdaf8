"""A plugin of pytest: the trainings come first, so that no worker is alone with them at the end."""

from pathlib import Path

import pytest

_TRAININGS = Path(__file__).parents[1] / "training"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files right in the folder start whole commands, and so come before those below it."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> float:
    if not item.path.is_relative_to(_TRAININGS):
        return float("inf")
    return len(item.path.relative_to(_TRAININGS).parts)

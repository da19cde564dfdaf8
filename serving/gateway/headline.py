"""The one figure of a version that the list of models shows: which of those in its manifest says how good it is."""

from collections.abc import Mapping
from typing import Any

_SPLITS = ("test", "valid")  # the first that a manifest has
_BEST = ("accuracy", "auc", "r2", "perplexity", "reward_share", "rmse")  # before all others, in this order
_LAST = ("loss",)
_COUNTS = ("rows",)  # says nothing of how good a version is


def of(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{"name", "split", "value"} of a manifest's headline; None where it has no figure."""
    if manifest is None:
        return None
    metrics = manifest.get("metrics")
    for split in _ordered(metrics, _SPLITS, ()):
        figures = metrics[split] if isinstance(metrics, dict) else None
        for name in _ordered(figures, _BEST, _LAST):
            value = figures[name] if isinstance(figures, dict) else None
            if name not in _COUNTS and _is_number(value):
                return {"name": name, "split": split, "value": value}
    quantized = manifest.get("quantization")
    if isinstance(quantized, dict) and _is_number(quantized.get("int8")):
        return {"name": str(quantized.get("figure", "")), "split": "", "value": quantized["int8"]}
    return None


def _ordered(found: Any, first: tuple[str, ...], last: tuple[str, ...]) -> list[str]:
    """The names of an object: `first` in that order, then the others as they stand, then `last`."""
    names = [name for name in found if isinstance(name, str)] if isinstance(found, dict) else []
    others = [name for name in names if name not in (*first, *last)]
    return [name for name in (*first, *others, *last) if name in names]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""`bookserve models promote`: whether a version is no worse than the one whose place it takes.

Compared are the figures of the manifests on the test rows and, where servers are named, how often each version failed
to answer since the servers loaded it.
"""

import math
from dataclasses import dataclass

from bookserve.export.errors import StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.served import Servers
from bookserve.export.store import ModelStore

SPLIT = "test"
_COUNTS = ("rows",)  # figures that say nothing of quality
# Words in a figure's name that tell which way is better.
_LOWER = ("loss", "error", "perplexity", "rmse", "mse", "mae", "lost", "brier", "deviation")
_HIGHER = ("accuracy", "auc", "r2", "precision", "recall", "f1", "score", "won", "correlation", "iou", "map")


@dataclass(frozen=True)
class Check:
    """One comparison in words; `worse` where it speaks against the version."""

    told: str
    worse: bool = False


def versions(store: ModelStore, model: str, label: str, to: str) -> tuple[int, int | None]:
    """The version that `label` names, and the one that `to` names now: None where there is no such label.

    Raises:
        StoreError: no such model, or it has no label of that name.
    """
    store.path(model)
    labels = store.release(model).labels
    if label not in labels:
        raise StoreError(f"{model} has no label '{label}' (labels: {', '.join(labels) or 'none'})")
    return labels[label], labels.get(to)


def figures(candidate: Manifest, current: Manifest, margin: float) -> list[Check]:
    """Every figure on the test rows that both have, worse where it is so by more than `margin` of the current value."""
    ours, theirs = candidate.metrics.get(SPLIT, {}), current.metrics.get(SPLIT, {})
    shared = [name for name in ours if name in theirs and name not in _COUNTS]
    if not shared:
        return [Check("no figure on the test rows stands in both manifests: not compared")]
    checks = []
    if candidate.data != current.data and None not in (candidate.data, current.data):
        told = f"measured on other data ({_data(candidate)} instead of {_data(current)}): not comparable"
        checks.append(Check(told, worse=True))
    for name in shared:
        told = f"{name} {ours[name]:.6g}, now {theirs[name]:.6g}"
        sign = _direction(name)
        if not sign:
            checks.append(Check(f"{told}: not known which is better"))
        else:
            loss = sign * (theirs[name] - ours[name])
            worse = math.isnan(ours[name]) or loss > margin * abs(theirs[name])
            checks.append(Check(f"{told}{': worse' if worse else ''}", worse))
    return checks


def error_rates(servers: Servers, model: str, candidate: int, current: int, margin: float, least: int) -> list[Check]:
    """The fraction of the requests that each version failed to answer; worse where it is so by more than `margin`.

    Fewer than `least` requests of the candidate say nothing, which speaks against it, too.

    Raises:
        StoreError: a server does not answer, or does not count by version.
    """
    rates, told = [], []
    for version in (candidate, current):
        answered, failed = servers.counts(model, version)
        asked = answered + failed
        if version == candidate and asked < least:
            few = f"version {candidate} was asked {asked} times, fewer than --min-requests {least}"
            return [Check(few, worse=True)]
        rates.append(failed / asked if asked else 0.0)
        told.append(f"{rates[-1]:.4%} of {asked} requests failed")
    worse = rates[0] > rates[1] + margin
    return [Check(f"{told[0]}, now {told[1]}{': worse' if worse else ''}", worse)]


def _direction(name: str) -> int:
    """1 where a higher value of the figure is better, -1 where a lower one is, 0 where nobody knows."""
    words = name.lower().replace("-", "_").split("_")
    lower = any(word in _LOWER for word in words)
    higher = any(word in _HIGHER for word in words)
    return 0 if lower == higher else -1 if lower else 1


def _data(found: Manifest) -> str:
    return "none" if found.data is None else f"{found.data.source} {found.data.name} {found.data.sha256[:12]}"

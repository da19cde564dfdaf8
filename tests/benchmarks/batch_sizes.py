"""How many rows the server ran at once: read from its metrics page before and after a load."""

import re
import urllib.request
from collections import Counter
from collections.abc import Mapping

from load_generators import url

FLAGS = ("--enable_metrics",)
_PATH = "monitoring/prometheus/metrics"
_NAME = ":tensorflow:serving:batching_session:processed_batch_size"


def read(rest_port: int) -> str:
    """The metrics page."""
    with urllib.request.urlopen(url(rest_port, _PATH), timeout=60) as page:
        return str(page.read().decode())


def between(before: str, after: str) -> Mapping[str, float]:
    """Of the runs between two pages: the mean rows, and the share of the runs in each bucket, in per cent."""
    counts = Counter(_counts(after))
    counts.subtract(_counts(before))
    runs = counts.pop("count")
    rows = counts.pop("sum")
    if not runs:
        return {}
    figures = {"rows a batch": rows / runs}
    below = 0.0
    for bound, up_to in sorted(counts.items(), key=lambda item: float(item[0])):
        if up_to > below:
            figures[f"batches <= {bound} %"] = 100 * (up_to - below) / runs
        below = up_to
    return figures


def _counts(page: str) -> dict[str, float]:
    """Bucket's upper bound -> runs up to it; and "sum" and "count"."""
    found = re.findall(rf'^{_NAME}_(?:bucket{{le="(.*?)"}}|(sum|count){{}}) (\S+)$', page, re.MULTILINE)
    return {bound or name: float(value) for bound, name, value in found}

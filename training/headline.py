"""The one figure by which a model is judged, next to the book's own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """`metric` names a figure of the test split; `book` is the book's value, or None where it has none."""

    metric: str
    book: float | None

"""The columns of a table that an estimator of scikit-learn takes: their names, types, words and gaps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bookserve.export import column_values
from bookserve.export.contracts import Tensor
from bookserve.export.converters.source import Rows

INPUT = "x"
MISSING = ""  # of a column of texts
_KEPT_ROWS = ("_fit_X", "X_train_", "X_fit_", "support_vectors_", "cluster_centers_")  # of the training, by estimators
_DRAWN = 256  # values of a column between the least and the largest that is kept


def inputs_of(estimator: Any, columns: tuple[str, ...]) -> tuple[Tensor, ...]:
    """One matrix of floats; or an input a column, where columns are chosen by name."""
    known = categories(estimator)
    if known is None or not columns:
        return (Tensor(INPUT, "float32", (None, int(estimator.n_features_in_))),)
    text = {name for name, keys in known.items() if any(isinstance(key, str) for key in keys)}
    used = _used(estimator, columns)
    return tuple(Tensor(name, "object" if name in text else "float32", (None, 1)) for name in columns if name in used)


def _used(estimator: Any, columns: tuple[str, ...]) -> set[str]:
    """The columns that a ColumnTransformer does not drop; all where it knows columns by their places."""
    chosen = [some for _, step, some in _column_transformers(estimator)[0].transformers_ if step != "drop"]
    if any(isinstance(some, slice) or not all(isinstance(name, str) for name in some) for some in chosen):
        return set(columns)
    return {name for some in chosen for name in ([some] if isinstance(some, str) else some)}


def categories(estimator: Any) -> dict[str, tuple[Any, ...]] | None:
    """Column -> the words or numbers that an encoder of a ColumnTransformer knows; None without a ColumnTransformer."""
    transformers = _column_transformers(estimator)
    if not transformers:
        return None
    found: dict[str, tuple[Any, ...]] = {}
    for _, step, chosen in transformers[0].transformers_:
        for inner in steps(step):
            known_of_each = getattr(inner, "categories_", ())
            for name, known in zip(_names(transformers[0], chosen), known_of_each, strict=False):
                keys = tuple(key for key in np.asarray(known).tolist() if key is not None and key == key)  # no NaN
                if keys:
                    found[name] = keys
    return found


def table(rows: Rows, inputs: tuple[Tensor, ...], columns: tuple[str, ...], gaps: Sequence[str]) -> Any:
    """As an estimator takes it: in float64, in which most are fitted, and some take nothing else then.

    Empty texts of the columns in `gaps` are missing ones.
    """
    if len(inputs) == 1 and not columns:
        return rows[inputs[0].name].astype(np.float64)
    import pandas as pd

    if len(inputs) == 1:
        return pd.DataFrame(rows[inputs[0].name].astype(np.float64), columns=list(columns))
    table = pd.DataFrame({tensor.name: [_plain(value) for value in rows[tensor.name][:, 0]] for tensor in inputs})
    for name in gaps:
        table[name] = table[name].astype(object).replace(MISSING, np.nan)
    return table


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def ranges(estimator: Any, inputs: tuple[Tensor, ...]) -> dict[str, column_values.Columns]:
    """Values of each column between those of the rows that the first step keeps of its training, if it keeps some."""
    first = steps(estimator)[0]
    kept = next((getattr(first, name) for name in _KEPT_ROWS if hasattr(first, name)), None)
    shape = getattr(kept, "shape", ())
    if len(inputs) != 1 or not isinstance(kept, np.ndarray) or shape[1:] != inputs[0].shape[1:]:
        return {}
    chance = np.random.default_rng(0)
    limits = [(np.nanmin(column), np.nanmax(column)) for column in kept.T.astype(np.float64)]
    return {inputs[0].name: tuple(chance.uniform(*ends, _DRAWN).astype(np.float32) for ends in limits)}


def _of_texts(estimator: Any) -> Iterator[tuple[Any, list[str]]]:
    """The imputers and encoders of a ColumnTransformer that know missing texts, with the names of those columns."""
    for transformer in _column_transformers(estimator):
        for _, step, chosen in transformer.transformers_:
            for inner in steps(step):
                if type(inner).__name__ == "SimpleImputer":
                    texts = any(isinstance(value, str) for value in np.asarray(inner.statistics_).tolist())
                    if texts and not isinstance(inner.missing_values, str):
                        yield inner, _names(transformer, chosen)
                elif hasattr(inner, "categories_"):
                    names = _names(transformer, chosen)
                    with_gaps = [_gaps(found).any() for found in inner.categories_]
                    if any(with_gaps):
                        yield inner, [name for name, gap in zip(names, with_gaps, strict=False) if gap]


def _gaps(categories: Any) -> Any:
    """Which of the categories stands for missing ones."""
    return np.array([category is None or category != category for category in np.asarray(categories).tolist()])


def texts_with_gaps(estimator: Any, inputs: tuple[Tensor, ...]) -> list[str]:
    """The columns of texts that may be missing."""
    texts = {tensor.name for tensor in inputs if tensor.dtype == "object"}
    return list(dict.fromkeys(name for _, names in _of_texts(estimator) for name in names if name in texts))


def take_empty_texts(estimator: Any) -> None:
    """Change an estimator so that empty texts are the missing ones, which a tensor of texts has not.

    They are filled in by imputers, and are a category of encoders; of an OrdinalEncoder they are an unknown word, with
    the number of the missing ones.
    """
    for part, _ in _of_texts(estimator):
        match type(part).__name__:
            case "SimpleImputer":
                part.missing_values = MISSING
            case "OrdinalEncoder":
                part.categories_ = [known[~_gaps(known)] for known in part.categories_]
                if part.handle_unknown == "error":
                    part.handle_unknown, part.unknown_value = "use_encoded_value", part.encoded_missing_value
            case _:
                part.categories_ = [_filled(known) for known in part.categories_]


def _filled(categories: Any) -> Any:
    """Categories of texts with an empty one for the missing ones; others as they are."""
    gaps = _gaps(categories)
    if not gaps.any() or not any(isinstance(category, str) for category in categories):
        return categories
    filled = np.array(categories, object)
    filled[gaps] = MISSING
    return filled


def _names(transformer: Any, chosen: Any) -> list[str]:
    """The names of the columns that a step of a ColumnTransformer chooses, by name, place, slice or mask."""
    if isinstance(chosen, str):
        return [chosen]
    if not isinstance(chosen, slice) and all(isinstance(name, str) for name in chosen):
        return list(chosen)
    known = np.array(transformer.feature_names_in_, object)
    return [str(name) for name in known[chosen if isinstance(chosen, slice) else np.asarray(chosen)]]


def _column_transformers(estimator: Any) -> list[Any]:
    return [step for step in steps(estimator) if type(step).__name__ == "ColumnTransformer"]


def steps(estimator: Any) -> list[Any]:
    """The steps of a pipeline; what is none itself."""
    return [step for _, step in getattr(estimator, "steps", [("", estimator)])]

"""What skl2onnx writes of scikit-learn's trees, mended while it converts: types, thresholds and missing numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np


@contextmanager
def exact() -> Iterator[None]:
    """Mends what skl2onnx writes of the trees of sklearn.tree: the side of each node that missing numbers (NaN) go to,
    and its threshold.

    That is a float64, with which scikit-learn compares values of float32: those not above it go left. Rounded to
    float32 it may be above one of them; the largest float32 that is not above it parts all values as it does.
    Histogram gradient boosting compares float64: its thresholds are best rounded as the values are.
    """
    from skl2onnx.operator_converters import decision_tree, gradient_boosting, isolation_forest, random_forest

    name, of_several = "add_tree_to_attribute_pairs", "populate_tree_attributes"
    modules = (decision_tree, gradient_boosting, isolation_forest, random_forest)
    add_tree, populate = getattr(decision_tree, name), getattr(decision_tree, of_several)
    for module in modules:
        setattr(module, name, partial(_add_tree, add_tree))
    setattr(decision_tree, of_several, partial(_populate, populate))
    try:
        yield
    finally:
        for module in modules:
            setattr(module, name, add_tree)
        setattr(decision_tree, of_several, populate)


def _add_tree(
    add_tree: Callable[..., None],
    attributes: dict[str, Any],
    is_classifier: bool,
    tree: Any,
    *rest: Any,
    **options: Any,
) -> None:
    """Add a tree by skl2onnx to the attributes of its operation, then write its nodes' sides and thresholds anew."""
    before = len(attributes["nodes_values"])
    add_tree(attributes, is_classifier, tree, *rest, **options)
    _write_exact(attributes, tree, before)


def _populate(populate: Callable[..., dict[str, Any]], model: Any, *rest: Any) -> dict[str, Any]:
    """The same for a tree with several labels a row."""
    attributes = populate(model, *rest)
    _write_exact(attributes, model.tree_, 0)
    return attributes


def _write_exact(attributes: dict[str, Any], tree: Any, begin: int) -> None:
    values = attributes["nodes_values"]
    values[begin:] = [_not_above(value) for value in values[begin:]]
    sides = np.asarray(tree.missing_go_to_left).astype(np.int64)
    attributes["nodes_missing_value_tracks_true"][begin:] = sides.tolist()


def _not_above(threshold: float) -> float:
    """The largest float32 that is not above a float64."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))


@contextmanager
def whole_numbers_for_truth() -> Iterator[None]:
    """Mends what skl2onnx writes of histogram gradient boosting: truth values where ONNX takes whole numbers alone."""
    from skl2onnx.common._container import ModelComponentContainer

    add_node = ModelComponentContainer.add_node

    def add(*arguments: Any, **attributes: Any) -> Any:
        return add_node(*arguments, **{name: _whole(value) for name, value in attributes.items()})

    ModelComponentContainer.add_node = add
    try:
        yield
    finally:
        ModelComponentContainer.add_node = add_node


def _whole(attribute: Any) -> Any:
    if isinstance(attribute, list):
        return [int(value) if isinstance(value, bool | np.bool_) else value for value in attribute]
    return attribute

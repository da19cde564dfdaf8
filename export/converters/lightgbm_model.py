"""LightGBM's own model files: text that begins with "tree"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import parity
from bookserve.export.converters import boosted_trees, tree_ensemble
from bookserve.export.converters.boosted_trees import Answer, Link, Margins, Objective
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "LightGBM"
EXTRA = "convert"
_ZERO = float(np.float32(1e-35))  # numbers as small as this are zero
OBJECTIVES: Mapping[str, Objective] = {
    "regression": Objective(Link.IDENTITY),
    "regression_l1": Objective(Link.IDENTITY),
    "huber": Objective(Link.IDENTITY),
    "fair": Objective(Link.IDENTITY),
    "quantile": Objective(Link.IDENTITY),
    "mape": Objective(Link.IDENTITY),
    "poisson": Objective(Link.EXPONENTIAL),
    "gamma": Objective(Link.EXPONENTIAL),
    "tweedie": Objective(Link.EXPONENTIAL),
    "binary": Objective(Link.SIGMOID, Answer.CLASSES),
    "multiclass": Objective(Link.SOFTMAX, Answer.CLASSES),
    "multiclassova": Objective(Link.SIGMOID, Answer.CLASSES),
    "cross_entropy": Objective(Link.SIGMOID),
    "cross_entropy_lambda": Objective(Link.SOFTPLUS),
    "lambdarank": Objective(Link.IDENTITY),
    "rank_xendcg": Objective(Link.IDENTITY),
    "custom": Objective(Link.IDENTITY),
}
"""What each objective does to the margin: `ConvertOutput` of
https://github.com/microsoft/LightGBM/tree/v4.6.0/src/objective, and "objective" of
https://lightgbm.readthedocs.io/en/v4.6.0/Parameters.html#objective. A model of a function of the user's own has none,
or "custom"."""


def recognises(path: Path) -> bool:
    """A file that begins with "tree" and a version."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(64).replace(b"\r", b"").startswith(b"tree\nversion=")


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import lightgbm

    try:
        booster = lightgbm.Booster(model_file=str(path))
    except lightgbm.basic.LightGBMError as error:
        raise ExportError(f"LightGBM does not load {path}: {error}") from error
    model = booster.dump_model()
    margins, objective = margins_of(model)
    columns = tuple(booster.feature_name())
    return boosted_trees.converted(
        margins,
        objective,
        folder,
        wishes.model,
        columns,
        booster.num_feature(),
        lambda rows: booster.predict(rows.astype(np.float64)),
        ("lightgbm", "onnx", "onnxruntime"),
        parity.DOUBLE_SOURCE,
        _categorical_note(model, columns),
    )


def margins_of(model: Mapping[str, Any]) -> tuple[Margins, Objective]:
    """The margins of what `Booster.dump_model` gives, and what the objective makes of them.

    Raises:
        ExportError: the trees or the objective are not converted.
    """
    objective, factor = _objective(model.get("objective") or "custom")
    outputs, trees = model["num_tree_per_iteration"], model["tree_info"]
    if model["average_output"] and trees:
        factor *= outputs / len(trees)
    found = [_tree(tree["tree_structure"], place % outputs, factor) for place, tree in enumerate(trees)]
    return boosted_trees.of_trees(found, [0.0] * outputs), objective


def _objective(text: str) -> tuple[Objective, float]:
    """What the objective does to the margin, and the factor before it; `text` is such as "binary sigmoid:1".

    Raises:
        ExportError: it is none of LightGBM's.
    """
    name, *options = text.split()
    if name not in OBJECTIVES:
        raise ExportError(f"the objective {name} is not converted; {', '.join(OBJECTIVES)} are")
    if "sqrt" in options:
        return Objective(Link.SIGNED_SQUARE), 1.0
    factors = [float(option.partition(":")[2]) for option in options if option.startswith("sigmoid:")]
    return OBJECTIVES[name], factors[0] if factors else 1.0


def _tree(root: Mapping[str, Any], output: int, factor: float) -> tree_ensemble.Tree:
    """A tree as `Booster.dump_model` gives it.

    Raises:
        ExportError: its leaves hold regressions.
    """
    found: list[tree_ensemble.Split | tree_ensemble.Leaf] = []
    waiting = [root]
    for node in waiting:
        if "leaf_coeff" in node:
            raise ExportError(
                "its trees have a regression in each leaf (linear_tree=true), which has no ONNX form: train it with"
                " linear_tree=false"
            )
        if "left_child" in node:
            found.append(_split(node, len(waiting), len(waiting) + 1))
            waiting += [node["left_child"], node["right_child"]]
        else:
            found.append(tree_ensemble.Leaf(((output, node["leaf_value"] * factor),)))
    return found


def _split(node: Mapping[str, Any], left: int, right: int) -> tree_ensemble.Split:
    """As `NumericalDecision` and `CategoricalDecision` of
    https://github.com/microsoft/LightGBM/blob/v4.6.0/include/LightGBM/tree.h have it: a category is cut to a whole
    number, and goes left if it is in the set; another number goes left up to the split. Where zeros are missing numbers
    and where NaN is, both go the node's own way; where nothing is, NaN is zero.
    """
    column, default = node["split_feature"], left if node["default_left"] else right
    if node["decision_type"] == "==":
        members = {int(part) for part in str(node["threshold"]).split("||")}
        cuts = {tree_ensemble.at_least(cut) for member in members for cut in (member, member + 1)}
        if 0 in members:
            cuts.add(tree_ensemble.above(-1.0))
        return tree_ensemble.split(column, cuts, lambda value: value > -1 and int(value) in members, left, right, right)
    limit = float(node["threshold"])
    cuts = {tree_ensemble.above(limit)}
    match node["missing_type"]:
        case "Zero":
            cuts |= {tree_ensemble.at_least(-_ZERO), tree_ensemble.above(_ZERO)}

            def goes_left(value: float) -> bool:
                return default == left if abs(value) <= _ZERO else value <= limit

            return tree_ensemble.split(column, cuts, goes_left, left, right, default)
        case "None":
            default = left if limit >= 0 else right
    return tree_ensemble.split(column, cuts, lambda value: value <= limit, left, right, default)


def _categorical_note(model: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    """A line where the columns were categories of pandas, which LightGBM turns into their codes itself."""
    if not model["pandas_categorical"]:
        return ()
    kinds = model["feature_infos"]
    names = ", ".join(name for name in columns if kinds.get(name, {}).get("values"))
    return (f"give the codes of the categories (0, 1, …) in {names}, as .cat.codes of pandas, and NaN for none",)

"""XGBoost's own model files: `.json` and `.ubj`."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export.converters import boosted_trees, tree_ensemble
from bookserve.export.converters.boosted_trees import Answer, Link, Margins, Objective
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "XGBoost"
EXTRA = "convert"
_HEAD = 4096  # bytes that are looked at
_WITHOUT_PROBABILITIES = "binary:hinge"
_CATEGORICAL = 1  # in a tree's "split_type"
_CATEGORIES_END = 1 << 24  # above it no number is a category
OBJECTIVES: Mapping[str, Objective] = {
    "reg:squarederror": Objective(Link.IDENTITY),
    "reg:linear": Objective(Link.IDENTITY),
    "reg:squaredlogerror": Objective(Link.IDENTITY),
    "reg:pseudohubererror": Objective(Link.IDENTITY),
    "reg:absoluteerror": Objective(Link.IDENTITY),
    "reg:quantileerror": Objective(Link.IDENTITY),
    "reg:logistic": Objective(Link.SIGMOID),
    "reg:gamma": Objective(Link.EXPONENTIAL),
    "reg:tweedie": Objective(Link.EXPONENTIAL),
    "count:poisson": Objective(Link.EXPONENTIAL),
    "survival:cox": Objective(Link.EXPONENTIAL),
    "survival:aft": Objective(Link.EXPONENTIAL),
    "binary:logistic": Objective(Link.SIGMOID, Answer.CLASSES),
    "binary:logitraw": Objective(Link.IDENTITY),
    "binary:hinge": Objective(Link.SIGN, Answer.CLASSES),
    "multi:softprob": Objective(Link.SOFTMAX, Answer.CLASSES),
    "multi:softmax": Objective(Link.SOFTMAX, Answer.CLASSES),
    "rank:ndcg": Objective(Link.IDENTITY),
    "rank:map": Objective(Link.IDENTITY),
    "rank:pairwise": Objective(Link.IDENTITY),
}
"""What each objective does to the margin: `PredTransform` and `EvalTransform` of
https://github.com/dmlc/xgboost/tree/v3.2.0/src/objective, and "objective" of
https://xgboost.readthedocs.io/en/release_3.2.0/parameter.html#learning-task-parameters. multi:softmax, whose prediction
is the class, gives the probabilities that belong to it besides."""


def recognises(path: Path) -> bool:
    """A .json or .ubj file that begins with a learner."""
    if not path.is_file() or path.suffix.lower() not in (".json", ".ubj", ".xgb", ".model"):
        return False
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    return head.lstrip()[:1] == b"{" and b"learner" in head


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(str(path))
    except xgboost.core.XGBoostError as error:
        raise ExportError(f"XGBoost does not load {path}: {str(error).splitlines()[-1]}") from error
    booster, notes = answering(booster)
    width, columns = booster.num_features(), tuple(booster.feature_names or ())
    notes += _categorical_note(booster, columns)
    margins, objective, name = margins_of(booster)
    if name == _WITHOUT_PROBABILITIES:
        notes += (f"{name} gives the class alone: its probabilities are 0 and 1",)
    return boosted_trees.converted(
        margins,
        objective,
        folder,
        wishes.model,
        columns,
        width,
        _predict(booster, name),
        ("xgboost", "xgboost-cpu", "onnx", "onnxruntime"),
        notes=notes,
    )


def margins_of(booster: Any) -> tuple[Margins, Objective, str]:
    """The margins of all trees of a booster, what its objective makes of them, and the objective's name.

    Raises:
        ExportError: the booster or its objective is not converted.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = _objective(learner)
    return _margins(booster, learner, objective.link), objective, learner["objective"]["name"]


def answering(booster: Any, of_estimator: bool = False) -> tuple[Any, tuple[str, ...]]:
    """The booster with the trees that XGBoost answers with by default, and a note where it has others.

    After early stopping the estimators of scikit-learn's kind, whose files say so, answer with the trees up to the best
    iteration, and `Booster.predict` with all
    (https://xgboost.readthedocs.io/en/release_3.2.0/python/python_intro.html#early-stopping). `of_estimator` says that
    the booster is of the first kind even if its attributes do not.
    """
    rounds = booster.num_boosted_rounds()
    best = booster.attr("best_iteration")
    trees = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] != "gblinear"
    if best is None or int(best) + 1 >= rounds or not trees:
        return booster, ()
    count = int(best) + 1
    if not of_estimator and booster.attr("scikit_learn") is None:
        return booster, (
            f"it answers with all {rounds} iterations, as Booster.predict does; the best one, after {count}, is"
            " booster[:booster.best_iteration + 1]",
        )
    return booster[:count], (f"it answers with the first {count} of {rounds} iterations, the best, as its estimator",)


def _categorical_note(booster: Any, columns: tuple[str, ...]) -> tuple[str, ...]:
    places = [place for place, kind in enumerate(booster.feature_types or ()) if kind == "c"]
    if not places:
        return ()
    names = ", ".join(columns[place] if columns else f"column {place}" for place in places)
    return (f"give the codes of the categories (0, 1, …) in {names}, as .cat.codes of pandas, and NaN for none",)


def _objective(learner: Mapping[str, Any]) -> Objective:
    """What the objective of the model does to its margins.

    Raises:
        ExportError: it is none of XGBoost's own.
    """
    name = learner["objective"]["name"]
    if name not in OBJECTIVES:
        raise ExportError(f"the objective {name} is not converted; {', '.join(OBJECTIVES)} are")
    objective = OBJECTIVES[name]
    several = int(learner["learner_model_param"].get("num_target", "1")) > 1
    return Objective(objective.link) if several else objective


def _predict(booster: Any, objective: str) -> Callable[[npt.NDArray[Any]], Any]:
    import xgboost

    def predict(rows: npt.NDArray[Any]) -> Any:
        table = xgboost.DMatrix(rows)
        if objective != "multi:softmax":
            return booster.predict(table, validate_features=False)
        margins = booster.predict(table, output_margin=True, validate_features=False).astype(np.float64)
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return predict


def _margins(booster: Any, learner: Mapping[str, Any], link: Link) -> Margins:
    """The margins of a model; `learner` is its JSON
    (https://xgboost.readthedocs.io/en/release_3.2.0/tutorials/saving_model.html).

    Raises:
        ExportError: it consists neither of trees nor of weights.
    """
    sizes, made = learner["learner_model_param"], learner["gradient_booster"]
    outputs = max(1, int(sizes.get("num_class", "0")), int(sizes.get("num_target", "1")))
    match made["name"]:
        case "gblinear":
            return _weighted(booster, made["model"]["weights"], outputs)
        case "gbtree":
            trees, factors = made["model"], None
        case "dart":
            trees, factors = made["gbtree"]["model"], made["weight_drop"]
        case name:
            raise ExportError(f"the booster {name} is not converted; gbtree, dart and gblinear are")
    score = np.asarray(json.loads(sizes["base_score"]), np.float64)
    base = _margin_of(np.broadcast_to(score.ravel(), (outputs,)), link)
    found = [
        _tree(tree, int(output), np.float32(1.0 if factors is None else factors[place]))
        for place, (tree, output) in enumerate(zip(trees["trees"], trees["tree_info"], strict=True))
    ]
    return boosted_trees.of_trees(found, base.tolist())


def _weighted(booster: Any, weights: list[float], outputs: int) -> Margins:
    """Of gblinear. What is added to an output is what XGBoost gives for zeros: of several outputs, it adds the first
    number of "base_score" to all.
    """
    import xgboost

    width = booster.num_features()
    zeros = xgboost.DMatrix(np.zeros((1, width), np.float32))
    base = booster.predict(zeros, output_margin=True, validate_features=False)
    return boosted_trees.of_weights(np.array(weights, np.float64).reshape(width + 1, outputs)[:-1], base.ravel())


def _margin_of(score: npt.NDArray[Any], link: Link) -> npt.NDArray[Any]:
    """The margin that the file's "base_score" stands for: it is a value behind the link, if that can be inverted."""
    match link:
        case Link.SIGMOID:
            return np.asarray(np.log(score) - np.log1p(-score))
        case Link.EXPONENTIAL:
            return np.asarray(np.log(score))
        case _:
            return score


def _tree(tree: Mapping[str, Any], output: int, factor: np.float32) -> tree_ensemble.Tree:
    categories = dict(_categories(tree))
    return [
        _leaf(tree, place, output, factor) if left < 0 else _split(tree, place, categories.get(place))
        for place, left in enumerate(tree["left_children"])
    ]


def _categories(tree: Mapping[str, Any]) -> Iterator[tuple[int, set[int]]]:
    """Node -> the categories that go right."""
    for place, begin, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        yield place, set(tree["categories"][begin : begin + size])


def _split(tree: Mapping[str, Any], place: int, members: set[int] | None) -> tree_ensemble.Split:
    """As `Decision` of https://github.com/dmlc/xgboost/blob/v3.2.0/src/common/categorical.h has it: what is no category
    goes left, as does what is not in the set. Numbers go left below the split.
    """
    left, right = tree["left_children"][place], tree["right_children"][place]
    missing = left if tree["default_left"][place] else right
    column = tree["split_indices"][place]
    if tree["split_type"][place] != _CATEGORICAL:
        border = float(np.float32(tree["split_conditions"][place]))
        return tree_ensemble.split(column, (border,), lambda value: value < border, left, right, missing)
    known = {category for category in members or () if category < _CATEGORIES_END}
    cuts = {float(cut) for category in known for cut in (category, category + 1)}
    return tree_ensemble.split(column, cuts, lambda value: value < 0 or int(value) not in known, left, right, missing)


def _leaf(tree: Mapping[str, Any], place: int, output: int, factor: np.float32) -> tree_ensemble.Leaf:
    """A number for one output, or a vector for all of them.

    Raises:
        ExportError: the vectors are not where XGBoost 3.2 has them.
    """
    width = int(tree["tree_param"].get("size_leaf_vector", "1"))
    if width <= 1:
        return tree_ensemble.Leaf(((output, float(np.float32(tree["split_conditions"][place]) * factor)),))
    if "leaf_weights" not in tree:
        raise ExportError(
            "its trees have a vector in each leaf (multi_strategy=multi_output_tree), which is converted with XGBoost"
            " 3.2 and later: install that, or train with multi_strategy=one_output_per_tree"
        )
    begin = tree["right_children"][place] * width
    vector = tree["leaf_weights"][begin : begin + width]
    return tree_ensemble.Leaf(tuple((number, float(np.float32(value) * factor)) for number, value in enumerate(vector)))

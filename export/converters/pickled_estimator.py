"""Pickled estimators of scikit-learn, XGBoost and LightGBM (joblib, pickle, cloudpickle), converted by skl2onnx.

A pickle is a program: it is loaded only where the user trusts whoever made it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import column_values, engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters import boosted_estimators
from bookserve.export.converters.source import ONNX, Converted, Rows, Wishes
from bookserve.export.errors import ExportError

FORMAT = "scikit-learn"
EXTRA = "convert"
INPUT, LABEL, PROBABILITIES, SCORES, VALUE, FEATURES = "x", "label", "probabilities", "scores", "y", "features"
OPSET = {"": 18, "ai.onnx.ml": 3}
# What estimators answer: probabilities of classes; distances from a border; groups; values; other columns.
_PROBABILITIES, _DECISIONS, _GROUPS, _VALUES, _FEATURES = "probabilities", "decisions", "groups", "values", "features"
_OUTPUTS = {
    _PROBABILITIES: (LABEL, PROBABILITIES),
    _DECISIONS: (LABEL, SCORES),
    _GROUPS: (LABEL, SCORES),
    _VALUES: (VALUE,),
    _FEATURES: (FEATURES,),
}
_MISSING = ""  # of a column of texts
_NO_PROBABILITIES = "{} gives no probabilities: its scores are distances from the border between the classes"
_WRONG_SIGN = (
    "{} gives no probabilities, and of its scores ONNX's form has the sign wrong: the version has the label alone"
)
_LABEL_ALONE = "{} gives neither probabilities nor scores: the version has the label alone"
_EMPTY_IS_MISSING = "an empty text in {} counts as missing"
_SIDEWAYS = ("OneVsOneClassifier", "QuadraticDiscriminantAnalysis")  # whose labels skl2onnx gives in another shape
_KEPT_ROWS = ("_fit_X", "X_train_", "X_fit_", "support_vectors_", "cluster_centers_")  # of the training, by estimators
_DRAWN = 256  # values of a column between the least and the largest that is kept
_SUFFIXES = (".pkl", ".pickle", ".joblib", ".sav")


def recognises(path: Path) -> bool:
    """A file that is named as pickles are."""
    return path.is_file() and path.suffix.lower() in _SUFFIXES


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    if not wishes.trust:
        raise ExportError(
            f"{path} is a pickle, and loading a pickle runs whatever code its maker put into it, with your rights, on "
            "this machine. If you made it yourself or trust who did: --trust"
        )
    import joblib

    try:
        estimator = joblib.load(path)
    except ModuleNotFoundError as error:
        raise ExportError(f"{path} was made with the package '{error.name}', which is not installed") from error
    except MemoryError:
        raise
    except Exception as error:  # unpickling runs anything
        raise ExportError(
            f"{path} does not load: {type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
        ) from error
    return from_estimator(estimator, folder, wishes)


def from_estimator(estimator: Any, folder: Path, wishes: Wishes) -> Converted:
    """The version of an estimator that is loaded.

    Raises:
        ExportError: it is no fitted estimator, or a step of it has no ONNX form.
    """
    estimator = _found(estimator)
    first = getattr(estimator, "steps", [("", estimator)])[0][1]
    if hasattr(estimator, "predict") and hasattr(first, "vocabulary_"):
        raise ExportError(
            f"it takes texts (its first step is a {type(first).__name__}), and tables of numbers are converted here:"
            " convert it by skl2onnx.to_onnx(model, initial_types=[('text', StringTensorType([None, 1]))]), and add the"
            " .onnx file"
        )
    if not any(hasattr(estimator, name) for name in ("predict", "transform")) or not hasattr(
        estimator, "n_features_in_"
    ):
        raise ExportError(
            f"it holds a {type(estimator).__name__}, which is no fitted estimator with 'predict' or 'transform'"
        )
    if getattr(_last(estimator), "is_categorical_", None) is not None:
        raise ExportError(
            f"the trees of its {type(_last(estimator)).__name__} split by categories (categorical_features), which has"
            " no form in skl2onnx: put a OneHotEncoder before it, or train LightGBM or XGBoost"
        )
    columns = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    inputs = _inputs(estimator, columns)
    gaps = _texts_with_gaps(estimator, inputs)
    graph = _graph(_convertible(estimator), inputs)
    kind = _kind(estimator)
    labels = _labels(estimator) if kind != _VALUES else ()
    notes: list[str] = []
    why = _why_no_scores(estimator)
    if why:
        del graph.graph.output[1:]
        notes.append(why.format(type(_last(estimator)).__name__))
    elif labels and kind == _DECISIONS:
        notes.append(_NO_PROBABILITIES.format(type(_last(estimator)).__name__))
    if gaps:
        notes.append(_EMPTY_IS_MISSING.format(", ".join(gaps)))
    if type(_last(estimator)).__name__ in _SIDEWAYS:
        _flatten_label(graph)
    names = _rename_outputs(graph, _OUTPUTS[kind])
    ranks = {output.name: len(output.type.tensor_type.shape.dim) for output in graph.graph.output}
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())
    run = engines.onnx_graph(target)

    def reference(rows: Rows) -> dict[str, Any]:
        table = _table(rows, inputs, columns, gaps)
        answers: dict[str, Any] = {}
        for name in names:
            if name == PROBABILITIES:
                answers[name] = np.asarray(estimator.predict_proba(table), np.float32)
            elif name == FEATURES:
                answers[name] = _dense(estimator.transform(table))
            elif name == SCORES and kind == _GROUPS:
                answers[name] = np.asarray(estimator.transform(table), np.float32)
            elif name == SCORES:
                wide = len(labels) == 2 and run(rows)[name].shape[-1] == 2
                answers[name] = _scores(estimator.decision_function(table), wide=wide, rank=ranks[name])
            else:
                answers[name] = _shaped(np.asarray(estimator.predict(table)), ranks[name])
        return answers

    points_into = PROBABILITIES if PROBABILITIES in names and _numbered(labels) else ""
    outputs = {
        LABEL: Tensor(LABEL, "int64", (None,), ranks=points_into),
        PROBABILITIES: Tensor(PROBABILITIES, "float32", (None, len(labels) or None), unit="probability"),
        SCORES: Tensor(SCORES, "float32", (None, None)),
        FEATURES: Tensor(FEATURES, "float32", (None, None)),
    }
    return Converted(
        contract=Contract(
            wishes.model,
            1,
            inputs,
            tuple(outputs.get(name, Tensor(name, "float32", (None, 1))) for name in names),
            labels=labels if kind == _PROBABILITIES else (),
            task={_PROBABILITIES: "tabular" if labels else "tensors", _VALUES: "regression"}.get(kind, "tensors"),
            columns=columns if len(inputs) == 1 else (),
        ),
        reference=reference,
        graphs={ONNX: run},
        tables=_categories(estimator) or {} if len(inputs) > 1 else {},
        columns=column_values.of(graph) or _ranges(estimator, inputs),
        missing=True,
        notes=tuple(notes),
        made_with=("scikit-learn", "skl2onnx", "onnx", "onnxruntime"),
        tolerance=parity.DOUBLE_SOURCE,
    )


def _labels(estimator: Any) -> tuple[str, ...]:
    """The names of the classes; none where a row has several."""
    classes = getattr(estimator, "classes_", ())
    return tuple(str(label) for label in classes) if all(np.ndim(label) == 0 for label in classes) else ()


def _kind(estimator: Any) -> str:
    """What an estimator answers beside the label, if it has one."""
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector

    if not hasattr(estimator, "predict"):
        return _FEATURES
    if hasattr(estimator, "predict_proba"):
        return _PROBABILITIES
    if is_classifier(estimator) or is_outlier_detector(estimator):
        return _DECISIONS
    return _GROUPS if is_clusterer(estimator) else _VALUES


def _graph(estimator: Any, inputs: tuple[Tensor, ...]) -> Any:
    """The ONNX graph of an estimator, by skl2onnx."""
    import skl2onnx
    from sklearn.base import is_classifier

    _register_boosted()
    types = [(tensor.name, _onnx_type(tensor)) for tensor in inputs]
    ways: list[Any] = [None]
    if is_classifier(estimator):  # those without probabilities do not have the first option; they have no map of them
        ways = [{id(estimator): {"zipmap": False}}, {id(_last(estimator)): {"raw_scores": True}}]
    while True:
        options = ways.pop(0)
        try:
            with _whole_numbers_for_truth(), _exact_trees():
                return skl2onnx.convert_sklearn(estimator, initial_types=types, options=options, target_opset=OPSET)
        except Exception as error:  # skl2onnx raises many kinds for what it cannot convert
            if not ways or "'zipmap'" not in str(error):
                text = (str(error).strip().splitlines() or [f"skl2onnx ends with a {type(error).__name__}"])[0]
                raise ExportError(f"{type(estimator).__name__} has no ONNX form: {text}") from error


def _found(estimator: Any) -> Any:
    """The estimator that a search over parameters has found, or that one for rows without a label has trained."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    return estimator.estimator_ if type(estimator).__name__ == "SelfTrainingClassifier" else estimator


def _last(estimator: Any) -> Any:
    """The last step of a pipeline, and of one that is its last step; what is none itself."""
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def _flatten_label(graph: Any) -> None:
    """Gives the first output, of labels, the shape (rows,)."""
    import onnx

    output = graph.graph.output[0]
    inner, shape = f"{output.name}_in_columns", f"{output.name}_shape"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == output.name:
                    names[place] = inner
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), shape))
    graph.graph.node.append(onnx.helper.make_node("Reshape", [inner, shape], [output.name]))
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, [None]))


def _of_texts(estimator: Any) -> Iterator[tuple[Any, list[str]]]:
    """The imputers and encoders of a ColumnTransformer that know missing texts, with the names of those columns."""
    for transformer in _column_transformers(estimator):
        for _, step, chosen in transformer.transformers_:
            for inner in _steps(step):
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


def _texts_with_gaps(estimator: Any, inputs: tuple[Tensor, ...]) -> list[str]:
    """The columns of texts that may be missing."""
    texts = {tensor.name for tensor in inputs if tensor.dtype == "object"}
    return list(dict.fromkeys(name for _, names in _of_texts(estimator) for name in names if name in texts))


def _convertible(estimator: Any) -> Any:
    """The estimator with what skl2onnx asks for, and what changes no prediction.

    A tensor of texts has no missing ones, so empty ones are filled in by imputers, and are a category of encoders; of
    an OrdinalEncoder they are an unknown word, with the number of the missing ones. Voters do not join their votes in
    'transform', which is not asked.
    """
    changed = copy.deepcopy(estimator)
    for part, _ in _of_texts(changed):
        match type(part).__name__:
            case "SimpleImputer":
                part.missing_values = _MISSING
            case "OrdinalEncoder":
                part.categories_ = [known[~_gaps(known)] for known in part.categories_]
                if part.handle_unknown == "error":
                    part.handle_unknown, part.unknown_value = "use_encoded_value", part.encoded_missing_value
            case _:
                part.categories_ = [_filled(known) for known in part.categories_]
    if type(_last(changed)).__name__ == "VotingClassifier":
        _last(changed).flatten_transform = False
    return changed


def _filled(categories: Any) -> Any:
    """Categories of texts with an empty one for the missing ones; others as they are."""
    gaps = _gaps(categories)
    if not gaps.any() or not any(isinstance(category, str) for category in categories):
        return categories
    filled = np.array(categories, object)
    filled[gaps] = _MISSING
    return filled


def _steps(estimator: Any) -> list[Any]:
    return [step for _, step in getattr(estimator, "steps", [("", estimator)])]


def _names(transformer: Any, chosen: Any) -> list[str]:
    """The names of the columns that a step of a ColumnTransformer chooses, by name, place, slice or mask."""
    if isinstance(chosen, str):
        return [chosen]
    if not isinstance(chosen, slice) and all(isinstance(name, str) for name in chosen):
        return list(chosen)
    known = np.array(transformer.feature_names_in_, object)
    return [str(name) for name in known[chosen if isinstance(chosen, slice) else np.asarray(chosen)]]


def _column_transformers(estimator: Any) -> list[Any]:
    return [step for step in _steps(estimator) if type(step).__name__ == "ColumnTransformer"]


def _why_no_scores(estimator: Any) -> str:
    """Why the version has a classifier's label alone; empty where it has more."""
    last = _last(estimator)
    if hasattr(last, "predict_proba") or not hasattr(last, "classes_"):
        return ""
    if not hasattr(last, "decision_function"):
        return _LABEL_ALONE
    return _WRONG_SIGN if type(last).__name__ in ("SVC", "NuSVC") and len(last.classes_) == 2 else ""


def _dense(found: Any) -> Any:
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found, np.float32)


def _shaped(found: Any, rank: int) -> Any:
    """Labels as whole numbers or text, values as float32, in the rank that the graph has."""
    if found.dtype.kind in "iub":
        found = found.astype(np.int64)
    elif found.dtype.kind == "f":
        found = found.astype(np.float32)
    else:
        found = found.astype(object)
    return found.reshape(len(found), -1) if rank == 2 else found


def _scores(decision: Any, *, wide: bool, rank: int) -> Any:
    """Decisions as skl2onnx lays them out: those of two classes as one column, or as two with opposite signs."""
    found = np.asarray(decision, np.float32)
    if wide:
        return np.stack([-found, found], axis=1)
    return found[:, np.newaxis] if found.ndim == 1 and rank == 2 else found


def _numbered(labels: tuple[str, ...]) -> bool:
    return bool(labels) and labels == tuple(str(number) for number in range(len(labels)))


def _rename_outputs(graph: Any, wanted: tuple[str, ...]) -> list[str]:
    """Gives the outputs these names, as far as they go; returns all."""
    names = []
    for place, output in enumerate(graph.graph.output):
        old, new = output.name, wanted[place] if place < len(wanted) else output.name
        for node in graph.graph.node:
            for index, name in enumerate(node.output):
                if name == old:
                    node.output[index] = new
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        output.name = new
        names.append(new)
    return names


def _inputs(estimator: Any, columns: tuple[str, ...]) -> tuple[Tensor, ...]:
    """One matrix of floats; or an input a column, where columns are chosen by name."""
    known = _categories(estimator)
    if known is None or not columns:
        return (Tensor(INPUT, "float32", (None, int(estimator.n_features_in_))),)
    text = {name for name, keys in known.items() if any(isinstance(key, str) for key in keys)}
    used = _used(estimator, columns)
    return tuple(Tensor(name, "object" if name in text else "float32", (None, 1)) for name in columns if name in used)


def _ranges(estimator: Any, inputs: tuple[Tensor, ...]) -> dict[str, column_values.Columns]:
    """Values of each column between those of the rows that the first step keeps of its training, if it keeps some."""
    first = _steps(estimator)[0]
    kept = next((getattr(first, name) for name in _KEPT_ROWS if hasattr(first, name)), None)
    shape = getattr(kept, "shape", ())
    if len(inputs) != 1 or not isinstance(kept, np.ndarray) or shape[1:] != inputs[0].shape[1:]:
        return {}
    chance = np.random.default_rng(0)
    limits = [(np.nanmin(column), np.nanmax(column)) for column in kept.T.astype(np.float64)]
    return {inputs[0].name: tuple(chance.uniform(*ends, _DRAWN).astype(np.float32) for ends in limits)}


def _used(estimator: Any, columns: tuple[str, ...]) -> set[str]:
    """The columns that a ColumnTransformer does not drop; all where it knows columns by their places."""
    chosen = [some for _, step, some in _column_transformers(estimator)[0].transformers_ if step != "drop"]
    if any(isinstance(some, slice) or not all(isinstance(name, str) for name in some) for some in chosen):
        return set(columns)
    return {name for some in chosen for name in ([some] if isinstance(some, str) else some)}


def _categories(estimator: Any) -> dict[str, tuple[Any, ...]] | None:
    """Column -> the words or numbers that an encoder of a ColumnTransformer knows; None without a ColumnTransformer."""
    transformers = _column_transformers(estimator)
    if not transformers:
        return None
    found: dict[str, tuple[Any, ...]] = {}
    for _, step, chosen in transformers[0].transformers_:
        for inner in _steps(step):
            known_of_each = getattr(inner, "categories_", ())
            for name, known in zip(_names(transformers[0], chosen), known_of_each, strict=False):
                keys = tuple(key for key in np.asarray(known).tolist() if key is not None and key == key)  # no NaN
                if keys:
                    found[name] = keys
    return found


def _table(rows: Rows, inputs: tuple[Tensor, ...], columns: tuple[str, ...], gaps: Sequence[str]) -> Any:
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
        table[name] = table[name].astype(object).replace(_MISSING, np.nan)
    return table


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _onnx_type(tensor: Tensor) -> Any:
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    kind = StringTensorType if tensor.dtype == "object" else FloatTensorType
    return kind(list(tensor.shape))


def _register_boosted() -> None:
    """Tells skl2onnx how the estimators of XGBoost and LightGBM are converted, where they are installed."""
    from importlib import import_module
    from importlib.util import find_spec

    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes as classes,
    )
    from skl2onnx.common.shape_calculator import (
        calculate_linear_regressor_output_shapes as values,
    )

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    kinds = {
        "xgboost": ("XGB", ("Classifier", "RFClassifier", "Regressor", "RFRegressor", "Ranker")),
        "lightgbm": ("LGBM", ("Classifier", "Regressor", "Ranker")),
    }
    converters = {"xgboost": boosted_estimators.convert_xgboost, "lightgbm": boosted_estimators.convert_lightgbm}
    for library, (prefix, names) in kinds.items():
        if not find_spec(library):
            continue
        for name in names:
            kind = getattr(import_module(library), prefix + name)
            if name.endswith("Classifier"):
                update_registered_converter(kind, prefix + name, classes, converters[library], options=options)
            else:
                update_registered_converter(kind, prefix + name, values, converters[library])


@contextmanager
def _whole_numbers_for_truth() -> Iterator[None]:
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


@contextmanager
def _exact_trees() -> Iterator[None]:
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


def _whole(attribute: Any) -> Any:
    if isinstance(attribute, list):
        return [int(value) if isinstance(value, bool | np.bool_) else value for value in attribute]
    return attribute

"""Pickled estimators of scikit-learn, XGBoost and LightGBM (joblib, pickle, cloudpickle), converted by skl2onnx.

A pickle is a program: it is loaded only where the user trusts whoever made it.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import column_values, engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters import boosted_estimators, estimator_columns, estimator_trees
from bookserve.export.converters.source import ONNX, Converted, Rows, Wishes
from bookserve.export.errors import ExportError

FORMAT = "scikit-learn"
EXTRA = "convert"
LABEL, PROBABILITIES, SCORES, VALUE, FEATURES = "label", "probabilities", "scores", "y", "features"
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
_NO_PROBABILITIES = "{} gives no probabilities: its scores are distances from the border between the classes"
_WRONG_SIGN = (
    "{} gives no probabilities, and of its scores ONNX's form has the sign wrong: the version has the label alone"
)
_LABEL_ALONE = "{} gives neither probabilities nor scores: the version has the label alone"
_EMPTY_IS_MISSING = "an empty text in {} counts as missing"
_SIDEWAYS = ("OneVsOneClassifier", "QuadraticDiscriminantAnalysis")  # whose labels skl2onnx gives in another shape
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
    inputs = estimator_columns.inputs_of(estimator, columns)
    gaps = estimator_columns.texts_with_gaps(estimator, inputs)
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
        table = estimator_columns.table(rows, inputs, columns, gaps)
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
        tables=estimator_columns.categories(estimator) or {} if len(inputs) > 1 else {},
        columns=column_values.of(graph) or estimator_columns.ranges(estimator, inputs),
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

    boosted_estimators.register()
    types = [(tensor.name, _onnx_type(tensor)) for tensor in inputs]
    ways: list[Any] = [None]
    if is_classifier(estimator):  # those without probabilities do not have the first option; they have no map of them
        ways = [{id(estimator): {"zipmap": False}}, {id(_last(estimator)): {"raw_scores": True}}]
    while True:
        options = ways.pop(0)
        try:
            with estimator_trees.whole_numbers_for_truth(), estimator_trees.exact():
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


def _convertible(estimator: Any) -> Any:
    """The estimator with what skl2onnx asks for, and what changes no prediction.

    Voters do not join their votes in 'transform', which is not asked.
    """
    changed = copy.deepcopy(estimator)
    estimator_columns.take_empty_texts(changed)
    if type(_last(changed)).__name__ == "VotingClassifier":
        _last(changed).flatten_transform = False
    return changed


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


def _onnx_type(tensor: Tensor) -> Any:
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    kind = StringTensorType if tensor.dtype == "object" else FloatTensorType
    return kind(list(tensor.shape))

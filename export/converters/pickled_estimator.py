"""Pickled estimators of scikit-learn, XGBoost and LightGBM (joblib, pickle, cloudpickle), converted by skl2onnx.

A pickle is a program: it is loaded only where the user trusts whoever made it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
INPUT, LABEL, PROBABILITIES, SCORES, VALUE = "x", "label", "probabilities", "scores", "y"
OPSET = {"": 18, "ai.onnx.ml": 3}
# What estimators answer: probabilities of classes; distances from a border; groups; values.
_PROBABILITIES, _DECISIONS, _GROUPS, _VALUES = "probabilities", "decisions", "groups", "values"
_OUTPUTS = {
    _PROBABILITIES: (LABEL, PROBABILITIES),
    _DECISIONS: (LABEL, SCORES),
    _GROUPS: (LABEL, SCORES),
    _VALUES: (VALUE,),
}
_NO_PROBABILITIES = "{} gives no probabilities: its scores are distances from the border between the classes"
_NO_SCORES = (
    "{} gives no probabilities, and of its scores ONNX's form has the sign wrong: the version has the label alone"
)
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
    first = getattr(estimator, "steps", [("", estimator)])[0][1]
    if hasattr(estimator, "predict") and hasattr(first, "vocabulary_"):
        raise ExportError(
            f"it takes texts (its first step is a {type(first).__name__}), and tables of numbers are converted here:"
            " convert it by skl2onnx.to_onnx(model, initial_types=[('text', StringTensorType([None, 1]))]), and add the"
            " .onnx file"
        )
    if not hasattr(estimator, "predict") or not hasattr(estimator, "n_features_in_"):
        raise ExportError(f"it holds a {type(estimator).__name__}, which is no fitted estimator with 'predict'")
    columns = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    inputs = _inputs(estimator, columns)
    graph = _graph(estimator, inputs)
    kind = _kind(estimator)
    labels = tuple(str(label) for label in getattr(estimator, "classes_", ())) if kind != _VALUES else ()
    notes: tuple[str, ...] = (
        (_NO_PROBABILITIES.format(type(_last(estimator)).__name__),) if labels and kind == _DECISIONS else ()
    )
    if _drop_wrong_scores(estimator, graph):
        notes = (_NO_SCORES.format(type(_last(estimator)).__name__),)
    names = _rename_outputs(graph, _OUTPUTS[kind])
    ranks = {output.name: len(output.type.tensor_type.shape.dim) for output in graph.graph.output}
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())
    run = engines.onnx_graph(target)

    def reference(rows: Rows) -> dict[str, Any]:
        table = _table(rows, inputs, columns)
        answers: dict[str, Any] = {}
        for name in names:
            if name == PROBABILITIES:
                answers[name] = np.asarray(estimator.predict_proba(table), np.float32)
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
        columns=column_values.of(graph),
        notes=notes,
        made_with=("scikit-learn", "skl2onnx", "onnx", "onnxruntime"),
        tolerance=parity.DOUBLE_SOURCE,
    )


def _kind(estimator: Any) -> str:
    """What an estimator answers beside the label, if it has one."""
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector

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
            with _whole_numbers_for_truth():
                return skl2onnx.convert_sklearn(estimator, initial_types=types, options=options, target_opset=OPSET)
        except Exception as error:  # skl2onnx raises many kinds for what it cannot convert
            if not ways or "'zipmap'" not in str(error):
                text = str(error).strip().splitlines()[0]
                raise ExportError(f"{type(estimator).__name__} has no ONNX form: {text}") from error


def _last(estimator: Any) -> Any:
    """The last step of a pipeline; what is none itself."""
    return getattr(estimator, "steps", [("", estimator)])[-1][1]


def _drop_wrong_scores(estimator: Any, graph: Any) -> bool:
    """Takes the scores away where skl2onnx gives them the wrong sign: of support vectors between two classes."""
    last = _last(estimator)
    wrong = type(last).__name__ in ("SVC", "NuSVC") and len(last.classes_) == 2 and not hasattr(last, "predict_proba")
    if wrong:
        del graph.graph.output[1:]
    return wrong


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
    return labels == tuple(str(number) for number in range(len(labels)))


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
    text = _text_columns(estimator)
    if text is None or not columns:
        return (Tensor(INPUT, "float32", (None, int(estimator.n_features_in_))),)
    return tuple(Tensor(name, "object" if name in text else "float32", (None, 1)) for name in columns)


def _text_columns(estimator: Any) -> set[str] | None:
    """The columns that encoders of a ColumnTransformer know as text; None without a ColumnTransformer."""
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    transformers = [step for step in steps if type(step).__name__ == "ColumnTransformer"]
    if not transformers:
        return None
    found: set[str] = set()
    for _, step, names in transformers[0].transformers_:
        for inner in [part for _, part in getattr(step, "steps", [("", step)])]:
            for name, known in zip(names, getattr(inner, "categories_", ()), strict=False):
                if np.asarray(known).dtype.kind in "OSU":
                    found.add(str(name))
    return found


def _table(rows: Rows, inputs: tuple[Tensor, ...], columns: tuple[str, ...]) -> Any:
    """As an estimator takes it: in float64, in which most are fitted, and some take nothing else then."""
    if len(inputs) == 1 and not columns:
        return rows[inputs[0].name].astype(np.float64)
    import pandas as pd

    if len(inputs) == 1:
        return pd.DataFrame(rows[inputs[0].name].astype(np.float64), columns=list(columns))
    return pd.DataFrame({tensor.name: [_plain(value) for value in rows[tensor.name][:, 0]] for tensor in inputs})


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


def _whole(attribute: Any) -> Any:
    if isinstance(attribute, list):
        return [int(value) if isinstance(value, bool | np.bool_) else value for value in attribute]
    return attribute

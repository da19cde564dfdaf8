"""Pickled estimators of scikit-learn, XGBoost and LightGBM (joblib, pickle, cloudpickle), converted by skl2onnx.

A pickle is a program: it is loaded only where the user trusts whoever made it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters.source import ONNX, Converted, Rows, Wishes
from bookserve.export.errors import ExportError

FORMAT = "scikit-learn"
EXTRA = "convert"
INPUT, LABEL, SCORES, VALUE = "x", "label", "probabilities", "y"
OPSET = {"": 18, "ai.onnx.ml": 3}
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
    except Exception as error:  # unpickling runs anything
        raise ExportError(f"{path} does not load: {type(error).__name__}: {str(error).splitlines()[:1]}") from error
    return from_estimator(estimator, folder, wishes)


def from_estimator(estimator: Any, folder: Path, wishes: Wishes) -> Converted:
    """The version of an estimator that is loaded.

    Raises:
        ExportError: it is no fitted estimator, or a step of it has no ONNX form.
    """
    import skl2onnx
    from sklearn.base import is_classifier

    if not hasattr(estimator, "predict") or not hasattr(estimator, "n_features_in_"):
        raise ExportError(f"it holds a {type(estimator).__name__}, which is no fitted estimator with 'predict'")
    _register_boosted()
    columns = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    inputs = _inputs(estimator, columns)
    classifier = is_classifier(estimator)
    options = {"zipmap": False} if classifier else None
    try:
        graph = skl2onnx.convert_sklearn(
            estimator,
            initial_types=[(tensor.name, _onnx_type(tensor)) for tensor in inputs],
            options={id(estimator): options} if options else None,
            target_opset=OPSET,
        )
    except Exception as error:  # skl2onnx raises many kinds for what it cannot convert
        raise ExportError(
            f"{type(estimator).__name__} has no ONNX form: {str(error).strip().splitlines()[0]}"
        ) from error
    labels = tuple(str(label) for label in estimator.classes_) if classifier and hasattr(estimator, "classes_") else ()
    names = _rename_outputs(graph, classifier)
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())

    def reference(rows: Rows) -> dict[str, Any]:
        table = _table(rows, inputs, columns)
        answers: dict[str, Any] = {}
        for name in names:
            if name == LABEL:
                found = np.asarray(estimator.predict(table))
                answers[name] = found.astype(np.int64) if found.dtype.kind in "iub" else found.astype(object)
            elif name == SCORES:
                answers[name] = np.asarray(estimator.predict_proba(table), np.float32)
            else:
                found = np.asarray(estimator.predict(table))
                answers[name] = _shaped(found, len(table))
        return answers

    outputs = {
        LABEL: Tensor(LABEL, "int64", (None,), ranks=SCORES if SCORES in names and _numbered(labels) else ""),
        SCORES: Tensor(SCORES, "float32", (None, len(labels) or None), unit="probability"),
    }
    return Converted(
        contract=Contract(
            wishes.model,
            1,
            inputs,
            tuple(outputs.get(name, Tensor(name, "float32", (None, 1))) for name in names),
            labels=labels,
            task="tabular" if classifier else "regression",
            columns=columns if len(inputs) == 1 else (),
        ),
        reference=reference,
        graphs={ONNX: engines.onnx_graph(target)},
        made_with=("scikit-learn", "skl2onnx", "onnx", "onnxruntime"),
        tolerance=parity.DOUBLE_SOURCE,
    )


def _shaped(found: Any, rows: int) -> Any:
    if found.dtype.kind in "iu":
        return found.astype(np.int64)
    return found.astype(np.float32).reshape(rows, -1)


def _numbered(labels: tuple[str, ...]) -> bool:
    return labels == tuple(str(number) for number in range(len(labels)))


def _rename_outputs(graph: Any, classifier: bool) -> list[str]:
    """Gives the outputs the names of this module; returns them."""
    wanted = [LABEL, SCORES] if classifier else [VALUE]
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
    if len(inputs) == 1 and not columns:
        return rows[inputs[0].name]
    import pandas as pd

    if len(inputs) == 1:
        return pd.DataFrame(rows[inputs[0].name], columns=list(columns))
    return pd.DataFrame({tensor.name: [_plain(value) for value in rows[tensor.name][:, 0]] for tensor in inputs})


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _onnx_type(tensor: Tensor) -> Any:
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    kind = StringTensorType if tensor.dtype == "object" else FloatTensorType
    return kind(list(tensor.shape))


def _register_boosted() -> None:
    """Tells skl2onnx how the estimators of XGBoost and LightGBM are converted, where they are installed."""
    from importlib.util import find_spec

    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes as classes,
    )
    from skl2onnx.common.shape_calculator import (
        calculate_linear_regressor_output_shapes as values,
    )

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    if find_spec("xgboost"):
        import xgboost
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

        update_registered_converter(xgboost.XGBClassifier, "XGBClassifier", classes, convert_xgboost, options=options)
        update_registered_converter(xgboost.XGBRegressor, "XGBRegressor", values, convert_xgboost)
    if find_spec("lightgbm"):
        import lightgbm
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

        update_registered_converter(
            lightgbm.LGBMClassifier, "LGBMClassifier", classes, convert_lightgbm, options=options
        )
        update_registered_converter(lightgbm.LGBMRegressor, "LGBMRegressor", values, convert_lightgbm)

"""Estimators of XGBoost and LightGBM in scikit-learn's manner, as skl2onnx asks for them: alone or in a pipeline."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bookserve.export.converters import boosted_trees, lightgbm_model, xgboost_model
from bookserve.export.converters.boosted_trees import Answer, Margins, Objective
from bookserve.export.errors import ExportError

if TYPE_CHECKING:
    import onnx


def register() -> None:
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
    converters = {"xgboost": convert_xgboost, "lightgbm": convert_lightgbm}
    for library, (prefix, names) in kinds.items():
        if not find_spec(library):
            continue
        for name in names:
            kind = getattr(import_module(library), prefix + name)
            if name.endswith("Classifier"):
                update_registered_converter(kind, prefix + name, classes, converters[library], options=options)
            else:
                update_registered_converter(kind, prefix + name, values, converters[library])


def convert_xgboost(scope: Any, operator: Any, container: Any) -> None:
    """The converter of skl2onnx for XGBClassifier, XGBRegressor and their kin.

    Raises:
        ExportError: the estimator has no ONNX form.
    """
    estimator = operator.raw_operator
    if estimator.missing is not None and not np.isnan(estimator.missing):
        raise ExportError(f"missing numbers are {estimator.missing} to it, and NaN in ONNX: train it with missing=nan")
    booster, _ = xgboost_model.answering(estimator.get_booster(), of_estimator=True)
    margins, objective, _ = xgboost_model.margins_of(booster)
    _add(scope, operator, container, margins, objective)


def convert_lightgbm(scope: Any, operator: Any, container: Any) -> None:
    """The converter of skl2onnx for LGBMClassifier, LGBMRegressor and their kin.

    Raises:
        ExportError: the estimator has no ONNX form.
    """
    margins, objective = lightgbm_model.margins_of(operator.raw_operator.booster_.dump_model())
    _add(scope, operator, container, margins, objective)


def _add(scope: Any, operator: Any, container: Any, margins: Margins, objective: Objective) -> None:
    """Put the operations into the graph of skl2onnx, under names that it gives.

    Raises:
        ExportError: a classifier gives none or several classes.
    """
    from onnx import TensorProto, helper, numpy_helper
    from skl2onnx.common.data_types import FloatTensorType

    classes = getattr(operator.raw_operator, "classes_", None)
    if classes is not None and objective.answer is Answer.VALUES:
        told = "its objective gives no classes" if margins.outputs == 1 else "it gives several classes to a row"
        raise ExportError(f"{told}: train it as a regressor, or one classifier for each class")
    if classes is None:
        objective = Objective(objective.link)
    nodes, constants = boosted_trees.operations(margins, objective)
    source, outputs = operator.inputs[0].full_name, [output.full_name for output in operator.outputs]
    names = {boosted_trees.INPUT: source, **dict(zip(objective.answer.value, outputs, strict=True))}
    if not isinstance(operator.inputs[0].type, FloatTensorType):
        names[boosted_trees.INPUT] = scope.get_unique_variable_name("columns")
        _add_node(container, helper.make_node("Cast", [source], [names[boosted_trees.INPUT]], to=TensorProto.FLOAT))
    if classes is not None:
        names[boosted_trees.LABEL] = scope.get_unique_variable_name("class_numbers")
    for name in sorted({name for node in nodes for name in (*node.input, *node.output)} - set(names)):
        names[name] = scope.get_unique_variable_name(name)
    for constant in constants:
        constant.name = names[constant.name]
        container.initializers.append(constant)
    for node in nodes:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        _add_node(container, node)
    if classes is not None:
        labels = np.asarray(classes)
        labels = labels.astype(np.int64 if labels.dtype.kind in "biuf" else object)
        known = scope.get_unique_variable_name("classes")
        container.initializers.append(numpy_helper.from_array(labels, known))
        _add_node(container, helper.make_node("Gather", [known, names[boosted_trees.LABEL]], outputs[:1]))


def _add_node(container: Any, node: "onnx.NodeProto") -> None:
    from onnx import helper

    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    container.add_node(node.op_type, list(node.input), list(node.output), op_domain=node.domain, **attributes)

"""XGBoost's own model files: `.json` and `.ubj`."""

from pathlib import Path

from bookserve.export.converters import boosted_trees
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "XGBoost"
EXTRA = "convert"
_HEAD = 4096  # bytes that are looked at
_CLASSES = ("binary:logistic", "multi:softprob")
_VALUES = ("reg:squarederror", "reg:linear", "reg:absoluteerror", "reg:pseudohubererror")


def recognises(path: Path) -> bool:
    """A .json or .ubj file that begins with a learner."""
    if not path.is_file() or path.suffix.lower() not in (".json", ".ubj", ".xgb", ".model"):
        return False
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    return head.lstrip()[:1] == b"{" and b"learner" in head


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import json

    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = xgboost.Booster()
    try:
        booster.load_model(str(path))
    except xgboost.core.XGBoostError as error:
        raise ExportError(f"XGBoost does not load {path}: {str(error).splitlines()[-1]}") from error
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["objective"]["name"]
    if objective not in (*_CLASSES, *_VALUES):
        raise ExportError(f"the objective {objective} is not converted; {', '.join((*_CLASSES, *_VALUES))} are")
    width, columns = booster.num_features(), tuple(booster.feature_names or ())
    booster.feature_names = None  # the converter wants f0, f1, …
    # Of columns of whole numbers and of indicators the dump that the converter reads has no or rounded splits.
    kinds = booster.feature_types or []
    booster.feature_types = ["c" if kind == "c" else "float" for kind in kinds] or None
    types = [(boosted_trees.INPUT, FloatTensorType([None, width]))]
    try:
        graph = convert_xgboost(booster, initial_types=types, target_opset=15)
    except Exception as error:  # the converter raises many kinds for what it cannot convert
        raise ExportError(f"{path} has no ONNX form: {str(error).strip().splitlines()[0]}") from error
    classes = max(2, int(learner["learner_model_param"].get("num_class", "0"))) if objective in _CLASSES else 0
    return boosted_trees.converted(
        graph,
        folder,
        wishes.model,
        columns,
        width,
        classes,
        lambda rows: booster.predict(xgboost.DMatrix(rows)),
        ("xgboost", "xgboost-cpu", "onnxmltools", "onnx", "onnxruntime"),
    )

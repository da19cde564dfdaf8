"""MLflow model folders: the file `MLmodel` names the library, whose own converter does the rest.

MLflow itself is not needed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export import example_inputs
from bookserve.export.converters import (
    keras_file,
    lightgbm_model,
    onnx_file,
    pickled_estimator,
    saved_model,
    tflite_file,
    torch_program,
    xgboost_model,
)
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "MLflow"
EXTRA = "convert"
_FILE = "MLmodel"
# flavor -> where its entry of MLmodel names the file, the name when it does not, and the converter
_FLAVORS: dict[str, tuple[tuple[str, ...], str, Any]] = {
    "onnx": (("data",), "model.onnx", onnx_file),
    "tensorflow": (("saved_model_dir", "data"), "tf2model", saved_model),
    "keras": (("data",), "data/model.keras", keras_file),
    "xgboost": (("data",), "model.xgb", xgboost_model),
    "lightgbm": (("data",), "model.lgb", lightgbm_model),
    "sklearn": (("pickled_model",), "model.pkl", pickled_estimator),
    "tflite": (("data",), "model.tflite", tflite_file),
    "pytorch": (("model_data",), "data", torch_program),
}


def recognises(path: Path) -> bool:
    """A folder with a file MLmodel."""
    return (path / _FILE).is_file()


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import yaml

    try:
        description = yaml.safe_load((path / _FILE).read_text(encoding="utf-8"))
        flavors = dict(description["flavors"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ExportError(f"{path / _FILE} cannot be read: {str(error).splitlines()[0]}") from error
    for name, (keys, usual, converter) in _FLAVORS.items():
        if name in flavors:
            entry = flavors[name] or {}
            file = next((str(entry[key]) for key in keys if entry.get(key)), usual)
            inner = _inside(path, file)
            if not converter.recognises(inner):
                converter = next((other for _, _, other in _FLAVORS.values() if other.recognises(inner)), converter)
            converted: Converted = converter.convert(inner, folder, wishes)
            return replace(converted, example=converted.example or _example(path, description, converted))
    known = ", ".join(_FLAVORS)
    raise ExportError(f"{path} has the flavors {', '.join(flavors)}; of these are converted: {known}")


def _inside(path: Path, name: str) -> Path:
    file = (path / name).resolve()
    if not file.is_relative_to(path.resolve()):
        raise ExportError(f"{path / _FILE} names {name}, which is outside of the folder")
    for usual in ("model.keras", "model.pt2", "model.pth"):
        if file.is_dir() and (file / usual).is_file():
            return file / usual
    if not file.exists():
        raise ExportError(f"{path / _FILE} names {name}, which is not there")
    return file


def _example(path: Path, description: Any, converted: Converted) -> Any:
    """The input example that MLflow saved for serving, where it fits the contract."""
    file = path / "serving_input_example.json"
    if not file.is_file():
        return None
    try:
        return example_inputs.read(file, converted.contract)
    except ExportError:
        return None

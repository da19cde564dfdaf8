"""The choice of the engine for a version, by the files in its folder.

An engine is imported when it is chosen, and its library with it.
"""

from pathlib import Path

from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.wire.version_folder import SAVED_MODELS

_ONNX = ("assets.extra/model.onnx", "model.onnx")
_TFLITE = ("model.tflite", "assets.extra/model.tflite")  # the first as TensorFlow Serving has it
# Formats that no engine runs, and that `bookserve models add` converts.
_TO_BE_CONVERTED = (".keras", ".h5", ".hdf5", ".pt", ".pth", ".pt2", ".joblib", ".pkl", ".pickle", ".cbm", ".ubj")
_MOST_NAMES = 8  # of files, in a message
_WEB_PAGE = "is a web page, or an answer in XML: what was downloaded is not the model"
# What is there instead of a model after a copy that went wrong: how it begins, and what to say.
_IMPOSTORS = (
    (
        b"version https://git-lfs",
        "is a pointer of Git LFS, not the file: run `git lfs pull` where it was cloned",
    ),
    (b"<!", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"<?xml", _WEB_PAGE),
    (b"PK\x03\x04", "is a ZIP archive: unpack it first"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
)
_LONGEST_SIGN = 64


def runs_in_the_server(version_path: Path, options: EngineOptions) -> bool:
    """Whether the engine of that version runs in the process that loads it, and could end it."""
    return _lite(version_path, options) is not None or _first(version_path, _ONNX) is not None


def load(version_path: Path, options: EngineOptions) -> Engine:
    """Loads the version in that folder with the engine that fits its files.

    Raises ServingError (FAILED_PRECONDITION) when no engine can serve the folder.
    """
    tflite = _lite(version_path, options)
    onnx = _first(version_path, _ONNX)
    saved_model = _first(version_path, SAVED_MODELS)
    if graph := tflite or onnx or saved_model:
        _refuse_impostor(graph)
    if tflite is not None:
        from bookserve.serving.server.engines.tflite_engine import TfliteEngine

        return TfliteEngine(tflite, options)
    if onnx is not None:
        from bookserve.serving.server.engines.onnx_engine import OnnxEngine

        return OnnxEngine(onnx, saved_model or version_path / SAVED_MODELS[0], options)
    if saved_model is not None:
        from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine(version_path, options)
    raise failed_precondition(f"{version_path} holds no model: {_found(version_path)}")


def _lite(version_path: Path, options: EngineOptions) -> Path | None:
    """The LiteRT file that is to be served: it is preferred, or there is nothing else."""
    others = _first(version_path, (*_ONNX, *SAVED_MODELS))
    return _first(version_path, _TFLITE) if options.prefer_tflite or others is None else None


def _refuse_impostor(graph: Path) -> None:
    """Raises ServingError (FAILED_PRECONDITION) for a file that is plainly no model: its engine would not say why."""
    try:
        with graph.open("rb") as file:
            head = file.read(_LONGEST_SIGN)
    except OSError as error:
        raise failed_precondition(f"{graph} cannot be read: {error.strerror}") from error
    what = next((what for sign, what in _IMPOSTORS if head.startswith(sign)), "")
    if not head:
        what = "is empty: copy it again"
    if what:
        raise failed_precondition(f"{graph} {what}")


def _first(version_path: Path, graphs: tuple[str, ...]) -> Path | None:
    return next((version_path / graph for graph in graphs if (version_path / graph).is_file()), None)


def _found(version_path: Path) -> str:
    """What is there instead, and what to do about it."""
    names = sorted(path.name for path in version_path.iterdir())
    for graph in (*_ONNX, *SAVED_MODELS, *_TFLITE):
        if (version_path / graph).is_dir():
            return f"its {graph} is a folder, and has to be a file"
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix == ".onnx":
            return f"it has {name}: rename it to model.onnx"
        if suffix == ".tflite":
            return f"it has {name}: rename it to model.tflite"
        if suffix in _TO_BE_CONVERTED:
            command = f"bookserve models add {version_path.parent.name} {version_path / name}"
            return f"{name} has to be converted: `{command}` makes a version of it"
        if (version_path / name / "saved_model.pb").is_file() or (version_path / name / "model.onnx").is_file():
            return f"the model is one folder too deep: move what is in {version_path / name} to {version_path}"
    there = f"; it has {', '.join(names[:_MOST_NAMES])}" if names else "; it is empty"
    return f"expected assets.extra/model.onnx, model.onnx, saved_model.pb or model.tflite in it{there}"

"""The choice of the engine for a version, by the files in its folder.

An engine is imported when it is chosen, and its library with it.
"""

from pathlib import Path

from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.types.errors import failed_precondition


def runs_in_the_server(version_path: Path, options: EngineOptions) -> bool:
    """Whether the engine of that version runs in the process that loads it, and could end it."""
    graphs = ["assets.extra/model.onnx", "model.onnx"] + ["model.tflite"] * options.prefer_tflite
    return any((version_path / graph).is_file() for graph in graphs)


def load(version_path: Path, options: EngineOptions) -> Engine:
    """Loads the version in that folder with the engine that fits its files.

    Raises ServingError (FAILED_PRECONDITION) when no engine can serve the folder.
    """
    if options.prefer_tflite and (version_path / "model.tflite").is_file():
        from bookserve.serving.server.engines.tflite_engine import TfliteEngine

        return TfliteEngine(version_path / "model.tflite", options)
    for candidate in (version_path / "assets.extra" / "model.onnx", version_path / "model.onnx"):
        if candidate.is_file():
            from bookserve.serving.server.engines.onnx_engine import OnnxEngine

            return OnnxEngine(candidate, version_path / "saved_model.pb", options)
    if (version_path / "saved_model.pb").is_file():
        from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

        return TensorFlowEngine(version_path, options)
    raise failed_precondition(
        f"{version_path} holds no model: expected assets.extra/model.onnx, model.onnx or saved_model.pb in it"
    )

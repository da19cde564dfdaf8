"""The contract of a version that has no manifest, or one without it: read from the graph that would be served.

`read` runs in a child process (`confined.py`), because the libraries that read foreign graphs may crash on them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export import confined, contracts, saved_model_contract
from bookserve.export.errors import ExportError
from bookserve.export.manifest import Manifest
from bookserve.serving.wire import missing_package

_LIMITS = confined.Limits(seconds=60.0, memory_bytes=2 << 30)
_TFLITE = ("model.tflite", "assets.extra/model.tflite")
_ONNX = ("assets.extra/model.onnx", "model.onnx")


def of_version(folder: Path, model: str, found: Manifest | None) -> contracts.Contract:
    """The contract of a version of `model`: that of its manifest, or what its graph says, read in a child process.

    Raises:
        ExportError: as `read`.
    """
    if found is not None and found.contract.whole:
        return replace(found.contract, model=model)
    job = {"folder": str(folder), "model": model}
    told = contracts.from_json(confined.call("bookserve.export.graph_contract:read", job, _LIMITS))
    return told if found is None else replace(told, version=found.contract.version)


def read(job: dict[str, str]) -> dict[str, Any]:
    """The contract, as JSON, of the version folder `job["folder"]` of the model `job["model"]`.

    Raises:
        ExportError: the folder holds no graph, the graph cannot be read, or the library that reads it is missing.
    """
    folder, model = Path(job["folder"]), job["model"]
    for name in _ONNX:
        if (folder / name).is_file():
            return contracts.to_json(_of_onnx(folder / name, model))
    if (folder / saved_model_contract.LOCATION).is_file():
        return contracts.to_json(saved_model_contract.read(folder, model))
    for name in _TFLITE:
        if (folder / name).is_file():
            return contracts.to_json(_of_tflite(folder / name, model))
    raise ExportError(f"{folder} holds no model.onnx, saved_model.pb or model.tflite")


def _of_onnx(path: Path, model: str) -> contracts.Contract:
    try:
        import onnx

        from bookserve.export import onnx_contract
    except ModuleNotFoundError as error:
        raise ExportError(f"an ONNX graph is read with {missing_package.told(error, 'convert')}") from error
    try:
        return onnx_contract.read(onnx.load(path, load_external_data=False), model)
    except Exception as error:  # protobuf's errors and onnx's own share no base class
        raise ExportError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}") from error


def _of_tflite(path: Path, model: str) -> contracts.Contract:
    from bookserve.export.converters import tflite_file

    try:
        return tflite_file.read(path, model)
    except ModuleNotFoundError as error:
        raise ExportError(f"a LiteRT file is read with {missing_package.told(error, 'tflite')}") from error
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error

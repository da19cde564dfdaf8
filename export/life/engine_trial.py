"""One graph of a version in the engine that serves it: it loads, and answers the manifest's example as it did.

`run` is called in a child process (`confined.py`), because engines may crash on a damaged file.
"""

from pathlib import Path
from typing import Any

from bookserve.export import contracts, engines, golden, graph_contract
from bookserve.export.errors import ExportError

# File inside the version folder -> what runs it, and the extra of bookserve that brings that.
ENGINES = {
    "assets.extra/model.onnx": ("ONNX Runtime", "serving"),
    "model.onnx": ("ONNX Runtime", "serving"),
    "saved_model.pb": ("TensorFlow", "tensorflow"),
    "assets.extra/model.tflite": ("LiteRT", "tflite"),
    "model.tflite": ("LiteRT", "tflite"),
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load the graph `job["file"]` of the version folder `job["folder"]` and ask it the example of the contract.

    `job` has "contract" (as the manifest has it, or None) and "parity" besides. Returns "differences", output -> the
    largest, or None where there is no example; or "missing", the engine's package, where that is not installed.

    Raises:
        ExportError: the graph does not load, or does not answer as the example says.
    """
    folder, name = Path(job["folder"]), job["file"]
    try:
        contract = contracts.from_json(job["contract"]) if job["contract"] else None
        if contract is None or not contract.whole:
            read = graph_contract.read({"folder": str(folder), "model": folder.parent.name})
            contract = contracts.from_json(read)
        answer = load(folder, name, contract.signature)
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    if contract.example is None:
        return {"differences": None}
    try:
        return {"differences": golden.differences(contract, answer, job["parity"])}
    except ExportError:
        raise
    except Exception as error:  # whatever the engine raises on inputs that it does not take
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"it refuses the manifest's example: {lines[0][:300]}") from error


def load(folder: Path, name: str, signature: str) -> engines.Run:
    """The graph `name` of a version folder, by its engine; ModuleNotFoundError where that is not installed."""
    match ENGINES[name][0]:
        case "ONNX Runtime":
            return engines.onnx_graph(folder / name)
        case "TensorFlow":
            return engines.saved_model(folder, signature)
        case _:
            return engines.tflite(folder / name, signature)

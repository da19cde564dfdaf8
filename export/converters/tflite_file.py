"""LiteRT (TensorFlow Lite) files: copied as they are, run by LiteRT."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import engines
from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.converters.source import TFLITE, Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "LiteRT"
EXTRA = "convert,tflite"
_LACKING = re.compile(r"\((\w+)\) failed to prepare")
_MAGIC = b"TFL3"  # at byte 4


def recognises(path: Path) -> bool:
    """A file whose name ends with .tflite, or with LiteRT's mark in its head."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix.lower() == ".tflite" or stream.read(8)[4:] == _MAGIC


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    try:
        contract = read(path, wishes.model)
    except (RuntimeError, ValueError) as error:
        lacking = _LACKING.search(str(error))
        why = f"LiteRT lacks its operation {lacking[1]}: add the SavedModel that it was made of" if lacking else error
        raise ExportError(f"{path} does not load: {why}") from error
    target = folder / TFLITE
    shutil.copyfile(path, target)
    return Converted(
        contract=contract,
        reference=engines.tflite(path, contract.signature),
        graphs={TFLITE: engines.tflite(target, contract.signature)},
        made_with=("ai-edge-litert",),
        notes=("whoever serves a LiteRT file needs 'bookserve[tflite]'",),
    )


def read(path: Path, model: str) -> Contract:
    """The contract that the file says of itself: its signature `serving_default`, else its only one, else its tensors.

    Raises:
        ValueError, RuntimeError: LiteRT does not load it.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    names = list(interpreter.get_signature_list())
    if not names:
        inputs = {entry["name"]: entry for entry in interpreter.get_input_details()}
        outputs = {entry["name"]: entry for entry in interpreter.get_output_details()}
        return Contract(model, 1, _tensors(inputs), _tensors(outputs))
    signature = SIGNATURE if SIGNATURE in names else names[0]
    runner = interpreter.get_signature_runner(signature)
    return Contract(
        model, 1, _tensors(runner.get_input_details()), _tensors(runner.get_output_details()), signature=signature
    )


def _tensors(details: dict[str, Any]) -> tuple[Tensor, ...]:
    tensors = []
    for name, entry in details.items():
        sizes = entry["shape_signature"] if len(entry["shape_signature"]) else entry["shape"]
        dtype = np.dtype(entry["dtype"])
        shape = tuple(int(size) if size >= 0 else None for size in sizes)
        tensors.append(Tensor(name, "object" if dtype.kind in "SUO" else dtype.name, shape))
    return tuple(tensors)

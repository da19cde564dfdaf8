"""Folders as Hugging Face's libraries write them: `config.json` beside `model.onnx` (or below `onnx/`)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export.contracts import Contract, Preprocessing
from bookserve.export.converters import onnx_file
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "Hugging Face"
EXTRA = "convert"
_GRAPHS = ("model.onnx", "onnx/model.onnx")
_TOKENS = ("input_ids", "decoder_input_ids")


def recognises(path: Path) -> bool:
    """A folder with config.json and model.onnx."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _GRAPHS)


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`. Labels and the size of the vocabulary come from config.json."""
    graph = next(path / name for name in _GRAPHS if (path / name).is_file())
    config = _json(path / "config.json")
    converted = onnx_file.convert(graph, folder, wishes)
    contract = replace(converted.contract, labels=_labels(config, converted.contract))
    tables = dict(converted.tables)
    if isinstance(config.get("vocab_size"), int):
        tables |= dict.fromkeys(_TOKENS, config["vocab_size"])
    tables |= {"attention_mask": 2, "token_type_ids": max(1, int(config.get("type_vocab_size", 2)))}
    picture = path / "preprocessor_config.json"
    if picture.is_file() and len(contract.inputs) == 1:
        preprocessing = pixels(picture, contract)
        if preprocessing is not None:
            contract = replace(contract, task="image-classification", preprocessing=preprocessing)
    return replace(converted, contract=contract, tables=tables)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} is no JSON object")
    return content


def _labels(config: dict[str, Any], contract: Contract) -> tuple[str, ...]:
    """`id2label` in the order of its numbers, where an output has as many classes."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return ()
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    fits = any(tensor.shape and tensor.shape[-1] in (None, len(labels)) for tensor in contract.outputs)
    return labels if fits else ()


def pixels(path: Path, contract: Contract) -> Preprocessing | None:
    """The preprocessing of pictures that a preprocessor_config.json describes, for one input of four dimensions.

    None where neither the file nor the input says a size.

    Raises:
        ExportError: the file cannot be read, is not a JSON object, or asks for blue before red.
    """
    config = _json(path)
    if config.get("do_flip_channel_order"):
        raise ExportError(
            f"{path.name} has do_flip_channel_order: pictures are given as red, green, blue here. Reverse the "
            "channels at the beginning of the graph, and leave it out"
        )
    shape = contract.inputs[0].shape
    last = len(shape) == 4 and shape[-1] in (1, 3)
    size = config.get("size", list(shape[1:3] if last else shape[2:4]))
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, dict):
        height, width = (size.get(key, size.get("shortest_edge")) for key in ("height", "width"))
    else:
        height = width = size
    crop = config.get("crop_size")
    if config.get("do_center_crop") and crop is not None:
        height, width = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
    if not (isinstance(height, int) and isinstance(width, int)) or len(shape) != 4:
        return None
    normal = config.get("do_normalize", "image_mean" in config)
    return Preprocessing(
        contract.inputs[0].name,
        (height, width),
        "rgb",
        "crop" if config.get("do_center_crop") else "stretch",
        layout="" if last else "channels-first",
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normal else (),
        deviation=tuple(config["image_std"]) if normal else (),
    )

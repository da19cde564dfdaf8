"""What a version's manifest says that the server acts on, apart from its files (integrity.py)."""

import json
from contextlib import suppress
from pathlib import Path

from bookserve.serving.wire.pictures import MAX_PIXELS, PictureRule
from bookserve.serving.wire.version_folder import MANIFEST


def picture_rule(version_path: Path) -> PictureRule | None:
    """How a picture becomes the version's input, where its manifest says that it takes pictures; else None."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        contract = json.loads((version_path / MANIFEST).read_bytes())["contract"]
        told = contract["preprocessing"]
        if contract["task"] != "image-classification" or len(contract["inputs"]) != 1:
            return None
        height, width = (int(size) for size in told["size"])
        rule = PictureRule(
            str(told["input"]),
            (height, width),
            str(told["colour"]),
            str(told["resize"]),
            str(told.get("layout", "")),
            float(told.get("scale", 1.0)),
            tuple(float(value) for value in told.get("mean", ())),
            tuple(float(value) for value in told.get("deviation", ())),
        )
        known = rule.colour in ("grey", "rgb") and rule.resize in ("crop", "stretch", "centred")
        return rule if known and 0 < height * width <= MAX_PIXELS else None
    return None


def rows_independent(version_path: Path) -> bool | None:
    """Whether whoever packaged the version says that its rows are independent; None where the manifest is silent."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((version_path / MANIFEST).read_bytes())
        if isinstance(content, dict) and isinstance(declared := content.get("rows_independent"), bool):
            return declared
    return None

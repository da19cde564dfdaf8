import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.export.contracts import from_json
from bookserve.export.converters import trial
from bookserve.export.errors import ExportError
from bookserve.export.life import engine_trial
from bookserve.export.warmup import LOCATION
from bookserve.serving.server.models.warmup import read_records
from bookserve.serving.wire.prediction_log_pb2 import PredictionLog
from bookserve.serving.wire.tensors import to_array


def test_every_format_becomes_a_version_that_answers_as_its_source(made, tmp_path: Path) -> None:
    name, path = made
    job = {"path": str(path), "folder": str(tmp_path), "model": "score", "task": None, "labels": None}
    result = trial.run({**job, "example": None, "trust": name.endswith(("scikit-learn", "torch.export", "PyTorch"))})
    contract = from_json(result["contract"])
    assert result["format"] == name.removesuffix(" h5").partition(" of ")[0]
    assert [tensor.shape for tensor in contract.inputs] == [(None, 4)]
    assert max(result["parity"].values()) < 1e-5
    assert contract.example is not None
    assert np.shape(next(iter(contract.example.inputs.values()))) == (1, 4)
    for graph in result["graphs"]:
        job = {"folder": str(tmp_path), "file": graph, "contract": result["contract"], "parity": result["parity"]}
        told = engine_trial.run(job)["differences"]  # as 'bookserve models verify' does
        assert max(told.values()) < 1e-5
    if name in ("scikit-learn", "Hugging Face"):
        assert set(contract.labels) == {"low", "middle", "high"}


def test_without_its_library_a_format_names_the_line_that_installs_it(tmp_path: Path) -> None:
    libraries = {"model.onnx": "onnx", "model.json": "xgboost", "model.txt": "lightgbm", "model.joblib": "joblib"}
    contents = {"model.json": b'{"learner": {}}', "model.txt": b"tree\nversion=v4\n"}
    for name in libraries:
        (tmp_path / name).write_bytes(contents.get(name, b""))
    program = (
        "import sys\n"
        "for library in sys.argv[3:]: sys.modules[library] = None\n"
        "from bookserve.export.converters import trial\n"
        "from bookserve.export.errors import ExportError\n"
        "wishes = {'model': 'score', 'trust': True, 'example': None, 'task': None, 'labels': None}\n"
        "for name in sys.argv[2].split():\n"
        "    try: trial.run({'path': f'{sys.argv[1]}/{name}', 'folder': sys.argv[1], **wishes})\n"
        "    except ExportError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), " ".join(libraries), *libraries.values()]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert [line.partition(" need ")[2] for line in told] == [
        f"the package '{package}': pip install 'bookserve[convert]'"
        for package in ("onnx", "xgboost-cpu", "lightgbm", "joblib")
    ]


def logarithm(folder: Path, constant: float) -> Path:
    """An ONNX file of y = log(x + constant), which has no number below -constant."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["shifted"]), helper.make_node("Log", ["shifted"], ["y"])],
        "logarithm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.float32(constant), "c")],
    )
    path = folder / "logarithm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_random_inputs_without_an_answer_are_drawn_again_and_nan_is_told(tmp_path: Path) -> None:
    job = {"folder": str(tmp_path), "model": "log", "task": None, "labels": None, "trust": False}
    result = trial.run({**job, "path": str(logarithm(tmp_path, 0.5)), "example": None})
    assert result["rows"] == "random"
    never = {**job, "path": str(logarithm(tmp_path, -20.0))}
    with pytest.raises(ExportError, match="'y' of the source is NaN for 24 of 24 values"):
        trial.run({**never, "example": None})
    gap = tmp_path / "gap.npz"
    np.savez(gap, x=np.array([[25.0, np.nan, 30.0]], np.float32))
    assert trial.run({**never, "example": str(gap)})["parity"] == {"y": 0.0}
    np.savez(gap, x=np.array([[25.0, 3.0, 30.0]], np.float32))
    with pytest.raises(ExportError, match="NaN for 1 of 3 values"):
        trial.run({**never, "example": str(gap)})


def test_warm_up_requests_are_as_large_as_the_graph_wants_them(tmp_path: Path) -> None:
    """Four rows and no others; and a state beside free rows, with the rows on its second axis."""
    for name, x, state, sizes in (
        ("fixed", [4, 3], [2, 4, 3], [(4, 3, 2, 4, 3)]),
        ("free", ["batch", 3], [2, "batch", 3], [(1, 3, 2, 1, 3), (8, 3, 2, 8, 3)]),
    ):
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "state"], ["y"])],
            name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x), ("state", state))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, state)],
        )
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        folder = tmp_path / name
        folder.mkdir()
        trial.run(
            {"path": str(path), "folder": str(folder), "model": name, "task": None, "labels": None, "trust": False}
            | {"example": None}
        )
        records = [PredictionLog.FromString(record) for record in read_records(folder / LOCATION)]
        inputs = [record.predict_log.request.inputs for record in records]
        assert [(*to_array(one["x"]).shape, *to_array(one["state"]).shape) for one in inputs] == sizes

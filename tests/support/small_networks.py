"""Networks that know something, made in milliseconds: random features under a last layer that least squares finds."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
SIDE = 16
FEATURES = 48  # inputs of the dense network


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten noisy patterns: uint8 [n, 16, 16] and their numbers int64 [n]."""
    patterns = np.random.default_rng(7).integers(0, 180, (CLASSES, SIDE, SIDE))
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, count)
    noise = chance.normal(0, 45, (count, SIDE, SIDE))
    return np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64)


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, 48], and a smooth function of them with a little noise, float32 [n, 1]."""
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((count, FEATURES)).astype(np.float32)
    direction = np.random.default_rng(8).standard_normal((FEATURES, 2)) / np.sqrt(FEATURES)
    y = np.tanh(x @ direction).sum(axis=1, keepdims=True) + chance.normal(0, 0.05, (count, 1))
    return x, y.astype(np.float32)


def write_convolutional(path: Path) -> Path:
    """`images` uint8 [n, 16, 16] to `probabilities` float32 [n, 10]: all pictures right."""
    chance = np.random.default_rng(0)
    weights = {
        "scale": np.float32(1 / 255),
        "planes": np.array([0, 1, SIDE, SIDE], np.int64),
        "flat": np.array([0, 32 * 4 * 4], np.int64),
        "filters_1": _normal(chance, 16, 1, 5, 5),
        "filters_2": _normal(chance, 32, 16, 5, 5),
        "shift_1": _normal(chance, 16),
        "shift_2": _normal(chance, 32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        node("Mul", ["levels", "scale"], ["scaled"]),
        node("Reshape", ["scaled", "planes"], ["x0"]),
        node("Conv", ["x0", "filters_1", "shift_1"], ["c1"], pads=[2] * 4, name="first"),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["x1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["x1", "filters_2", "shift_2"], ["c2"], pads=[2] * 4, name="second"),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["x2"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["x2", "flat"], ["features"]),
    ]
    images, labels = pictures(1_500, 1)
    return _write(path, nodes, weights, ("images", TensorProto.UINT8, [SIDE, SIDE]), images, np.eye(CLASSES)[labels])


def write_dense(path: Path, activation: str = "relu") -> Path:
    """`x` float32 [n, 48] to `y` float32 [n, 1]: R² 0.8; the activation is "relu" or "gelu", as PyTorch writes that."""
    chance = np.random.default_rng(0)
    weights = {"w1": _normal(chance, FEATURES, 320), "w2": _normal(chance, 320, 320), "b1": _normal(chance, 320)}
    node = helper.make_node
    if activation == "gelu":
        weights |= {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}

    def active(x: str, y: str) -> list[onnx.NodeProto]:
        if activation == "relu":
            return [node("Relu", [x], [y])]
        return [
            node("Div", [x, "root"], [f"{x}_d"]),
            node("Erf", [f"{x}_d"], [f"{x}_e"]),
            node("Add", [f"{x}_e", "one"], [f"{x}_g"]),
            node("Mul", [x, f"{x}_g"], [f"{x}_p"]),
            node("Mul", [f"{x}_p", "half"], [y]),
        ]

    nodes = [
        node("MatMul", ["x", "w1"], ["m1"], name="first"),
        node("Add", ["m1", "b1"], ["a1"]),
        *active("a1", "r1"),
        node("MatMul", ["r1", "w2"], ["m2"], name="second"),
        *active("m2", "features"),
    ]
    x, y = points(2_000, 1)
    return _write(path, nodes, weights, ("x", TensorProto.FLOAT, [FEATURES]), x, y)


def _normal(chance: np.random.Generator, *shape: int) -> np.ndarray:
    spread = 1 / np.sqrt(max(1, np.prod(shape[1:] if len(shape) == 4 else shape[:1])))
    return (chance.standard_normal(shape) * spread).astype(np.float32)


def _write(
    path: Path, nodes: list[Any], weights: dict[str, Any], entry: tuple[str, int, list[int]], rows: Any, wanted: Any
) -> Path:
    """The graph with a last layer from `features` to what is `wanted` for the rows."""
    name = entry[0]
    classes = wanted.shape[1] > 1
    model = _model(nodes, weights, entry, "features", [None])
    features = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {name: rows})[0].astype(np.float64)
    centre = wanted.mean(axis=0)
    pull = 1e-2 * np.eye(features.shape[1]) * features.var()
    last = np.linalg.solve(features.T @ features / len(rows) + pull, features.T @ (wanted - centre) / len(rows))
    steepness = 8 if classes else 1
    weights = weights | {
        "last": (last * steepness).astype(np.float32),
        "last_shift": np.asarray(centre * steepness, np.float32),
    }
    output = "probabilities" if classes else "y"
    gemm = helper.make_node("Gemm", ["features", "last", "last_shift"], ["scores" if classes else output], name="last")
    tail = [helper.make_node("Softmax", ["scores"], [output])] if classes else []
    model = _model([*nodes, gemm, *tail], weights, entry, output, [wanted.shape[1]])
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _model(
    nodes: list[Any],
    weights: dict[str, Any],
    entry: tuple[str, int, list[int]],
    output: str,
    sizes: list[Any],
) -> Any:
    name, dtype, shape = entry
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, dtype, ["n", *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", *sizes])],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

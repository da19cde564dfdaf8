"""Models of every format, made by their own libraries from a table whose second column decides the class."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# torch for GPUs comes with triton, which aborts a process that has TensorFlow: each has an LLVM. torch does without it.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

WIDTH = 4


@pytest.fixture(scope="session")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Rows [200, 4] and their classes, 0 to 2."""
    x = np.random.default_rng(7).normal(size=(200, WIDTH)).astype(np.float32)
    return x, np.digitize(x[:, 1] + 0.3 * x[:, 0], [-0.5, 0.5])


def keras_network():
    import keras

    keras.utils.set_random_seed(3)
    x = keras.Input((WIDTH,), name="features")
    hidden = keras.layers.Dense(8, activation="relu")(x)
    return keras.Model(x, keras.layers.Dense(3, activation="softmax", name="scores")(hidden))


def make_keras(folder: Path, table) -> Path:
    path = folder / "model.keras"
    keras_network().save(path)
    return path


def make_h5(folder: Path, table) -> Path:
    path = folder / "model.h5"
    keras_network().save(path)
    return path


def make_saved_model(folder: Path, table) -> Path:
    keras_network().export(folder / "saved", verbose=False)
    return folder / "saved"


def make_onnx(folder: Path, table) -> Path:
    import skl2onnx
    from sklearn.linear_model import LogisticRegression

    x, y = table
    graph = skl2onnx.to_onnx(LogisticRegression().fit(x, y), x[:1], options={"zipmap": False}, target_opset=18)
    path = folder / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def make_tflite(folder: Path, table) -> Path:
    import tensorflow as tf

    # Of frozen weights: the converter reads variables of Keras 3 as zeros.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    network = keras_network()
    function = tf.function(lambda features: {"scores": network(features)}).get_concrete_function(
        tf.TensorSpec((None, WIDTH), tf.float32, name="features")
    )
    path = folder / "model.tflite"
    frozen = convert_variables_to_constants_v2(function)
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())
    return path


def make_sklearn(folder: Path, table) -> Path:
    import joblib
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = table
    model = make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0))
    path = folder / "model.joblib"
    joblib.dump(model.fit(x, np.array(["low", "middle", "high"])[y]), path)
    return path


def make_xgboost(folder: Path, table) -> Path:
    import xgboost

    x, y = table
    path = folder / "model.json"
    xgboost.XGBClassifier(n_estimators=5, max_depth=3).fit(x, y).save_model(path)
    return path


def make_lightgbm(folder: Path, table) -> Path:
    import lightgbm

    x, y = table
    path = folder / "model.txt"
    lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(x, y).booster_.save_model(path)
    return path


def make_mlflow(folder: Path, table) -> Path:
    make_onnx(folder, table)
    (folder / "MLmodel").write_text(
        "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: 1.19.0\n"
        "  python_function:\n    loader_module: mlflow.onnx\n"
    )
    (folder / "serving_input_example.json").write_text('{"inputs": [[0.1, -1.5, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0]]}')
    return folder


def mlflow_of(flavor: str, key: str, make: Callable[[Path, object], Path]) -> Callable[[Path, object], Path]:
    """A maker of an MLflow folder around the model of another one."""

    def made(folder: Path, table) -> Path:
        path = make(folder, table).relative_to(folder)
        (folder / "MLmodel").write_text(f"flavors:\n  {flavor}:\n    {key}: {path}\n")
        return folder

    return made


def make_hugging_face(folder: Path, table) -> Path:
    make_onnx(folder, table)
    (folder / "config.json").write_text('{"id2label": {"0": "low", "2": "high", "1": "middle"}}')
    return folder


def make_torch(folder: Path, table) -> Path:
    torch = pytest.importorskip("torch", reason="torch is an extra of its own, see pyproject.toml")
    pytest.importorskip("onnxscript", reason="part of the extra 'torch'")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(WIDTH, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    rows = torch.export.Dim("rows")
    program = torch.export.export(network, (torch.zeros(4, WIDTH),), dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


MAKERS: dict[str, Callable[[Path, object], Path]] = {
    "SavedModel": make_saved_model,
    "Keras": make_keras,
    "Keras h5": make_h5,
    "ONNX": make_onnx,
    "LiteRT": make_tflite,
    "scikit-learn": make_sklearn,
    "XGBoost": make_xgboost,
    "LightGBM": make_lightgbm,
    "MLflow": make_mlflow,
    "Hugging Face": make_hugging_face,
    "torch.export": make_torch,
}


def make_mlflow_tensorflow(folder: Path, table) -> Path:
    """As mlflow.tensorflow.save_model writes a Keras model."""
    (folder / "data").mkdir()
    make_keras(folder / "data", table)
    (folder / "MLmodel").write_text("flavors:\n  tensorflow:\n    data: data\n    model_type: keras\n")
    return folder


MORE_MAKERS: dict[str, Callable[[Path, object], Path]] = {
    "MLflow of Keras in TensorFlow": make_mlflow_tensorflow,
    "MLflow of PyTorch": mlflow_of("pytorch", "model_data", make_torch),
    "MLflow of Keras": mlflow_of("keras", "data", make_keras),
    "MLflow of LiteRT": mlflow_of("tflite", "data", make_tflite),
    "MLflow of SavedModel": mlflow_of("tensorflow", "saved_model_dir", make_saved_model),
    "MLflow of scikit-learn": mlflow_of("sklearn", "pickled_model", make_sklearn),
    "MLflow of XGBoost": mlflow_of("xgboost", "data", make_xgboost),
    "MLflow of LightGBM": mlflow_of("lightgbm", "data", make_lightgbm),
}


@pytest.fixture(
    scope="session", params=[*MAKERS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_MAKERS)]
)
def made(request, table, tmp_path_factory) -> tuple[str, Path]:
    """The name of a format, and a model of it."""
    make = {**MAKERS, **MORE_MAKERS}[request.param]
    return request.param, make(tmp_path_factory.mktemp("source"), table)

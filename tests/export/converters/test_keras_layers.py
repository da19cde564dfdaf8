"""Networks as tutorials build them: tables with words and numbers, GELU, groups, mixed precision, state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tensorflow as tf
from keras import layers

from bookserve.export import engines
from bookserve.export.contracts import from_json
from bookserve.export.converters import trial
from bookserve.export.errors import ExportError
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

Rows = Mapping[str, npt.NDArray[Any]]
CITIES = ("Basel", "Bern", "Genève", "Zürich")
ONNX, SAVED_MODEL = "assets.extra/model.onnx", "saved_model.pb"


def column(values: Any, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return np.array(values, dtype)[:, np.newaxis]


PASSENGERS: Rows = {
    "age": column([22, 38.5, 41, 63, 40]),
    "city": column(["Zürich", "Paris", "Bern", "", "Genève"], object),
    "code": column([8001, 99, 3011, -1, 1201], np.int64),
    "fare": column([7.25, 71.3, 512, 8, 15.5]),
}


def passengers() -> Any:
    """A network of four columns: a scaled one, words, numbers that stand for something, and one cut into ranges."""
    age, fare = keras.Input((1,), name="age"), keras.Input((1,), name="fare")
    city = keras.Input((1,), name="city", dtype="string")
    code = keras.Input((1,), name="code", dtype="int64")
    scaled = layers.Normalization()
    scaled.adapt(np.random.default_rng(0).normal(40, 12, (500, 1)).astype(np.float32))
    spread = layers.StringLookup(vocabulary=list(CITIES), output_mode="one_hot")(city)
    place = layers.Embedding(6, 3)(layers.IntegerLookup(vocabulary=[8001, 1201, 4051, 3011])(code))
    ranges = layers.Discretization(bin_boundaries=[8.0, 15.0, 31.0], output_mode="one_hot")(fare)
    joined = layers.Concatenate()([scaled(age), spread, layers.Flatten()(place), ranges])
    hidden = layers.Dense(16, activation="gelu")(joined)
    return keras.Model([age, city, code, fare], layers.Dense(1, activation="sigmoid", name="survives")(hidden))


def added(path: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    job = {"path": str(path), "folder": str(folder), "model": "net", "task": None, "labels": None, "example": None}
    result: dict[str, Any] = trial.run({**job, "trust": False})
    return result


def saved(network: Any, folder: Path) -> Path:
    network.save(folder / "network.keras")
    return folder / "network.keras"


def ask(network: Any, rows: Rows) -> npt.NDArray[Any]:
    arguments = [tf.constant(rows[tensor.name]) for tensor in network.inputs]
    return np.asarray(network(arguments if len(arguments) > 1 else arguments[0], training=False))


@pytest.mark.parametrize("form", ["keras", "SavedModel"])
def test_a_table_of_words_and_numbers_becomes_an_onnx_graph(tmp_path: Path, form: str) -> None:
    network = passengers()
    if form == "keras":
        path = saved(network, tmp_path)
    else:
        path = tmp_path / "saved"
        network.export(path, verbose=False)
    result = added(path, tmp_path / "version")
    assert result["graphs"] == [ONNX, SAVED_MODEL]
    contract = from_json(result["contract"])
    assert {tensor.name: tensor.dtype for tensor in contract.inputs} == {
        "age": "float32",
        "city": "object",
        "code": "int64",
        "fare": "float32",
    }
    assert contract.outputs[0].unit == "probability"  # it ends in a sigmoid
    graph = tmp_path / "version" / ONNX
    name = contract.outputs[0].name
    expected = ask(network, PASSENGERS)
    assert len(np.unique(expected)) == len(expected)
    np.testing.assert_allclose(engines.onnx_graph(graph)(PASSENGERS)[name], expected, rtol=1e-5)
    found = engines.saved_model(tmp_path / "version", contract.signature)(PASSENGERS)[name]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert walk.refusal(ModelProto.FromString(graph.read_bytes())) == ""  # requests may share a run


def test_the_words_that_a_table_knows_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask_source = trial._ask_source
    monkeypatch.setattr(trial, "_ask_source", lambda *args: asked.append(ask_source(*args)) or asked[-1])
    added(saved(passengers(), tmp_path), tmp_path / "version")
    cities, codes = asked[0][0]["city"].ravel().tolist(), asked[0][0]["code"].ravel().tolist()
    assert {city.encode() for city in CITIES} & set(cities)
    assert set(cities) - {city.encode() for city in CITIES}
    assert {8001, 1201, 4051, 3011} & set(codes)


def test_an_onnx_graph_that_answers_otherwise_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bookserve.export import tensorflow_operations

    entries = tensorflow_operations._entries

    def exchanged(*arguments: Any) -> list[tuple[Any, Any]]:
        found = entries(*arguments)
        return [(key, value) for (key, _), (_, value) in zip(found, found[::-1], strict=True)]

    monkeypatch.setattr(tensorflow_operations, "_entries", exchanged)
    result = added(saved(passengers(), tmp_path), tmp_path / "version")
    assert result["graphs"] == [SAVED_MODEL]
    (note,) = result["notes"]
    assert "kept as a SavedModel alone" in note
    assert "the source and assets.extra/model.onnx differ in 'survives' by" in note
    assert not (tmp_path / "version" / ONNX).exists()


def picture(*parts: Any) -> Any:
    return keras.Sequential([keras.Input((12, 12, 6), name="x"), *parts])


def scaled() -> Any:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, (50, 12, 12, 6)).astype(np.float32))
    return layer


LAYERS: Mapping[str, Callable[[], list[Any]]] = {
    "gelu": lambda: [layers.Conv2D(4, 3, activation="gelu")],
    "celu": lambda: [layers.Conv2D(4, 3, activation="celu")],
    "normalization": lambda: [scaled()],
    "ranges": lambda: [layers.Discretization(bin_boundaries=[-1.0, 0.0, 0.5])],
    "groups": lambda: [layers.Conv2D(12, 3, groups=3, activation="relu"), layers.Conv2D(12, 5, groups=12)],
    "groups after normalization": lambda: [scaled(), layers.Conv2D(12, 3, groups=6)],
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_tf2onnx_does_not_convert_alone_become_onnx(tmp_path: Path, kind: str) -> None:
    keras.utils.set_random_seed(5)
    network = picture(*LAYERS[kind]())
    result = added(saved(network, tmp_path), tmp_path / "version")
    assert result["graphs"] == [ONNX, SAVED_MODEL]
    assert result["notes"] == []
    x = np.random.default_rng(1).normal(0, 2, (5, 12, 12, 6)).astype(np.float32)
    found = next(iter(engines.onnx_graph(tmp_path / "version" / ONNX)({"x": x}).values()))
    expected = ask(network, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    nodes = [node.op_type for node in onnx.load(tmp_path / "version" / ONNX).graph.node]
    assert ("Gelu" in nodes) == (kind == "gelu")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_layers_of_mixed_precision_compute_in_float32(tmp_path: Path, precision: str) -> None:
    keras.utils.set_random_seed(5)
    keras.mixed_precision.set_global_policy(f"mixed_{precision}")
    try:
        network = picture(
            *(layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten()),
            layers.Dense(4, name="scores"),
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    result = added(saved(network, tmp_path), tmp_path / "version")
    assert result["notes"] == [
        f"its layers compute in {precision}; those of the version, with the same weights, in float32"
    ]
    assert from_json(result["contract"]).outputs[0].dtype == "float32"
    x = np.random.default_rng(1).normal(size=(5, 12, 12, 6)).astype(np.float32)
    found = engines.onnx_graph(tmp_path / "version" / ONNX)({"x": x})["scores"]
    half = ask(network, {"x": x})
    assert half.dtype.name == precision
    step = 2.0 ** (-10 if precision == "float16" else -7)
    difference = np.abs(half.astype(np.float32) - found).max() / np.abs(found).max()
    assert 1e-5 < difference < 4 * step  # the file rounds, the version does not


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_saved_model_of_mixed_precision_keeps_it(tmp_path: Path, precision: str) -> None:
    keras.utils.set_random_seed(5)
    keras.mixed_precision.set_global_policy(f"mixed_{precision}")
    try:
        network = picture(layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(4, dtype="float32", name="scores"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    network.export(tmp_path / "saved", verbose=False)
    result = added(tmp_path / "saved", tmp_path / "version")
    if precision == "bfloat16":
        assert result["graphs"] == [SAVED_MODEL]
        return
    assert result["graphs"] == [ONNX, SAVED_MODEL]
    assert result["notes"] == ["it computes in float16, which engines round in their own ways: by at most 8 units"]
    x = np.random.default_rng(1).normal(size=(5, 12, 12, 6)).astype(np.float32)
    (found,) = engines.onnx_graph(tmp_path / "version" / ONNX)({"x": x}).values()
    np.testing.assert_allclose(found, ask(network, {"x": x}), rtol=0, atol=8 * 2**-10 * np.abs(found).max())


def test_a_file_whose_16_bits_and_32_bits_differ_by_more_than_rounding_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bookserve.export.converters import keras_file

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        network = picture(layers.Flatten(), layers.Dense(4, name="scores"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    path = saved(network, tmp_path)
    load, loaded = keras_file._load, []

    def second_is_other(*arguments: Any) -> Any:
        made = load(*arguments)
        if loaded:
            made.set_weights([weight * 1.1 for weight in made.get_weights()])
        loaded.append(made)
        return made

    monkeypatch.setattr(keras_file, "_load", second_is_other)
    with pytest.raises(ExportError, match=r"the source and the file in float16 differ in 'scores' by"):
        added(path, tmp_path / "version")


def test_words_that_are_split_stay_with_tensorflow(tmp_path: Path) -> None:
    text = layers.TextVectorization(output_sequence_length=6, vocabulary=["the", "cat", "sat"])
    network = keras.Sequential(
        [
            keras.Input((1,), name="text", dtype="string"),
            text,
            layers.Embedding(5, 4),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    result = added(saved(network, tmp_path), tmp_path / "version")
    assert result["graphs"] == [SAVED_MODEL]
    assert "StringSplitV2 has no ONNX form" in result["notes"][0]
    rows = {"text": column(["The cat sat.", "a dog"], object)}
    found = next(iter(engines.saved_model(tmp_path / "version", "serving_default")(rows).values()))
    np.testing.assert_allclose(found, ask(network, rows), rtol=1e-6)


def test_a_layer_with_state_is_refused(tmp_path: Path) -> None:
    x = keras.Input(batch_shape=(1, 6, 3))
    path = saved(keras.Model(x, layers.LSTM(4, stateful=True, name="memory")(x)), tmp_path)
    with pytest.raises(ExportError, match="the layer 'memory' is stateful, so an answer would depend on the requests"):
        added(path, tmp_path / "version")

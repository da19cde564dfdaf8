from pathlib import Path

import keras
import numpy as np
import pytest

from bookserve.training.devices import precision


def network() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, name="hidden")(inputs)
    x = x / keras.ops.maximum(keras.ops.mean(keras.ops.abs(x), axis=1, keepdims=True), 1e-3)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x), name="small")


def test_a_copy_computes_in_the_other_precision_with_the_same_weights() -> None:
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(optimizer="sgd", loss="mse")
    copy = precision.in_precision(model, "mixed_bfloat16", exact=frozenset({"logits"}))
    back = precision.in_precision(copy, "float32")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert copy.name == "small"
    assert copy.get_layer("hidden").compute_dtype == "bfloat16"
    assert copy.get_layer("logits").compute_dtype == "float32"
    assert {variable.dtype for variable in copy.variables} == {"float32"}
    np.testing.assert_allclose(copy(x), model(x), atol=0.1)
    assert np.any(np.array(copy(x)) != np.array(model(x)))
    np.testing.assert_array_equal(back(x), model(x))
    copy.get_layer("hidden").kernel.assign(np.zeros((4, 8)))
    assert np.any(np.array(model.get_layer("hidden").kernel))


@pytest.mark.parametrize(
    ("content", "policy"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", "mixed_bfloat16"),
        ("flags : amx_bf16\n", "mixed_bfloat16"),
        ("flags : fpu avx2 avx512f\n", "float32"),
        ("Features : asimd\n", "float32"),
        (None, "float32"),
    ],
)
def test_bfloat16_only_where_the_processor_has_it(
    content: str | None, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "CPU_FLAGS_FILE", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision.tf.config, "list_physical_devices", lambda kind: [])
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert precision.fastest() == policy
    assert precision.fastest_on_gpus() == "float32"


@pytest.mark.parametrize(
    ("capabilities", "policy"),
    [([(9, 0)], "mixed_bfloat16"), ([(8, 0), (7, 5)], "float32"), ([None], "float32")],
)
def test_bfloat16_only_where_every_gpu_has_it(
    capabilities: list[tuple[int, int] | None], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.tf.config, "list_physical_devices", lambda kind: capabilities)
    monkeypatch.setattr(
        precision.tf.config.experimental,
        "get_device_details",
        lambda capability: {} if capability is None else {"compute_capability": capability},
    )
    assert precision.fastest() == policy
    assert precision.fastest_on_gpus() == policy

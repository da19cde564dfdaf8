"""The precision in which a network computes: bfloat16 where the device multiplies it in hardware, else float32.

Weights, sums of normalisation and the results are float32 in both. On devices without such hardware bfloat16 is slower
than float32 by far, so it is never asked for there.
"""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

CPU_FLAGS_FILE = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # of Linux; either will do
GPU_FROM = (8, 0)  # compute capability (Ampere)


def fastest() -> str:
    """The Keras policy for the devices that train: "mixed_bfloat16" or "float32"."""
    return "mixed_bfloat16" if fast_bfloat16() else "float32"


def fastest_on_gpus() -> str:
    """The same, and "float32" where there is no GPU: for networks so small that on a CPU the conversions cost more."""
    return fastest() if tf.config.list_physical_devices("GPU") else "float32"


def fast_bfloat16() -> bool:
    """Whether every device that trains multiplies matrices of bfloat16 faster than those of float32."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
        return all(capability is not None and capability >= GPU_FROM for capability in capabilities)
    return bool(CPU_FLAGS & _cpu_flags())


def in_precision(model: keras.Model, policy: str, exact: frozenset[str] = frozenset()) -> keras.Model:
    """A copy of a functional network, weights and all and not compiled, that computes by another policy; its layers
    named in `exact` are float32 in any.
    """

    def copy(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation, which computes in what it is given
        return type(layer).from_config(layer.get_config() | {"dtype": "float32" if layer.name in exact else policy})

    bare = keras.Model(model.input, model.output, name=model.name)
    twin = keras.models.clone_model(bare, clone_function=copy)
    twin.set_weights(model.get_weights())
    return twin


def _cpu_flags() -> set[str]:
    """What the first processor can do, in Linux's words; empty on other systems."""
    if not CPU_FLAGS_FILE.exists():
        return set()
    lines = CPU_FLAGS_FILE.read_text().splitlines()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())

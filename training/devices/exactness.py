"""Whether trainings repeat themselves to the last bit (exact), or not (fast).

An exact training runs TensorFlow's repeatable kernels only, so the same seed gives the same bits on the same machine. A
fast one may use any kernel, and on a GPU XLA compiles its steps. On a CPU XLA makes steps slower, some many times
(`tests/benchmarks/training.py modes`), but for the parts that a model always has compiled.
"""

import tensorflow as tf
from tensorflow.python.framework import config as framework  # tf.config can switch this on, and not off again

EXACT, FAST = "exact", "fast"


def switch(mode: str) -> None:
    """Have all trainings of this process from now on be "exact" or "fast"."""
    if mode == EXACT:
        tf.config.experimental.enable_op_determinism()
    else:
        framework.disable_op_determinism()


def mode() -> str:
    """What trainings of this process are."""
    return EXACT if framework.is_op_determinism_enabled() else FAST


def xla() -> bool:
    """Whether XLA compiles the steps of `model.fit`: of fast trainings where there is a GPU."""
    return mode() == FAST and bool(tf.config.list_physical_devices("GPU"))

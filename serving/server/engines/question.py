"""A request that a version is asked before any client asks it, made from a signature alone."""

import math
from typing import Any

import numpy as np

from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire.tensors import Array, TensorError, TensorSpec

_MAX_ELEMENTS = 1 << 24  # of one input
_VALUES: dict[str, Any] = {"f": 0.5, "i": 1, "u": 1, "b": True, "c": 0.5, "O": b"the quick brown fox"}  # by dtype.kind


def made_up(signature: Signature) -> dict[str, Array] | None:
    """One row for each input; None where no such request can be made. A free size is 1, an unknown shape [1]."""
    inputs = {}
    for alias, spec in signature.inputs.items():
        array = _values(spec)
        if array is None:
            return None
        inputs[alias] = array
    return inputs


def _values(spec: TensorSpec) -> Array | None:
    shape = [1 if size is None else size for size in (spec.shape if spec.shape is not None else (1,))]
    try:
        dtype = spec.dtype
    except TensorError:
        return None
    if dtype.kind not in _VALUES or not 0 < math.prod(shape) <= _MAX_ELEMENTS:
        return None
    return np.full(shape, _VALUES[dtype.kind], dtype)

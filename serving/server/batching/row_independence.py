"""Whether the rows of a signature are independent, so that rows of several requests may run as one batch.

Shapes alone do not tell: a model that subtracts the mean of its batch has them all right. So a version shows it when it
loads: random rows must give the same answers together and apart. A signature that does not is never batched unasked.
"""

import logging
from collections.abc import Sequence

import numpy as np

from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire.tensors import Array, TensorSpec

log = logging.getLogger(__name__)

_FREE_SIZES = (3, 32)  # tried for the free dimensions of one row: steps of a text, sides of a picture
_ROUNDS = 3  # rounding may turn a class once; a mixed row differs every time
_RELATIVE, _OF_LARGEST = 1e-3, 1e-5  # how far rounding may go


def independent(engine: Engine) -> set[str]:
    """The signatures of a loaded version whose rows do not depend on each other."""
    names = {name for name, signature in engine.signatures.items() if _is_independent(engine, signature)}
    for name in sorted(engine.signatures.keys() - names):
        log.info("signature %s: every request runs alone, its rows are fixed or depend on each other", name)
    return names


def _is_independent(engine: Engine, signature: Signature) -> bool:
    if not _has_free_rows([*signature.required.values(), *signature.outputs.values()]):
        return False
    for free_size in _FREE_SIZES:
        try:
            return any(_same_together_and_apart(engine, signature, free_size, seed) for seed in range(_ROUNDS))
        except Exception as error:  # a model may well refuse random values
            log.info("signature %s: a trial with random values was refused: %s", signature.name, error)
    return False


def _has_free_rows(specs: Sequence[TensorSpec]) -> bool:
    return all(spec.shape is not None and spec.shape[:1] == (None,) for spec in specs)


def _same_together_and_apart(engine: Engine, signature: Signature, free_size: int, seed: int) -> bool:
    random = np.random.default_rng(seed)
    inputs = {name: _random_rows(spec, 3, free_size, random) for name, spec in signature.required.items()}
    outputs = tuple(signature.outputs)
    together = engine.run(signature, inputs, outputs)
    if any(array.ndim == 0 or array.shape[0] != 3 for array in together):
        return False
    apart = [
        engine.run(signature, {name: array[rows] for name, array in inputs.items()}, outputs)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    return all(
        first.shape[0] == 1 and second.shape[0] == 2 and _close(whole, np.concatenate([first, second]))
        for whole, first, second in zip(together, *apart, strict=True)
    )


def _random_rows(spec: TensorSpec, rows: int, free_size: int, random: np.random.Generator) -> Array:
    assert spec.shape is not None
    shape = [rows, *(free_size if size is None else size for size in spec.shape[1:])]
    dtype = spec.dtype
    if dtype.kind == "O":
        return np.array([b"%d" % number for number in random.integers(0, 2, shape).flat], np.object_).reshape(shape)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in "iu":
        highest = 2 if dtype.itemsize > 1 else 128  # a byte is a level or a letter, a wider one often an index
        return random.integers(0, highest, shape).astype(dtype)
    return random.random(shape).astype(dtype)


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    largest = float(np.max(np.abs(one), initial=0.0, where=np.isfinite(one)))
    return bool(np.allclose(one, other, rtol=_RELATIVE, atol=_OF_LARGEST * largest, equal_nan=True))

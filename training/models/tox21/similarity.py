"""Kernel logistic regression on the similarity of fingerprints: a molecule is judged by the ones it resembles.

The similarity is Tanimoto's, shared bits by all bits, squared. It is a positive definite kernel (Ralaivola et al.,
"Graph kernels for chemical informatics", 2005). The loss is convex: neither the start nor a seed decides the result.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import expit

STEPS = 60  # of gradient descent; the AUC does not change after 50
MOMENTUM = 0.9


def kernel(fingerprints: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The squared Tanimoto similarity of each fingerprint of uint8 [n, bits] to each of uint8 [m, bits]: [n, m]."""
    a, b = fingerprints.astype(np.float32), others.astype(np.float32)
    shared = a @ b.T
    every = a.sum(axis=1)[:, None] + b.sum(axis=1) - shared
    alike: npt.NDArray[np.float32] = np.square(shared / np.maximum(every, 1))
    return alike


def fit(
    fingerprints: npt.NDArray[np.uint8],
    results: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    penalty: float,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Coefficients float32 [n, assays] and biases float32 [assays] of logits `kernel(x, fingerprints) @ c + b`.

    They minimise the cross-entropy of `results` [n, assays], 1 or 0, each with its weight in `weights`, 0 for what was
    not measured, plus `penalty` / 2 times the squared norm of the function in the kernel's space. The bias is that of
    a constant answer. Rows that were not measured get the coefficient 0.
    """
    similarity = kernel(fingerprints, fingerprints)
    active, inactive = (weights * results).sum(axis=0), (weights * (1 - results)).sum(axis=0)
    bias = np.log(np.maximum(active, 1e-3) / np.maximum(inactive, 1e-3)).astype(np.float32)
    steepest = _largest_eigenvalue(similarity) * 0.25 * np.minimum(weights.max(axis=0), 4)  # few rows weigh more than 4
    rate = 1 / (steepest + penalty)
    coefficients, pull, logits = np.zeros_like(results), np.zeros_like(results), np.zeros_like(results)
    for _ in range(STEPS):
        wrong = weights * (_sigmoid(logits + bias) - results)
        pull = MOMENTUM * pull - rate * (wrong + penalty * coefficients)
        coefficients = (coefficients + pull).astype(np.float32)
        logits = similarity @ coefficients
    return coefficients, bias


def left_out(
    fingerprints: npt.NDArray[np.uint8],
    results: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    penalty: float,
    parts: int,
) -> npt.NDArray[np.float32]:
    """The logits float32 [n, assays] that each row gets from a fit to the others: every `parts`-th row is left out."""
    logits = np.zeros_like(results)
    part = np.arange(len(results)) % parts
    for number in range(parts):
        inside, outside = part != number, part == number
        coefficients, bias = fit(fingerprints[inside], results[inside], weights[inside], penalty)
        logits[outside] = kernel(fingerprints[outside], fingerprints[inside]) @ coefficients + bias
    return logits


def _largest_eigenvalue(matrix: npt.NDArray[np.float32]) -> float:
    """By power iteration; the entries are not negative, so all ones are a good start."""
    vector = np.ones(len(matrix), np.float32)
    length = 0.0
    for _ in range(8):
        vector = matrix @ vector
        length = float(np.linalg.norm(vector))
        vector /= length
    return length


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(expit(logits), np.float32)

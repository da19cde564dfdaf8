"""Platt's calibration: a scale and a shift of each assay's logits, after which probabilities are as high as is true.

Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999). A training that weighs actives up says too
much, and one that learns too long is too sure. The scale is above 0, so that no order changes, and neither a ROC curve.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

MAX_LOGARITHM = 5.0  # of a scale


def fit(
    logits: npt.NDArray[np.float64], results: npt.NDArray[np.float32], ratios: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scales and shifts, float32 [assays] each, for `logits` [n, assays] of rows that trained nothing.

    They minimise the cross-entropy of `results` [n, assays]: 1, 0 or NaN, which counts nowhere. `ratios` [assays] is
    what an active weighed in the training, of an inactive: without a row the shift is -log(ratio), which undoes that,
    and the scale 1. The logarithm of the scale and the shift are normally distributed around these with deviation 1,
    which decides where rows are few and is nothing beside hundreds.
    """
    scales, shifts = [], []
    for assay, ratio in enumerate(ratios):
        measured = ~np.isnan(results[:, assay])
        expected = -float(np.log(ratio))
        found = minimize(
            _loss,
            np.array([0.0, expected]),
            (logits[measured, assay], results[measured, assay].astype(np.float64), expected),
            method="L-BFGS-B",
            jac=True,
            bounds=[(-MAX_LOGARITHM, MAX_LOGARITHM), (None, None)],
        )
        scales.append(np.exp(found.x[0]))
        shifts.append(found.x[1])
    return np.array(scales, np.float32), np.array(shifts, np.float32)


def _loss(
    point: npt.NDArray[np.float64], logits: npt.NDArray[np.float64], true: npt.NDArray[np.float64], expected: float
) -> tuple[float, Any]:
    """What is minimised at (logarithm of the scale, shift), and its slope there."""
    scaled = np.exp(point[0]) * logits
    changed = scaled + point[1]
    away = point - np.array([0.0, expected])
    wrong = expit(changed) - true
    loss = np.logaddexp(0.0, changed) - true * changed
    return float(loss.sum() + (away**2).sum() / 2), np.array([wrong @ scaled, wrong.sum()]) + away

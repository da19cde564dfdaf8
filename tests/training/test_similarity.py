import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from bookserve.training import similarity


def test_the_kernel_is_the_squared_share_of_common_bits() -> None:
    a = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    b = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.uint8)
    np.testing.assert_allclose(similarity.kernel(a, b), [[1, 1 / 9, 0, 0], [0, 0, 0, 0]])


def test_the_fit_is_that_of_logistic_regression_with_the_kernel() -> None:
    random = np.random.default_rng(0)
    bits = (random.random((120, 40)) < 0.3).astype(np.uint8)
    results = np.stack([bits[:, 0], bits[:, 1]], axis=1).astype(np.float32)
    weights = np.where(random.random(results.shape) < 0.2, 0, 1).astype(np.float32)
    coefficients, bias = similarity.fit(bits, results, weights, penalty=0.5)
    assert (coefficients[weights == 0] == 0).all()
    for assay in range(2):
        measured = weights[:, assay] == 1
        expected = _by_scikit_learn(bits[measured], results[measured, assay], 0.5, float(bias[assay]))
        np.testing.assert_allclose(
            similarity.kernel(bits, bits[measured]) @ coefficients[measured, assay],
            similarity.kernel(bits, bits[measured]) @ expected,
            atol=0.02,
        )


def test_an_assay_without_an_active_gets_a_low_bias() -> None:
    bits = np.eye(8, dtype=np.uint8)
    coefficients, bias = similarity.fit(bits, np.zeros((8, 1), np.float32), np.ones((8, 1), np.float32), 0.3)
    assert bias[0] < -8
    assert np.isfinite(coefficients).all()


def _by_scikit_learn(bits: np.ndarray, results: np.ndarray, penalty: float, bias: float) -> np.ndarray:
    """Coefficients of the same problem, in coordinates in which the kernel is a plain product."""
    values, vectors = np.linalg.eigh(similarity.kernel(bits, bits).astype(float))
    values = np.maximum(values, 1e-9)
    features = vectors * np.sqrt(values)  # (n, n), features @ features.T is the kernel
    # a column of its own plays the constant bias: long, so that the penalty does not feel its coefficient
    with_bias = np.concatenate([features, np.full((len(bits), 1), 1e4)], axis=1)
    model = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=5000, tol=1e-8).fit(with_bias, results)
    assert model.coef_[0, -1] * 1e4 == pytest.approx(bias, abs=3)
    return np.asarray(vectors / np.sqrt(values) @ model.coef_[0, :-1])

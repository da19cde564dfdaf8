import numpy as np
import pytest

from bookserve.training.models.tox21 import similarity


def test_the_kernel_is_the_squared_share_of_common_bits() -> None:
    a = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    b = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.uint8)
    np.testing.assert_allclose(similarity.kernel(a, b), [[1, 1 / 9, 0, 0], [0, 0, 0, 0]])


def test_the_fit_goes_where_the_loss_has_no_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "STEPS", 1_000)
    random = np.random.default_rng(0)
    bits = (random.random((120, 40)) < 0.3).astype(np.uint8)
    results = bits[:, :2].astype(np.float32)
    weights = np.where(random.random(results.shape) < 0.2, 0, random.random(results.shape) + 0.5).astype(np.float32)
    coefficients, bias = similarity.fit(bits, results, weights, penalty=0.5)
    logits = similarity.kernel(bits, bits) @ coefficients + bias
    slope = weights * (1 / (1 + np.exp(-logits)) - results) + 0.5 * coefficients
    assert np.abs(slope).max() < 0.01 * np.abs(0.5 * coefficients).max()
    assert (coefficients[weights == 0] == 0).all()
    assert (coefficients[(weights > 0) & (results == 1)] > 0).all()


def test_what_was_left_out_did_not_help_to_judge_itself() -> None:
    random = np.random.default_rng(0)
    bits = (random.random((90, 60)) < 0.3).astype(np.uint8)
    results = random.integers(0, 2, (90, 1)).astype(np.float32)
    weights = np.ones_like(results)
    logits = similarity.left_out(bits, results, weights, 0.3, parts=3)
    turned = results.copy()
    turned[30] = 1 - turned[30]
    changed = similarity.left_out(bits, turned, weights, 0.3, parts=3)
    same_part = np.arange(90) % 3 == 0
    np.testing.assert_allclose(changed[same_part], logits[same_part], atol=1e-6)
    assert (changed[~same_part] != logits[~same_part]).all()


def test_an_assay_without_an_active_gets_a_low_bias() -> None:
    bits = np.eye(8, dtype=np.uint8)
    coefficients, bias = similarity.fit(bits, np.zeros((8, 1), np.float32), np.ones((8, 1), np.float32), 0.3)
    assert bias[0] < -8
    assert np.isfinite(coefficients).all()

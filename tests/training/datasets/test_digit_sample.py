import numpy as np

from bookserve.training.datasets import digit_sample


def test_digits_look_like_mnist() -> None:
    images, labels = digit_sample.draw(200, seed=0)
    assert images.shape == (200, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [20] * 10
    rows = images.any(axis=2).sum(axis=1)
    columns = images.any(axis=1).sum(axis=1)
    assert (np.maximum(rows, columns) <= digit_sample.BOX).all()
    mass = images.reshape(200, -1).astype(float)
    centre = (mass.reshape(200, 28, 28).sum(axis=2) @ np.arange(28)) / mass.sum(axis=1)
    assert np.abs(centre - 13.5).max() <= 4.5
    assert 15 < images.mean() < 70  # MNIST: 33


def test_the_seed_decides_every_pixel() -> None:
    first, again, other = digit_sample.draw(30, 1), digit_sample.draw(30, 1), digit_sample.draw(30, 2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_no_two_digits_are_drawn_alike() -> None:
    images, _ = digit_sample.draw(300, seed=3)
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300


def test_no_rows_are_no_error() -> None:
    images, labels = digit_sample.draw(0, seed=0)
    assert images.shape == (0, 28, 28)
    assert labels.shape == (0,)

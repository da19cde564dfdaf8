import numpy as np

from bookserve.training.datasets import toy


def test_the_line_is_the_book_s() -> None:
    points = toy.line(seed=0)
    assert points.train.x.shape == (100, 1)
    assert points.train.x.dtype == points.train.y.dtype == np.float32
    slope, intercept = np.polyfit(points.train.x[:, 0], points.train.y, 1)
    assert abs(slope - 5) < 0.15
    assert abs(intercept - 2) < 0.08
    around = points.train.y - (5 * points.train.x[:, 0] + 2)
    assert 0.08 < around.std() < 0.12


def test_the_clouds_are_the_book_s() -> None:
    train = toy.clouds(seed=0).train
    assert train.x.shape == (100, 2)
    for number, centre in ((0, -1), (1, 1)):
        cloud = train.x[train.y == number]
        assert len(cloud) == 50
        np.testing.assert_allclose(cloud.mean(axis=0), [centre, centre], atol=0.15)
        np.testing.assert_allclose(np.cov(cloud.T), 0.1 * np.eye(2), atol=0.06)


def test_classes_come_in_random_order() -> None:
    classes = toy.clouds(seed=0).train.y
    assert 30 < np.abs(np.diff(classes)).sum() < 70


def test_the_splits_differ_and_the_seed_decides_them() -> None:
    for draw in (toy.line, toy.clouds):
        points, again, other = draw(3), draw(3), draw(4)
        assert (points.train.x != points.valid.x).all()
        assert (points.valid.x != points.test.x).all()
        np.testing.assert_array_equal(points.test.x, again.test.x)
        np.testing.assert_array_equal(points.test.y, again.test.y)
        assert (points.test.x != other.test.x).any()
        assert points.origin == again.origin
        assert points.origin.sha256 != other.origin.sha256


def test_generated_points_are_the_book_s_own_data_and_say_so() -> None:
    origin = toy.line(0).origin
    assert origin.source == "real"
    assert "generated as in chapter 3" in origin.name
    assert list(toy.clouds(0).examples) == ["x"]

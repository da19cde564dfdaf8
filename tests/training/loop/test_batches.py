import numpy as np

from bookserve.training.loop.batches import row_order


def read(first_epoch: int, seed: int = 3) -> list[tuple[list[int], list[int]]]:
    dataset = row_order(10, 4, seed, first_epoch, epochs=3)
    return [(rows.tolist(), draw.tolist()) for rows, draw in dataset.as_numpy_iterator()]


def test_every_epoch_sees_rows_once_in_an_order_of_its_own() -> None:
    steps = read(0)
    assert len(steps) == 3 * 2
    orders = [steps[2 * epoch][0] + steps[2 * epoch + 1][0] for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == 8
        assert set(order) < set(range(10))
    assert len({tuple(order) for order in orders}) == 3


def test_every_step_has_a_seed_of_its_own() -> None:
    draws = [tuple(draw) for _, draw in read(0)]
    assert len(set(draws)) == len(draws)


def test_a_later_start_gives_the_same_steps() -> None:
    assert read(1) == read(0)[2:]
    assert read(3) == []


def test_the_seed_decides_the_order() -> None:
    assert read(0) == read(0)
    assert read(0) != read(0, seed=4)


def test_rows_are_numbers_that_gather_takes() -> None:
    rows, draw = next(iter(row_order(10, 4, 0, 0, 1).as_numpy_iterator()))
    assert (rows.dtype, rows.shape) == (np.int64, (4,))
    assert (draw.dtype, draw.shape) == (np.int32, (2,))

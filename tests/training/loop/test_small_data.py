import pytest

from bookserve.training.loop.small_data import for_rows
from bookserve.training.models.mnist import Config


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"),
    [
        (1, 1, 100),
        (15, 15, 100),
        (16, 16, 100),
        (127, 16, 43),  # 7 steps an epoch
        (1_023, 127, 38),  # an eighth of the rows; 8 steps
        (1_024, 128, 38),
        (100_000, 128, 5),  # enough: as it is
    ],
)
def test_few_rows_get_small_steps_and_enough_of_them(rows: int, batch: int, epochs: int) -> None:
    fitted = for_rows(Config(epochs=5, batch=128), rows)
    assert (fitted.batch, fitted.epochs) == (batch, epochs)


def test_a_longer_training_is_not_shortened() -> None:
    assert for_rows(Config(epochs=400, batch=8), 30) == Config(epochs=400, batch=8)

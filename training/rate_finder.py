"""`bookserve train --find-rate`: the learning rate rises from step to step, and the loss tells where it is too high.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. Here the rate rises by the
same factor in each step. A tenth of the rate with the lowest loss is suggested, a rule of thumb of Howard and Gugger
("Fastai: A Layered API for Deep Learning", 2020): at the lowest itself the steps are about to become too long.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.loop.checkpoint import NO_CHECKPOINT
from bookserve.training.loop.step_losses import LOSS_IS_MEAN
from bookserve.training.run import adapted, book_model, make_repeatable

LOWEST, HIGHEST = 1e-6, 10.0  # learning rates
STEPS = 200
SMOOTHING = 4.0  # steps, the deviation of the bell curve with which losses are averaged
TOO_HIGH = 4.0  # times the lowest loss: where the training ends
RECENT = 0.9  # share of the past in the running average that is compared
FIRST_STEPS = 10  # in which it does not end
SHARE = 0.1  # of the rate with the lowest loss, which is suggested


@dataclass(frozen=True)
class Curve:
    """Learning rates, rising, float64 [n], and the losses of the steps that were made with them, float64 [n]."""

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]

    @property
    def smooth(self) -> npt.NDArray[np.float64]:
        """The losses, each averaged with its neighbours: float64 [n]."""
        found: npt.NDArray[np.float64] = gaussian_filter1d(self.losses, SMOOTHING, mode="nearest")
        return found

    @property
    def lowest(self) -> float:
        """The rate at which the loss is lowest."""
        return float(self.rates[self.smooth.argmin()])

    @property
    def suggested(self) -> float:
        """The rate to train with, of two digits."""
        return float(f"{SHARE * self.lowest:.1e}")

    @property
    def rows(self) -> list[tuple[float, float]]:
        """Rates and smooth losses, about three for each power of ten."""
        apart = max(1, round(len_of_decade() / 3))
        return [(float(rate), float(loss)) for rate, loss in zip(self.rates, self.smooth, strict=True)][::apart]


def len_of_decade() -> float:
    """Steps in which the rate rises tenfold."""
    return (STEPS - 1) / math.log10(HIGHEST / LOWEST)


class _DoneError(Exception):
    """The rate cannot rise any more."""


class Sweep(keras.callbacks.Callback):  # type: ignore[misc]
    """Has the rate rise in every step, notes the losses, and ends the training with `_DoneError`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.losses: list[float] = []
        self._name = name
        self._steps, self._mean = 0, 0.0  # of this epoch
        self._running, self._least = 0.0, math.inf

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take the place of the schedule.

        Raises:
            TrainingError: the model has an optimizer of its own.
        """
        if self.model.optimizer is None:
            raise TrainingError(
                f"{self._name} is not trained by an optimizer of Keras: --find-rate knows no rate of it"
            )
        schedule = keras.optimizers.schedules.ExponentialDecay(LOWEST, STEPS - 1, HIGHEST / LOWEST)
        self.model.optimizer.learning_rate = schedule

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin a new mean."""
        self._steps, self._mean = 0, 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the loss of the step; end where it is no number, or has become too high."""
        told = float((logs or {})["loss"])
        loss = told * (self._steps + 1) - self._mean * self._steps if self.params.get(LOSS_IS_MEAN) else told
        self._steps, self._mean = self._steps + 1, told
        if not math.isfinite(loss):
            raise _DoneError
        self.losses.append(loss)
        count = len(self.losses)
        self._running = RECENT * self._running + (1 - RECENT) * loss
        average = self._running / (1 - RECENT**count)
        self._least = min(self._least, average)
        if count == STEPS or (count > FIRST_STEPS and average > TOO_HIGH * abs(self._least)):
            raise _DoneError


def find(
    name: str,
    request: DataRequest,
    config: Any,
    settings: Mapping[str, Any],
    seed: int = 0,
) -> Curve:
    """Train the network of the model `name` with the numbers `config` and a rising rate; nothing of it is kept.

    It trains on one device, with the data, batches and seed of the training that it is for. `settings` are fields of
    the `Config` that have other values, as of `train_model`.

    Raises:
        DataError: the data is damaged, cannot be read, or cannot be had.
        TrainingError: the model has no rate that can be found, or the loss is lowest at the lowest rate.
    """
    module = book_model(name)
    make_repeatable(seed)
    data, config, _ = adapted(module, replace(config, **settings), settings, request, seed, name)
    enough = {
        field: STEPS for field in ("epochs", "patience") if hasattr(config, field)
    }  # an epoch has a step at least
    config = replace(config, **enough)
    sweep = Sweep(name)
    with contextlib.suppress(_DoneError):
        module.train(module.build_model(config), data, config, seed, [sweep], NO_CHECKPOINT)
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(len(sweep.losses)) / (STEPS - 1))
    curve = Curve(rates, np.array(sweep.losses))
    if len(sweep.losses) < FIRST_STEPS or curve.lowest == curve.rates[0]:
        raise TrainingError(
            f"{name}: the loss fell at no learning rate from {LOWEST:g} on: look for rows in the data that are not "
            "finite, and for a network that cannot learn them"
        )
    return curve

"""Optimizers that keep a running average of the weights, and the averages in place of the weights.

Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), in the form of
tf.train.ExponentialMovingAverage(num_updates=...), which chapter 9 uses.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


class _Averaged:
    """What an optimizer needs to keep averages, which are among its variables, and so in checkpoints.

    In the first updates the fraction of the past is smaller, (1 + updates) / (10 + updates), so that the first weights
    are soon forgotten.
    """

    average: float  # the fraction of the past

    def build(self: Any, variables: Sequence[Any]) -> None:
        """Make the averages, which begin as the weights."""
        if not self.built:
            super().build(variables)  # type: ignore[misc]
            self.averages = self.add_optimizer_variables(variables, "average")
            for average, variable in zip(self.averages, variables, strict=True):
                average.assign(variable)

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step."""
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
        updates = keras.ops.cast(self.iterations, "float32")
        past = keras.ops.minimum(self.average, (1.0 + updates) / (10.0 + updates))
        average = self.averages[self._get_variable_index(variable)]
        self.assign(average, past * average + (1.0 - past) * variable)


class AveragedDescent(_Averaged, keras.optimizers.SGD):  # type: ignore[misc]
    """Gradient descent, plain or with momentum."""

    def __init__(self, learning_rate: Any, average: float, momentum: float = 0.0) -> None:
        super().__init__(learning_rate, momentum=momentum)
        self.average = average


class AveragedAdamW(_Averaged, keras.optimizers.AdamW):  # type: ignore[misc]
    """AdamW."""

    def __init__(self, learning_rate: Any, weight_decay: float, average: float) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        self.average = average


class ValidateAverages(keras.callbacks.Callback):  # type: ignore[misc]
    """Has the averaged weights in the network while it is validated."""

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the averages in."""
        self._weights = [np.array(variable) for variable in self.model.trainable_variables]
        take_averages(self.model)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the weights back."""
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)


def take_averages(model: keras.Model) -> None:
    """Replace the weights of a network, trained by one of these optimizers, by their averages."""
    for variable, average in zip(model.trainable_variables, model.optimizer.averages, strict=True):
        variable.assign(average)

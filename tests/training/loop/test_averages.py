import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training.loop import averages


@pytest.mark.parametrize(
    "optimizer",
    [
        averages.AveragedDescent(1.0, average=0.25, momentum=0.5),
        averages.AveragedAdamW(0.5, weight_decay=0.1, average=0.25),
    ],
)
def test_averages_forget_the_first_weights_as_tensorflow_s_do(optimizer: keras.optimizers.Optimizer) -> None:
    weight = keras.Variable([4.0, -1.0])
    optimizer.build([weight])
    expected = np.array(weight)
    np.testing.assert_array_equal(optimizer.averages[0], expected)
    for share in (0.1, 2 / 11, 0.25, 0.25):  # (1 + updates) / (10 + updates), at most 0.25
        before = np.array(weight)
        optimizer.apply([tf.constant([1.0, -2.0])], [weight])
        assert (np.array(weight) != before).all()
        expected = share * expected + (1 - share) * np.array(weight)
        np.testing.assert_allclose(optimizer.averages[0], expected, rtol=1e-5)


def test_the_averages_are_validated_and_the_weights_go_on() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = averages.AveragedAdamW(0.1, weight_decay=0.0, average=0.9)
    model.compile(optimizer=optimizer, loss="mse")
    data = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32), np.ones((64, 2), np.float32)
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_test_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            seen["validated"] = model.get_weights()

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            seen["weights"] = model.get_weights()

    callbacks = [averages.ValidateAverages(), Look()]
    model.fit(*data, epochs=2, batch_size=16, validation_data=data, callbacks=callbacks, verbose=0)
    kept = [np.array(average) for average in optimizer.averages]
    for validated, average, weight in zip(seen["validated"], kept, seen["weights"], strict=True):
        np.testing.assert_array_equal(validated, average)
        assert np.abs(weight - average).max() > 1e-3
    averages.take_averages(model)
    for weight, average in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(weight, average)

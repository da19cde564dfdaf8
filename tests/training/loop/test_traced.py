import keras
import numpy as np
import pytest

from bookserve.training.loop.traced import Traced

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [0, 1, 7, 20, 23])
def test_rows_are_answered_as_keras_does_however_many_there_are(rows: int) -> None:
    images = keras.Input((4, 4), dtype="uint8", name="images")
    scale = keras.Input((1,), name="scale")
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(keras.ops.cast(images, "float32")) * scale)
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(
        {"images": images, "scale": scale}, {"sum": keras.ops.sum(x, 1), "one": keras.layers.Dense(1)(x)}
    )
    inputs = {
        "images": RNG.integers(0, 255, (rows, 4, 4), np.uint8),
        "scale": RNG.normal(size=(rows, 1)),  # float64, which the network has in float32
    }
    expected = model({"images": inputs["images"], "scale": inputs["scale"].astype(np.float32)}, training=False)
    found = Traced(model).answers(inputs, rows=10)
    assert {name: array.shape for name, array in found.items()} == {"sum": (rows,), "one": (rows, 1)}
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)


def test_weights_that_change_are_the_weights_that_answer() -> None:
    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="zeros")(x))
    network = Traced(model)
    assert network.answers(np.ones((3, 2)))[:, 0].tolist() == [0.0, 0.0, 0.0]
    model.set_weights([np.ones((2, 1)), np.ones(1)])
    assert network.answers(np.ones((3, 2)))[:, 0].tolist() == [3.0, 3.0, 3.0]

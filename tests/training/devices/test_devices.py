import subprocess
import sys

import pytest
import tensorflow as tf

from bookserve.training.devices import devices


def test_without_a_gpu_the_default_strategy_trains() -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this host has a GPU")
    assert devices.describe() == "CPU"
    assert devices.strategy().num_replicas_in_sync == 1


@pytest.mark.parametrize(("gpus", "replicas", "words"), [(1, 1, "1 GPU (A)"), (2, 2, "2 GPUs (A, B)")])
def test_every_gpu_of_the_host_is_used(monkeypatch: pytest.MonkeyPatch, gpus: int, replicas: int, words: str) -> None:
    found = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(gpus)]
    grown = []

    class Mirrored:
        num_replicas_in_sync = gpus

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: found)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, _: grown.append(gpu))
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", Mirrored)
    names = iter("AB")
    monkeypatch.setattr(devices, "_mirrored", devices._mirrored.__wrapped__)  # the false one stays nowhere
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"device_name": next(names)})
    assert devices.strategy().num_replicas_in_sync == replicas
    assert grown == found
    assert devices.describe() == words


SPLIT = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bookserve.training import run
from bookserve.training.datasets import digit_sample
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.models import mnist
config = mnist.Config(epochs=3, batch=32, filters_1=4, filters_2=4, hidden=8, dropout=0.0)
split = LabelledImages(*digit_sample.draw(193, seed=0))
data = ImageSplits(split, split, split, None)
losses = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    run.make_repeatable(0)
    with strategy.scope():
        model = mnist.build_model(config)
        history = mnist.train(model, data, config, 0, [])
    losses.append(history["loss"] + history["val_loss"])
assert np.allclose(*losses, atol=2e-4), losses  # rounding, which Adam enlarges
print("replicas", strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_two_replicas_train_as_one_does() -> None:
    done = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("replicas 2")


IN_TURN = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bookserve.training.devices import devices
from bookserve.training.datasets import digit_sample, tox21 as molecules
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.models import mnist
from bookserve.training.models.tox21 import model as tox21
digits = LabelledImages(*digit_sample.draw(97, seed=0))
random = np.random.default_rng(0)
inputs = {
    "fingerprint": (random.random((97, 1024)) < 0.1).astype(np.uint8),
    "counts": random.integers(0, 9, (97, 2215)).astype(np.uint8),
    "descriptors": random.normal(size=(97, 201)).astype(np.float32),
}
tested = molecules.Split(inputs, random.integers(0, 2, (97, 12)).astype(np.float32))
lenet = mnist.Config(epochs=1, batch=32, filters_1=4, filters_2=4, hidden=8)
small = tox21.Config(epochs=1, batch=32, hidden=(8,), normalise=False, memory=0)
for model, config, data in (
    (mnist, lenet, ImageSplits(digits, digits, digits, None)),
    (tox21, small, molecules.Molecules(tested, tested, tested, None)),
):
    strategy = devices._mirrored()
    with strategy.scope():
        history = model.train(model.build_model(config), data, config, 0, [])
    assert np.isfinite(history["loss"]).all()
print("replicas", strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_models_that_are_trained_in_turn_share_the_replicas() -> None:
    done = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "replicas 2" in done.stdout

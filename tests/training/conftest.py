import pytest

from bookserve.training.datasets import mnist as mnist_data
from bookserve.training.models import mnist


def pytest_configure(config: pytest.Config) -> None:
    # Keras 3.15 reads TensorFlow variables in a way that numpy 2.4 calls deprecated.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile `smoke` on a few hundred drawn digits and a small network: a training of about a second."""
    monkeypatch.setattr(mnist_data, "SAMPLE_TRAIN_ROWS", 300)
    monkeypatch.setattr(mnist_data, "SAMPLE_TEST_ROWS", 60)
    tiny = mnist.Config(epochs=2, batch=32, filters_1=4, filters_2=8, hidden=16)
    monkeypatch.setitem(mnist.CONFIGS["standard"], "smoke", tiny)

from collections import deque
from collections.abc import Callable, Iterator

import pytest
from matplotlib.figure import Figure

from bookserve.training.datasets import mnist as mnist_data
from bookserve.training.models import mnist
from bookserve.training.tuning import search
from bookserve.training.tuning.workers import Outcome, TrainingTask


def pytest_configure(config: pytest.Config) -> None:
    # Keras 3.15 reads TensorFlow variables in a way that numpy 2.4 calls deprecated.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


_SAVE = Figure.savefig


@pytest.fixture(scope="package", autouse=True)
def _undrawn() -> Iterator[None]:
    """A training's images are empty files, which saves a fifth of its time, where no test asks for `drawn`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path: path.write_bytes(b""))
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are drawn, for tests that look at them."""
    monkeypatch.setattr(Figure, "savefig", _SAVE)


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile `smoke` on a few hundred drawn digits and a small network: a training of about a second."""
    monkeypatch.setattr(mnist_data, "SAMPLE_TRAIN_ROWS", 300)
    monkeypatch.setattr(mnist_data, "SAMPLE_TEST_ROWS", 60)
    tiny = mnist.Config(epochs=2, batch=32, filters_1=4, filters_2=8, hidden=16)
    monkeypatch.setitem(mnist.CONFIGS["standard"], "smoke", tiny)


@pytest.fixture
def pretend_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TrainingTask], Outcome]], None]:
    """Has a search ask a function instead of processes that train."""

    def install(answer: Callable[[TrainingTask], Outcome]) -> None:
        class Pretence:
            def __init__(self, count: int) -> None:
                self._count = count
                self._tasks: deque[TrainingTask] = deque()

            def __enter__(self) -> "Pretence":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            @property
            def free(self) -> bool:
                return len(self._tasks) < self._count

            @property
            def busy(self) -> bool:
                return bool(self._tasks)

            def start(self, task: TrainingTask) -> None:
                assert self.free
                self._tasks.append(task)

            def wait(self) -> list[tuple[TrainingTask, Outcome]]:
                task = self._tasks.popleft()
                return [(task, answer(task))]

        monkeypatch.setattr(search, "WorkerPool", Pretence)

    return install

import multiprocessing

import pytest

from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import linear
from bookserve.training.tuning.workers import TrainingTask, WorkerPool

TASK = TrainingTask(0, "linear", linear.Config(epochs=2, steps=3), DataRequest("sample"), seed=0, figure="val_loss")


@pytest.mark.slow
def test_a_process_that_dies_costs_its_task_and_no_more() -> None:
    with WorkerPool(1) as pool:
        assert pool.free
        assert not pool.busy
        pool.start(TASK)
        assert not pool.free
        (process,) = multiprocessing.active_children()
        process.kill()
        ((task, outcome),) = pool.wait()
        assert task == TASK
        assert outcome.failure == "its process ended with status -9: out of memory?"
        pool.start(TASK)
        ((_, outcome),) = pool.wait()
        assert outcome.failure == ""
        assert len(outcome.values) == 2
        assert outcome.values[1] < outcome.values[0]
        (process,) = multiprocessing.active_children()
        for wrong, failure in (
            (
                TrainingTask(1, "linear", linear.Config(epochs=1, learning_rate=1e30), TASK.request, 0, "val_loss"),
                "diverged",
            ),
            (TrainingTask(2, "linear", TASK.config, TASK.request, 0, "accuracy"), "KeyError: 'accuracy'"),
        ):
            pool.start(wrong)
            ((task, outcome),) = pool.wait()
            assert task == wrong
            assert failure in outcome.failure
            assert outcome.values == ()
        pool.start(TASK)  # the process is still good after failures
        ((_, outcome),) = pool.wait()
        assert outcome.failure == ""
        assert multiprocessing.active_children() == [process]
        process.kill()
        process.join()
        pool.start(TASK)  # one that died while it had nothing to do is replaced
        ((_, outcome),) = pool.wait()
        assert outcome.failure == ""
        pool.start(TASK)
    assert multiprocessing.active_children() == []

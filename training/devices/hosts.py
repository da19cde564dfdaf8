"""Training on many hosts at once: who takes part, what the first host tells the others, and the loop over all of them.

`TF_CONFIG` names the hosts, as everywhere in TensorFlow. Each runs the same command; the gradients of a step are summed
over all of them (`tf.distribute.MultiWorkerMirroredStrategy`). Keras's own `fit` cannot do that in Keras 3 (issue 20585
of keras-team/keras), so the loop over epochs and steps is here; the step is Keras's.

When a host dies, the next exchange fails on every other one within about ten seconds: `LOST` is what is raised then.
"""

import functools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bookserve.training.errors import TrainingError

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""What an exchange with a host that is gone raises."""

WAIT_SECONDS = 600  # for the other hosts at the start
JOBS = ("chief", "worker")  # in the order in which TensorFlow numbers their hosts
EXAMPLE = '{"cluster": {"worker": ["one:12345", "two:12345"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """The addresses of all hosts, and which of them this one is. The first one keeps the run."""

    addresses: tuple[str, ...]
    place: int

    @property
    def others(self) -> str:
        """The addresses of the other hosts in one line."""
        return ", ".join(self.addresses[: self.place] + self.addresses[self.place + 1 :])


def cluster() -> Cluster | None:
    """What TF_CONFIG says; None where it is not set, or names this host alone.

    Raises:
        TrainingError: it is not JSON of the form that TensorFlow defines, or names hosts of another kind.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise TrainingError(f"TF_CONFIG is not JSON ({error}): it should look like {EXAMPLE}") from error
    jobs, task = (content.get(name) if isinstance(content, dict) else None for name in ("cluster", "task"))
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise TrainingError(f"TF_CONFIG has no 'cluster' or no 'task': it should look like {EXAMPLE}")
    strange = sorted(set(jobs) - set(JOBS))
    if strange:
        raise TrainingError(f"TF_CONFIG names hosts of the kind '{strange[0]}': only {' and '.join(JOBS)} train here")
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not all(_is_address(address) for address in addresses):
            raise TrainingError(f"TF_CONFIG: '{job}' is no list of HOST:PORT: it should look like {EXAMPLE}")
    hosts = [(job, number) for job in JOBS for number in range(len(jobs.get(job, [])))]
    if not hosts:
        raise TrainingError(f"TF_CONFIG names no worker: it should look like {EXAMPLE}")
    here = (task.get("type"), task.get("index"))
    if here not in hosts:
        known = ", ".join(f"{job} {number}" for job, number in hosts)
        raise TrainingError(f"TF_CONFIG: the task is {here[0]} {here[1]}, the cluster has {known}")
    addresses = tuple(jobs[job][number] for job, number in hosts)
    return Cluster(addresses, hosts.index(here)) if len(hosts) > 1 else None


@functools.cache
def join(cluster: Cluster) -> tf.distribute.Strategy:
    """The strategy over all hosts, once every one of them is there; a process can take part in one cluster only.

    Raises:
        TrainingError: this host's port is taken, or another one did not come or was lost meanwhile.
    """
    try:
        _meet(cluster)
        handler = signal.getsignal(signal.SIGTERM)
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # TensorFlow has put its own, after which nothing ends
        return strategy
    except (tf.errors.OpError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"{cluster.addresses[cluster.place]} cannot join {cluster.others} ({reason}): start all hosts again"
        ) from error


def from_first(content: bytes) -> bytes:
    """What the first host passes here, on every host; all must call it. Alone, a host gets back what it passes.

    Raises:
        LOST: a host is gone.
    """
    here = cluster()
    if here is None:
        return content
    size = int(_value_of_first(here, np.array([len(content)]))[0])
    if size == 0:
        return b""  # TensorFlow's broadcast of an empty tensor ends the process
    words = np.zeros(-(-size // 8), np.int64)
    if here.place == 0:
        words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
    return _value_of_first(here, words).tobytes()[:size]


def fit(
    model: keras.Model,
    batches: tf.data.Dataset,
    epochs: range,
    steps: int,
    valid: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """What `model.fit` does, over the devices and hosts of the current strategy: each takes its rows of every batch.

    Raises:
        LOST: a host is gone.
    """
    strategy = tf.distribute.get_strategy()
    for batch in batches.take(1):
        model._symbolic_build(data_batch=batch)  # noqa: SLF001 - as Keras's fit does: the metrics get their variables

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def train_step(batch: Any) -> None:
        strategy.run(model.train_step, args=(batch,))

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def test_step(batch: Any) -> None:
        strategy.run(test_replica, args=batch)

    def test_replica(x: Any, y: Any) -> Any:
        def test() -> int:
            model.test_step((x, y))
            return 0

        return tf.cond(tf.shape(y)[0] > 0, test, lambda: 0)  # of a short batch a host may get no row

    rest = iter(strategy.experimental_distribute_dataset(_shared_by_rows(batches)))
    whole = strategy.experimental_distribute_dataset(_shared_by_rows(valid))
    watchers = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs.stop, steps=steps)
    model.stop_training = False
    watchers.on_train_begin()
    for epoch in epochs:
        model.reset_metrics()
        watchers.on_epoch_begin(epoch)
        for step in range(steps):
            watchers.on_train_batch_begin(step)
            train_step(next(rest))
            watchers.on_train_batch_end(step)
        logs = _figures(model)
        model.reset_metrics()
        watchers.on_test_begin()
        for batch in whole:
            test_step(batch)
        figures = _figures(model)
        watchers.on_test_end(figures)
        logs |= {f"val_{name}": value for name, value in figures.items()}
        watchers.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    watchers.on_train_end()


def _figures(model: keras.Model) -> dict[str, float]:
    return {name: float(value) for name, value in model.get_metrics_result().items()}


def _shared_by_rows(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Each batch is split over the hosts, instead of each file or each host making other batches."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def _value_of_first(cluster: Cluster, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`values` of the first host: a new variable begins everywhere with the value that it has there."""
    with join(cluster).scope():
        return np.asarray(tf.Variable(values).numpy())


def _meet(cluster: Cluster) -> None:
    """Wait until every other host listens at its port, and listen at this one's meanwhile.

    TensorFlow's own wait, which comes after, lasts for hours and hears neither Ctrl-C nor SIGTERM.
    """
    port = int(cluster.addresses[cluster.place].rpartition(":")[2])
    missing = [address for place, address in enumerate(cluster.addresses) if place != cluster.place]
    end = time.monotonic() + WAIT_SECONDS
    with socket.create_server(("", port)):
        while missing:
            missing = [address for address in missing if not _listens(address)]
            if missing and time.monotonic() > end:
                raise TrainingError(
                    f"waited {WAIT_SECONDS} s for {', '.join(missing)}: start the same command on every host"
                )
            time.sleep(0.2 if missing else 0)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    return host != "" and port.isascii() and port.isdigit() and 0 < int(port) < 2**16

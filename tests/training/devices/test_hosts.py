import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training import run
from bookserve.training.devices import devices, hosts
from bookserve.training.errors import TrainingError
from bookserve.training.loop.batches import row_order
from model_servers import free_port, wait_until

SECONDS = 800  # for two processes that share a busy machine
TWO = {"worker": ["one:1", "two:2"]}


def tf_config(jobs: Any, kind: Any = "worker", index: Any = 0) -> str:
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize("text", [None, "", tf_config({"worker": ["one:1"]}), tf_config({"chief": ["one:1"]}, "chief")])
def test_a_host_may_be_alone(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert hosts.cluster() is None
    assert hosts.from_first(b"as it was") == b"as it was"


@pytest.mark.parametrize(
    ("text", "addresses", "place", "others"),
    [
        (tf_config(TWO), ("one:1", "two:2"), 0, "two:2"),
        (tf_config(TWO, index=1), ("one:1", "two:2"), 1, "one:1"),
        (tf_config(TWO | {"chief": ["zero:3"]}, index=1), ("zero:3", "one:1", "two:2"), 2, "zero:3, one:1"),
    ],
)
def test_hosts_are_numbered_as_tensorflow_does(
    monkeypatch: pytest.MonkeyPatch, text: str, addresses: tuple[str, ...], place: int, others: str
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    found = hosts.cluster()
    assert found == hosts.Cluster(addresses, place)
    assert found.others == others
    assert devices.describe().endswith(f" on each of {len(addresses)} hosts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cluster", "is not JSON .*it should look like"),
        ("[]", "has no 'cluster' or no 'task'"),
        ('{"cluster": {"worker": ["one:1"]}}', "has no 'cluster' or no 'task'"),
        (tf_config({}), "names no worker"),
        (tf_config({"worker": []}), "names no worker"),
        (tf_config(TWO | {"ps": ["three:3"]}), "of the kind 'ps': only chief and worker"),
        (tf_config({"worker": "one:1"}), "'worker' is no list of HOST:PORT"),
        (tf_config({"worker": ["one", "two:2"]}), "'worker' is no list of HOST:PORT"),
        (tf_config({"worker": ["one:1", "two:65536"]}), "'worker' is no list of HOST:PORT"),
        (tf_config({"worker": ["one:1", "two:²"]}), "'worker' is no list of HOST:PORT"),
        (tf_config(TWO, index=2), "the task is worker 2, the cluster has worker 0, worker 1"),
        (tf_config(TWO, "chief"), "the task is chief 0"),
        (tf_config(TWO, index=[]), "the task is worker"),
    ],
)
def test_a_wrong_tf_config_is_explained(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(TrainingError, match=f"^TF_CONFIG.*{message}"):
        devices.strategy()


@pytest.mark.slow
def test_the_loop_over_hosts_does_what_keras_does() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(61, 5)).astype(np.float32), rng.integers(0, 2, (61, 1)).astype(np.float32)
    valid = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)  # the last batch has one row
    batches = row_order(60, 10, 0, 0, 3).map(lambda rows, _: (tf.gather(x, rows), tf.gather(y, rows)))
    results = []
    for over_hosts in (False, True):
        run.make_repeatable(0)
        layers = [
            keras.Input((5,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss, metrics=["accuracy"])
        history = keras.callbacks.History()
        if over_hosts:
            hosts.fit(model, batches, range(3), 6, valid, [history])
        else:
            model.fit(
                batches,
                epochs=3,
                steps_per_epoch=6,
                validation_data=valid,
                callbacks=[history],
                shuffle=False,
                verbose=0,
            )
        results.append((history.history, model.get_weights()))
    (expected, expected_weights), (figures, weights) = results
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        assert figures[name] == pytest.approx(values, rel=1e-6), name
    for value, other in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(value, other)


HOST = """
import os, signal, sys
from bookserve.clients.command_line import main
from bookserve.training import run
from bookserve.training.datasets import mnist as mnist_data
from bookserve.training.models import mnist
mnist_data.SAMPLE_TRAIN_ROWS, mnist_data.SAMPLE_TEST_ROWS = 300, 61
tiny = mnist.Config(epochs=3, batch=32, filters_1=4, filters_2=8, hidden=16, dropout=0.0)
mnist.CONFIGS["standard"]["smoke"] = tiny
class Killer(run.StopOnNan):
    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch
    def on_train_batch_end(self, batch, logs=None):
        if self.now == 1 and batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
if sys.argv.pop(1) == "die":
    run.StopOnNan = Killer
main()
"""


def start(place: int | None, addresses: list[str], runs_dir: Path, mode: str = "live") -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    if place is not None:
        environment["TF_CONFIG"] = tf_config({"worker": addresses}, index=place)
    options = ["train", "mnist", "--profile=smoke", "--data=sample", f"--runs-dir={runs_dir}"]
    command = [sys.executable, "-W", "ignore", "-c", HOST, mode, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def free_addresses() -> list[str]:
    return [f"127.0.0.1:{free_port()}" for _ in range(2)]


def train_on_two(addresses: list[str], folder: Path, dies: int | None = None) -> list[tuple[int, str]]:
    """Status and output of each host; each has a runs folder of its own."""
    pair = [start(n, addresses, folder / str(n), "die" if n == dies else "live") for n in range(2)]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in pair]
        return [(process.returncode, output) for process, output in zip(pair, outputs, strict=True)]
    finally:
        for process in pair:
            process.kill()


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.glob("mnist/*/metrics.json")
    content: dict[str, dict[str, float]] = json.loads(path.read_text())
    return content


def assert_alike(some: dict[str, dict[str, float]], others: dict[str, dict[str, float]]) -> None:
    for split, figures in others.items():
        assert some[split] == pytest.approx(figures, abs=2e-4), split


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("two")
    for status, output in train_on_two(free_addresses(), folder):
        assert status == 0, output[-2000:]
        assert f"{folder}/0/mnist/" in output.splitlines()[-1]
    assert not (folder / "1").exists()
    return metrics(folder / "0")


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_two_hosts_train_as_one_does(undisturbed: dict[str, dict[str, float]], tmp_path: Path) -> None:
    alone = start(None, [], tmp_path)
    output, _ = alone.communicate(timeout=SECONDS)
    assert alone.returncode == 0, output[-2000:]
    assert_alike(undisturbed, metrics(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("dies", [0, 1])
def test_a_host_is_killed_and_all_are_started_again(
    undisturbed: dict[str, dict[str, float]], tmp_path: Path, dies: int
) -> None:
    addresses = free_addresses()
    ended = train_on_two(addresses, tmp_path, dies)
    assert ended[dies][0] == -signal.SIGKILL
    status, output = ended[1 - dies]
    assert status == 1, output[-2000:]
    assert output.splitlines()[-1].startswith(f"Error: mnist lost one of {addresses[dies]}: ")
    for status, output in train_on_two(addresses, tmp_path):
        assert status == 0, output[-2000:]
    assert_alike(metrics(tmp_path / "0"), undisturbed)
    (config,) = (tmp_path / "0" / "mnist").glob("*/config.json")
    assert json.loads(config.read_text())["devices"].endswith(" on each of 2 hosts")


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_a_host_that_waits_for_others_can_be_stopped(tmp_path: Path) -> None:
    addresses = free_addresses()
    waiting = start(0, addresses, tmp_path)
    try:
        wait_until(lambda: hosts._listens(addresses[0]), "the host listens", SECONDS)
        waiting.send_signal(signal.SIGTERM)
        output, _ = waiting.communicate(timeout=SECONDS)
    finally:
        waiting.kill()
    assert waiting.returncode == 128 + signal.SIGTERM
    assert f"mnist: host 1 of 2, with {addresses[1]}" in output
    assert output.splitlines()[-1] == "train: stopped; the same command starts anew"


def test_a_host_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = free_addresses()
    monkeypatch.setattr(hosts, "WAIT_SECONDS", 0)
    with pytest.raises(TrainingError, match=f"waited 0 s for {other}: start the same command on every host"):
        hosts.join(hosts.Cluster((here, other), 0))


def test_a_port_that_is_taken_is_named() -> None:
    here, other = free_addresses()
    taken = socket.create_server(("", int(here.rpartition(":")[2])))
    with taken, pytest.raises(TrainingError, match=f"^{here} cannot join {other} .*in use"):
        hosts.join(hosts.Cluster((here, other), 0))

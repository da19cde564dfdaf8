import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from bookserve.training import run
from bookserve.training.models.tictactoe import a3c

SETTINGS = a3c.Settings(steps=2, learning_rate=0.05, entropy_weight=0.0)
ACTIONS = 3


class Bandit:
    """Games of one action that is paid by its number; the observation says nothing, the state counts the actions."""

    def __init__(self, games: int, pay: tuple[float, ...] = (0.0, 1.0, 0.2)) -> None:
        self._games = games
        self._pay = pay

    def start(self, seed: Any) -> Any:
        return tf.zeros([self._games], tf.int64)

    def observe(self, state: Any) -> Any:
        return tf.ones([self._games, 2])

    def step(self, state: Any, actions: Any, policy: a3c.Policy, seed: Any) -> tuple[Any, Any, Any]:
        assert policy(self.observe(state)).shape == (self._games, ACTIONS)
        return state + 1, tf.gather(tf.constant(self._pay), actions), tf.ones([self._games], tf.bool)


def network() -> keras.Model:
    run.make_repeatable(0)
    seen = keras.Input((2,), dtype="float32")
    logits = keras.layers.Dense(ACTIONS, kernel_initializer="zeros")(seen)
    value = keras.layers.Dense(1)(seen)[:, 0]
    return keras.Model(seen, {"logits": logits, "value": value})


def probabilities(model: keras.Model) -> npt.NDArray[np.float32]:
    logits = model(np.ones((1, 2), np.float32))["logits"]
    found: npt.NDArray[np.float32] = tf.nn.softmax(logits).numpy()[0]
    return found


def test_advantages_of_a_hand_computed_example() -> None:
    rollout = a3c.Rollout(
        observations=tf.zeros((3, 2, 1)),
        actions=tf.zeros((3, 2), tf.int64),
        rewards=tf.constant([[0.0, 0], [0, 10], [5, 0]]),
        ended=tf.constant([[False, False], [False, True], [True, False]]),
        values=tf.constant([[1.0, 4], [2, 6], [3, 2], [9, 8]]),
    )
    # discount 0.5, lambda 0.5. Game 0 ends with the last step: surprises 0, -0.5, 2. Game 1 ends with the second step:
    # surprises -1, 4, and 2 for the next game, which borrows 0.5 * 8 from the value that follows the rollout.
    expected = [[0 + 0.25 * (-0.5 + 0.25 * 2), -1 + 0.25 * 4], [-0.5 + 0.25 * 2, 4], [2, 2]]
    np.testing.assert_allclose(a3c.estimate_advantages(rollout, 0.5, 0.5), expected)
    np.testing.assert_allclose(a3c.estimate_advantages(rollout, 0.5, 0.0), [[0, -1], [-0.5, 4], [2, 2]])
    returns = a3c.estimate_advantages(rollout, 1.0, 1.0) + rollout.values[:-1]
    np.testing.assert_allclose(returns, [[5, 10], [5, 10], [5, 8]])  # with both 1: the sum of the rewards to come


def test_the_loss_of_a_hand_computed_example() -> None:
    logits = tf.math.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    advantages, returns, values = tf.constant([2.0, -1.0]), tf.constant([3.0, 0.0]), tf.constant([1.0, 1.0])
    settings = a3c.Settings(value_weight=0.1, entropy_weight=0.01)
    loss = a3c.actor_critic_loss(logits, values, tf.constant([0, 2]), advantages, returns, settings)
    policy_loss = -(2 * np.log(0.5) - np.log(0.25)) / 2
    entropy = 1.5 * np.log(2)
    assert float(loss) == pytest.approx(policy_loss + 0.1 * (4 + 1) / 2 - 0.01 * entropy, rel=1e-5)


@pytest.mark.parametrize(("advantage", "sign"), [(1.0, 1), (-1.0, -1)])
def test_the_gradient_makes_a_good_action_more_probable_and_a_bad_one_less(advantage: float, sign: int) -> None:
    logits = tf.Variable([[0.0, 0.0, -1e9]])
    with tf.GradientTape() as tape:
        loss = a3c.actor_critic_loss(logits, [0.0], [0], tf.constant([advantage]), tf.constant([0.0]), SETTINGS)
    downhill = -tape.gradient(loss, logits).numpy()[0]
    assert np.sign(downhill).tolist() == [sign, -sign, 0]


def test_the_entropy_bonus_pulls_towards_an_undecided_policy_and_leaves_impossible_actions() -> None:
    logits = tf.Variable([[2.0, 0.0, -1e9]])
    settings = replace(SETTINGS, entropy_weight=1.0)
    with tf.GradientTape() as tape:
        loss = a3c.actor_critic_loss(logits, [0.0], [0], tf.constant([0.0]), tf.constant([0.0]), settings)
    downhill = -tape.gradient(loss, logits).numpy()[0]
    assert downhill[0] < 0 < downhill[1]
    assert downhill[2] == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bandit_is_learnt(workers: int) -> None:
    model = network()
    updates: list[int] = []
    learner = a3c.A3C(model, SETTINGS, Bandit(16), total_updates=200 * workers)
    learner.run(workers, 100, (0,), lambda number, update: updates.append(number))
    assert updates == list(range(100 * workers))
    assert learner.shared.updates == 100 * workers
    assert probabilities(model)[1] > 0.9
    value = float(model(np.ones((1, 2), np.float32))["value"][0])
    assert value == pytest.approx(1.0, abs=0.15)


def test_the_same_seed_gives_the_same_parameters_although_workers_run_in_parallel() -> None:
    def trained(seed: int) -> list[npt.NDArray[np.float32]]:
        model = network()
        a3c.A3C(model, SETTINGS, Bandit(8), total_updates=30).run(3, 10, (seed,), lambda number, update: None)
        weights: list[npt.NDArray[np.float32]] = model.get_weights()
        return weights

    first, again, other = trained(1), trained(1), trained(2)
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any((left != right).any() for left, right in zip(first, other, strict=True))


def test_a_worker_that_begins_late_has_the_parameters_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = threading.Event()

    class Late(ThreadPoolExecutor):
        def submit(self, work: Callable[[int], None], worker: int) -> Future[None]:  # type: ignore[override]
            def begin() -> None:
                assert worker == 0 or shared.wait(60)
                work(worker)

            return super().submit(begin)

    def trained() -> list[npt.NDArray[np.float32]]:
        model = network()
        a3c.A3C(model, SETTINGS, Bandit(8), total_updates=30).run(2, 3, (0,), lambda number, update: shared.set())
        weights: list[npt.NDArray[np.float32]] = model.get_weights()
        return weights

    expected = trained()
    shared.clear()
    monkeypatch.setattr(a3c, "ThreadPoolExecutor", Late)
    for left, right in zip(expected, trained(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_what_a_run_leaves_is_all_that_the_next_one_needs() -> None:
    def learner() -> tuple[keras.Model, a3c.A3C]:
        model = network()
        return model, a3c.A3C(model, SETTINGS, Bandit(8), total_updates=40)

    model, whole = learner()
    for epoch in range(2):
        whole.run(2, 10, (0, epoch), lambda number, update: None)
    _, first = learner()
    first.run(2, 10, (0, 0), lambda number, update: None)
    other_model, second = learner()
    second.shared = a3c.restored(first.shared.arrays())
    second.run(2, 10, (0, 1), lambda number, update: None)
    assert second.shared.updates == 40
    for left, right in zip(model.get_weights(), other_model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_the_learning_rate_goes_to_its_final_value_in_a_line() -> None:
    def moved(final: float, updates: int) -> float:
        settings = replace(SETTINGS, learning_rate=0.1, final_learning_rate=final, value_weight=0.0)
        model = network()
        learner = a3c.A3C(model, settings, Bandit(64), total_updates=1)
        learner.run(1, updates, (0,), lambda number, update: None)
        (kernel,) = (weights for weights in model.get_weights() if weights.shape == (2, ACTIONS))
        longest: float = np.abs(kernel).max()  # it began as zeros
        return longest

    assert moved(0.0, 3) == moved(0.0, 1) == pytest.approx(0.1, rel=1e-3)  # Adam's first step is as long as the rate
    assert moved(0.1, 3) == pytest.approx(0.3, rel=0.1)


def test_workers_hold_parameters_that_are_as_old_as_there_are_others() -> None:
    """While worker 0 hands in, worker 1 is at work with the parameters of its own last turn, not the newest ones."""
    playing = threading.Barrier(2, timeout=60)

    def meet() -> None:
        playing.wait()  # passes only when both workers play at the same time

    class Meeting(Bandit):
        def step(self, state: Any, actions: Any, policy: a3c.Policy, seed: Any) -> tuple[Any, Any, Any]:
            with tf.control_dependencies([tf.py_function(meet, [], [])]):
                return super().step(state, actions, policy, seed)

    learner = a3c.A3C(network(), replace(SETTINGS, steps=1), Meeting(4), total_updates=10)
    numbers: list[int] = []
    learner.run(2, 5, (0,), lambda number, update: numbers.append(number))
    assert numbers == list(range(10))


def test_the_failure_of_one_worker_ends_all_and_is_told() -> None:
    class Broken(Bandit):
        def step(self, state: Any, actions: Any, policy: a3c.Policy, seed: Any) -> tuple[Any, Any, Any]:
            with tf.control_dependencies(
                [tf.debugging.assert_less(state, tf.constant(12, tf.int64), "the dice are gone")]
            ):
                return super().step(state, actions, policy, seed)

    model = network()
    before = model.get_weights()
    learner = a3c.A3C(model, SETTINGS, Broken(4), total_updates=10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the dice are gone"):
        learner.run(3, 1_000, (0,), lambda number, update: None)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_a_watcher_raises_ends_the_run() -> None:
    def on_update(number: int, update: a3c.Update) -> None:
        assert update.game_rewards.shape == (SETTINGS.steps * 4,)
        if number == 3:
            raise KeyboardInterrupt

    learner = a3c.A3C(network(), SETTINGS, Bandit(4), total_updates=10)
    with pytest.raises(KeyboardInterrupt):
        learner.run(2, 1_000, (0,), on_update)

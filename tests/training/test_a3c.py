import threading
from dataclasses import replace

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from bookserve.training import a3c, run

SETTINGS = a3c.Settings(steps=4, learning_rate=0.05, entropy_weight=0.0)
ACTIONS = 3


class Bandit:
    """Games of one action that is paid by its number; the observation says nothing."""

    def __init__(self, games: int, pay: tuple[float, ...] = (0.0, 1.0, 0.2)) -> None:
        self._games = games
        self._pay = np.array(pay, np.float32)

    @property
    def observations(self) -> a3c.Floats:
        return np.ones((self._games, 2), np.float32)

    def step(self, actions: npt.NDArray[np.int64], policy: a3c.Policy) -> tuple[a3c.Floats, npt.NDArray[np.bool_]]:
        assert policy(self.observations).shape == (self._games, ACTIONS)
        return self._pay[actions], np.ones(self._games, np.bool_)


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
        observations=np.zeros((3, 2, 1), np.float32),
        actions=np.zeros((3, 2), np.int64),
        rewards=np.array([[0, 0], [0, 10], [5, 0]], np.float32),
        ended=np.array([[0, 0], [0, 1], [1, 0]], np.bool_),
        values=np.array([[1, 4], [2, 6], [3, 2], [9, 8]], np.float32),
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
    learner = a3c.A3C(model, SETTINGS, [Bandit(16) for _ in range(workers)], seed=0, total_updates=200 * workers)
    learner.run(100, lambda number, update: updates.append(number))
    assert updates == list(range(100 * workers))
    assert probabilities(model)[1] > 0.9
    value = float(model(np.ones((1, 2), np.float32))["value"][0])
    assert value == pytest.approx(1.0, abs=0.15)


def test_the_same_seed_gives_the_same_parameters_although_workers_run_in_parallel() -> None:
    def trained(seed: int) -> list[npt.NDArray[np.float32]]:
        model = network()
        learner = a3c.A3C(model, SETTINGS, [Bandit(8) for _ in range(3)], seed, total_updates=30)
        learner.run(10, lambda number, update: None)
        weights: list[npt.NDArray[np.float32]] = model.get_weights()
        return weights

    first, again, other = trained(1), trained(1), trained(2)
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any((left != right).any() for left, right in zip(first, other, strict=True))


def test_workers_hold_parameters_that_are_as_old_as_there_are_others() -> None:
    """While worker 0 hands in, worker 1 is at work with the parameters of its own last turn, not the newest ones."""
    playing = threading.Barrier(2, timeout=60)

    class Meeting(Bandit):
        def step(self, actions: npt.NDArray[np.int64], policy: a3c.Policy) -> tuple[a3c.Floats, npt.NDArray[np.bool_]]:
            playing.wait()  # passes only when both workers play at the same time
            return super().step(actions, policy)

    learner = a3c.A3C(network(), SETTINGS, [Meeting(4), Meeting(4)], seed=0, total_updates=10)
    numbers: list[int] = []
    learner.run(5, lambda number, update: numbers.append(number))
    assert numbers == list(range(10))


def test_the_failure_of_one_worker_ends_all_and_is_told() -> None:
    class Broken(Bandit):
        def step(self, actions: npt.NDArray[np.int64], policy: a3c.Policy) -> tuple[a3c.Floats, npt.NDArray[np.bool_]]:
            raise ValueError("the dice are gone")

    model = network()
    before = model.get_weights()
    learner = a3c.A3C(model, SETTINGS, [Bandit(4), Broken(4), Bandit(4)], seed=0, total_updates=10)
    with pytest.raises(ValueError, match="the dice are gone"):
        learner.run(1_000, lambda number, update: None)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_a_watcher_raises_ends_the_run() -> None:
    def on_update(number: int, update: a3c.Update) -> None:
        assert update.game_rewards.shape == (SETTINGS.steps * 4,)
        if number == 3:
            raise KeyboardInterrupt

    learner = a3c.A3C(network(), SETTINGS, [Bandit(4), Bandit(4)], seed=0, total_updates=10)
    with pytest.raises(KeyboardInterrupt):
        learner.run(1_000, on_update)


def test_a_weight_of_zero_is_never_drawn() -> None:
    rng = np.random.default_rng(0)
    weights = np.tile([0.0, 0.2, 0.0, 0.6, 0.2, 0.0], (20_000, 1))
    shares = np.bincount(a3c.draw(weights, rng), minlength=6) / 20_000
    np.testing.assert_allclose(shares, weights[0], atol=0.015)
    assert shares[[0, 2, 5]].tolist() == [0, 0, 0]

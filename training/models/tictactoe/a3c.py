"""Asynchronous advantage actor-critic: workers play and learn in parallel and share one set of parameters.

Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning" (2016), with the generalised advantage
estimation of Schulman et al. (2016); chapter 8 of the book. What differs from the book's code, and why:

- A worker plays many boards at once, and a whole rollout (acting, the games, advantages, gradients) is one compiled
  call, in which a thread holds no interpreter lock. `python tests/benchmarks/training.py tictactoe` measures both.
- Workers hand in their gradients in a fixed order. Nobody waits for a common step: while one hands in, the others play
  and differentiate with parameters that are as many updates old as there are other workers. But the order no longer
  hangs on the scheduler, so the same seed gives the same parameters.
- Parameters are immutable lists of tensors. A worker that takes them cannot see a half-written update, as it could with
  the book's shared variables.
- Gradients are clipped, as in the paper.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bookserve.training.loop.checkpoint import Arrays, pack, unpack

Policy = Callable[[Any], Any]
"""Observations float32 [n, ...] -> logits of the actions float32 [n, actions]."""

ADAM_DECAY_1, ADAM_DECAY_2, ADAM_EPSILON = 0.9, 0.999, 1e-7  # Kingma and Ba (2014)


class Environment(Protocol):
    """Many games that are played at once, as functions of tensors; a game that ends is replaced by a new one.

    The state of the games is one tensor [n, ...], a row a game. Seeds are int32 [2], for stateless random operations:
    all chance comes from them.
    """

    def start(self, seed: Any) -> Any:
        """The state of new games."""

    def observe(self, state: Any) -> Any:
        """What the learner sees of each game: float32 [n, ...]."""

    def step(self, state: Any, actions: Any, policy: Policy, seed: Any) -> tuple[Any, Any, Any]:
        """One action int64 [n] in each game: the next state, rewards float32 [n], and which games ended, bool [n].

        `policy` is the learner as the worker knows it, for environments in which it plays against itself.
        """


@dataclass(frozen=True)
class Settings:
    """The numbers of the algorithm; "chapter 8" marks those of the book."""

    steps: int = 8  # actions in each game between two updates (chapter 8: up to 20)
    discount: float = 0.99  # worth of a reward one action later (chapter 8)
    advantage_lambda: float = 0.98  # 0 trusts the value of the next state alone, 1 only rewards (chapter 8)
    value_weight: float = 1.0  # of the squared error of the values in the loss (chapter 8)
    entropy_weight: float = 0.01  # of the bonus for an undecided policy (chapter 8)
    learning_rate: float = 1e-3  # Adam's at the first update (chapter 8)
    final_learning_rate: float = 0.0  # at the last one, reached in a line (chapter 8: 1e-3, it never falls)
    clip_norm: float = 1.0  # longest gradient that is applied
    reward_unit: float = 1.0  # rewards are measured in this unit inside the loss


@dataclass(frozen=True)
class Update:
    """The figures of one update: the loss before it and the rewards of all games that ended on the way to it."""

    loss: float
    game_rewards: npt.NDArray[np.float32]  # (games,): the reward of the action with which each game ended


@dataclass(frozen=True)
class Shared:
    """What the workers share: parameters, Adam's two moments of each, and the number of updates so far."""

    parameters: list[Any]
    means: list[Any]
    squares: list[Any]
    updates: int

    def arrays(self) -> Arrays:
        """All of it, for a checkpoint."""
        lists = {"parameters": self.parameters, "means": self.means, "squares": self.squares}
        return {"updates": np.array(self.updates)} | {
            key: value for name, tensors in lists.items() for key, value in pack(name, tensors).items()
        }


def restored(arrays: Arrays) -> Shared:
    """What `Shared.arrays` was called on."""
    with tf.device("CPU"):
        parameters, means, squares = (
            [tf.constant(array) for array in unpack(name, arrays)] for name in ("parameters", "means", "squares")
        )
    return Shared(parameters, means, squares, int(arrays["updates"]))


class A3C:
    """Trains a model in place.

    The model maps observations float32 [n, ...] to {"logits": float32 [n, actions], "value": float32 [n]}, must have no
    weights that are not trained, and gives impossible actions a logit so low that their probability is 0.

    `total_updates` is where the learning rate arrives at its final value. `shared` is all that a run leaves for the
    next one.
    """

    def __init__(self, model: keras.Model, settings: Settings, environment: Environment, total_updates: int) -> None:
        self._model = model
        self._settings = settings
        self._environment = environment
        self._total_updates = total_updates
        with tf.device("CPU"):
            parameters = [tf.constant(weights) for weights in model.get_weights()]
        zeros = [tf.zeros_like(parameter) for parameter in parameters]
        self.shared = Shared(parameters, zeros, zeros, 0)
        seed, number = tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.float32)
        # Traced here and not in the threads, each of which would do it again.
        self._start = _traced(self._start_eagerly, seed)
        self._learn = _traced(self._learn_eagerly, parameters, self._start.structured_outputs, seed)
        self._apply = _traced(self._apply_eagerly, parameters, zeros, zeros, parameters, number, number)

    def run(self, workers: int, rounds: int, seed: tuple[int, ...], on_update: Callable[[int, Update], None]) -> None:
        """New games, `rounds` updates of every worker, then write the parameters into the model.

        All chance comes from `seed`, so that a run with the same `shared` before it ends with the same after it.

        `on_update` is called after each update with its number from 0, never twice at the same time. What it or a
        worker raises ends the run.
        """
        streams = np.random.SeedSequence(seed).generate_state(workers).view(np.int32)
        turns = _Turns(workers)
        first = self.shared.parameters  # for all, however late a thread begins

        def work(worker: int) -> None:
            with turns.stop_on_error():
                parameters = first
                games = self._start(tf.constant([streams[worker], rounds]))
                for number in range(rounds):
                    chance = tf.constant([streams[worker], number])
                    gradients, loss, games, rewards, ended = self._learn(parameters, games, chance)
                    update = Update(float(loss), rewards.numpy()[ended.numpy()])
                    with turns.take(worker):
                        self._share(gradients)
                        parameters = self.shared.parameters
                        on_update(number * workers + worker, update)

        with ThreadPoolExecutor(workers, thread_name_prefix="a3c") as pool:
            pending = [pool.submit(work, worker) for worker in range(workers)]
            with turns.stop_on_error():
                for future in pending:
                    future.result()
        self._model.set_weights([parameter.numpy() for parameter in self.shared.parameters])

    def _share(self, gradients: list[Any]) -> None:
        """One step of Adam on the shared parameters."""
        shared, settings = self.shared, self._settings
        done = min(1.0, shared.updates / self._total_updates)
        rate = settings.learning_rate + done * (settings.final_learning_rate - settings.learning_rate)
        parameters, means, squares = self._apply(
            shared.parameters,
            shared.means,
            shared.squares,
            gradients,
            tf.constant(shared.updates + 1, tf.float32),
            tf.constant(rate, tf.float32),
        )
        self.shared = Shared(parameters, means, squares, shared.updates + 1)

    def _start_eagerly(self, seed: Any) -> Any:
        with tf.device("CPU"):  # steps this small take longer to reach a GPU than to compute
            return self._environment.start(seed)

    def _learn_eagerly(self, parameters: list[Any], games: Any, seed: Any) -> tuple[list[Any], Any, Any, Any, Any]:
        """Play one rollout and differentiate the loss over it.

        Returns the clipped gradients, the loss, the games as they stand, rewards [steps, n] and what ended [steps, n].
        """
        settings = self._settings
        with tf.device("CPU"):
            rollout, games = self._play(parameters, games, seed)
            advantages = estimate_advantages(rollout, settings.discount, settings.advantage_lambda)  # (steps, n)
            returns = advantages + rollout.values[:-1]
            rows = tf.size(rollout.actions)
            with tf.GradientTape() as tape:
                tape.watch(parameters)
                observations = tf.reshape(rollout.observations, [rows, *rollout.observations.shape[2:]])
                logits, values = self._predict(parameters, observations)
                loss = actor_critic_loss(
                    logits,
                    values / settings.reward_unit,
                    tf.reshape(rollout.actions, [rows]),
                    tf.reshape(advantages, [rows]) / settings.reward_unit,
                    tf.reshape(returns, [rows]) / settings.reward_unit,
                    settings,
                )
            gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, parameters), settings.clip_norm)
            return gradients, loss, games, rollout.rewards, rollout.ended

    def _play(self, parameters: list[Any], games: Any, seed: Any) -> tuple["Rollout", Any]:
        """`steps` actions in every game, drawn from the policy; and the games as they stand then."""
        environment = self._environment
        observations, actions, rewards, ended, values = [], [], [], [], []

        def policy(seen: Any) -> Any:
            return self._predict(parameters, seen)[0]

        for chance in tf.unstack(tf.random.split(seed, self._settings.steps)):
            own, others = tf.unstack(tf.random.split(chance))
            seen = environment.observe(games)
            logits, expected = self._predict(parameters, seen)
            chosen = tf.random.stateless_categorical(logits, 1, own)[:, 0]
            games, earned, over = environment.step(games, chosen, policy, others)
            observations.append(seen)
            actions.append(chosen)
            rewards.append(earned)
            ended.append(over)
            values.append(expected)
        values.append(self._predict(parameters, environment.observe(games))[1])
        return Rollout(*(tf.stack(seen) for seen in (observations, actions, rewards, ended, values))), games

    def _predict(self, parameters: list[Any], observations: Any) -> tuple[Any, Any]:
        outputs, _ = self._model.stateless_call(parameters, [], observations, training=True)
        return outputs["logits"], outputs["value"]

    def _apply_eagerly(
        self, parameters: list[Any], means: list[Any], squares: list[Any], gradients: list[Any], number: Any, rate: Any
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Adam: the new parameters and moments."""
        with tf.device("CPU"):
            means = [ADAM_DECAY_1 * m + (1 - ADAM_DECAY_1) * g for m, g in zip(means, gradients, strict=True)]
            squares = [
                ADAM_DECAY_2 * s + (1 - ADAM_DECAY_2) * tf.square(g) for s, g in zip(squares, gradients, strict=True)
            ]
            rate *= tf.sqrt(1 - ADAM_DECAY_2**number) / (1 - ADAM_DECAY_1**number)
            parameters = [
                p - rate * m / (tf.sqrt(s) + ADAM_EPSILON) for p, m, s in zip(parameters, means, squares, strict=True)
            ]
            return parameters, means, squares


@dataclass(frozen=True)
class Rollout:
    """What a worker saw in one stretch of `steps` actions in `n` games, step by step, as tensors."""

    observations: Any  # float32 (steps, n, ...)
    actions: Any  # int64 (steps, n)
    rewards: Any  # float32 (steps, n)
    ended: Any  # bool (steps, n)
    values: Any  # float32 (steps + 1, n): what the learner expected, and expects of what comes after


def actor_critic_loss(logits: Any, values: Any, actions: Any, advantages: Any, returns: Any, settings: Settings) -> Any:
    """The loss of a batch, a scalar: policy gradient, squared error of the values, and the entropy bonus.

    `logits` is float32 [n, actions]; `values`, `advantages` and `returns` are float32 [n] in units of the reward;
    `actions` is int64 [n].
    """
    log_probabilities = tf.nn.log_softmax(logits)  # (n, actions)
    taken = tf.gather(log_probabilities, actions, batch_dims=1)  # (n,)
    policy_loss = -tf.reduce_mean(tf.stop_gradient(advantages) * taken)
    value_loss = tf.reduce_mean(tf.square(returns - values))
    entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_probabilities) * log_probabilities, axis=1))
    return policy_loss + settings.value_weight * value_loss - settings.entropy_weight * entropy


def estimate_advantages(rollout: Rollout, discount: float, advantage_lambda: float) -> Any:
    """How much better each action did than expected, float32 [steps, n]: generalised advantage estimation.

    Schulman et al. (2016), equation 16, cut off where the rollout or the game ends: what follows an ended game belongs
    to the next one.
    """
    going_on = 1 - tf.cast(rollout.ended, tf.float32)
    surprises = rollout.rewards + discount * going_on * rollout.values[1:] - rollout.values[:-1]
    advantages = []
    later = tf.zeros_like(surprises[0])
    for step in reversed(range(surprises.shape[0])):
        later = surprises[step] + discount * advantage_lambda * going_on[step] * later
        advantages.append(later)
    return tf.stack(advantages[::-1])


def _traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function compiled for arguments like these."""
    return tf.function(function, autograph=False).get_concrete_function(*arguments)


class _Turns:
    """Lets the workers in one after another, round after round, until one fails."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._next = 0
        self._stopped = False
        self._changed = threading.Condition()

    @contextmanager
    def take(self, worker: int) -> Iterator[None]:
        """Wait for this worker's turn and hold it.

        Raises:
            _StoppedError: another worker has failed, so that the turn will never come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next == worker)
            if self._stopped:
                raise _StoppedError
            yield
            self._next = (worker + 1) % self._workers
            self._changed.notify_all()

    @contextmanager
    def stop_on_error(self) -> Iterator[None]:
        """Whatever is raised inside makes the other workers end as well, quietly."""
        try:
            yield
        except _StoppedError:
            return
        except BaseException:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            raise


class _StoppedError(Exception):
    """A worker's turn will never come."""

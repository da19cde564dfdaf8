"""Asynchronous advantage actor-critic: workers play and learn in parallel and share one set of parameters.

Source: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning" (2016), with the generalised advantage
estimation of Schulman et al. (2016); chapter 8 of the book. What differs from the book's code, and why:

- A worker plays many boards at once, and acting and learning are one compiled call each. One board a worker costs as
  many calls for a hundredth of the moves. `bookserve.training.models.tictactoe` names the measured rates.
- Workers hand in their gradients in a fixed order. Nobody waits for a common step: while one hands in, the others play
  and differentiate with parameters that are as many updates old as there are other workers. But the order no longer
  hangs on the scheduler, so the same seed gives the same parameters.
- Parameters are immutable lists of tensors. A worker that takes them cannot see a half-written update, as it could with
  the book's shared variables.
- Gradients are clipped, as in the paper.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

Floats = npt.NDArray[np.float32]
Policy = Callable[[Floats], npt.NDArray[np.floating]]
"""Observations [n, ...] -> probabilities of the actions [n, actions]."""

ADAM_DECAY_1, ADAM_DECAY_2, ADAM_EPSILON = 0.9, 0.999, 1e-7  # Kingma and Ba (2014)


class Environment(Protocol):
    """Many games that are played at once by one worker; a game that ends is replaced by a new one."""

    @property
    def observations(self) -> Floats:
        """What the learner sees of each game: float32 [n, ...]."""

    def step(self, actions: npt.NDArray[np.int64], policy: Policy) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """One action in each game: rewards float32 [n], and which games ended with it, bool [n].

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
    learning_rate: float = 1e-3  # Adam's at the first update (chapter 8); it falls to 0 in a line
    clip_norm: float = 1.0  # longest gradient that is applied
    reward_unit: float = 1.0  # rewards are measured in this unit inside the loss


@dataclass(frozen=True)
class Rollout:
    """What a worker saw in one stretch of `steps` actions in `n` games, step by step."""

    observations: Floats  # (steps, n, ...)
    actions: npt.NDArray[np.int64]  # (steps, n)
    rewards: Floats  # (steps, n)
    ended: npt.NDArray[np.bool_]  # (steps, n)
    values: Floats  # (steps + 1, n): what the learner expected, and expects of what comes after


@dataclass(frozen=True)
class Update:
    """The figures of one update: the loss before it and the rewards of all games that ended on the way to it."""

    loss: float
    game_rewards: Floats  # (games,): the reward of the action with which each game ended


@dataclass(frozen=True)
class _Shared:
    """What the workers share: parameters, Adam's two moments of each, and the number of updates so far."""

    parameters: list[Any]
    means: list[Any]
    squares: list[Any]
    updates: int


class A3C:
    """Trains a model in place.

    The model maps observations float32 [n, ...] to {"logits": float32 [n, actions], "value": float32 [n]}, must have no
    weights that are not trained, and gives impossible actions a logit so low that their probability is 0.

    One environment and one seed a worker. `total_updates` is where the learning rate arrives at 0.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Settings,
        environments: Sequence[Environment],
        seed: int,
        total_updates: int,
    ) -> None:
        self._model = model
        self._settings = settings
        self._total_updates = total_updates
        with tf.device("CPU"):
            parameters = [tf.constant(weights) for weights in model.get_weights()]
        zeros = [tf.zeros_like(parameter) for parameter in parameters]
        self._shared = _Shared(parameters, zeros, zeros, 0)
        self._act = tf.function(self._act_eagerly, reduce_retracing=True)
        self._differentiate = tf.function(self._differentiate_eagerly, reduce_retracing=True)
        self._apply = tf.function(self._apply_eagerly, reduce_retracing=True)
        seeds = np.random.SeedSequence(seed).spawn(len(environments))
        self._workers = [
            _Worker(environment, np.random.default_rng(child), self._shared.parameters)
            for environment, child in zip(environments, seeds, strict=True)
        ]

    def run(self, rounds: int, on_update: Callable[[int, Update], None]) -> None:
        """`rounds` updates of every worker, then write the parameters into the model.

        `on_update` is called after each update with its number from 0, never twice at the same time. What it or a
        worker raises ends the run.
        """
        turns = _Turns(len(self._workers))

        def work(index: int) -> None:
            worker = self._workers[index]
            with turns.stop_on_error():
                for number in range(rounds):
                    gradients, update = self._learn(worker)
                    with turns.take(index):
                        self._share(gradients)
                        worker.parameters = self._shared.parameters
                        on_update(number * len(self._workers) + index, update)

        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="a3c") as pool:
            pending = [pool.submit(work, index) for index in range(len(self._workers))]
            with turns.stop_on_error():
                for future in pending:
                    future.result()
        self._model.set_weights([parameter.numpy() for parameter in self._shared.parameters])

    def _learn(self, worker: "_Worker") -> tuple[list[Any], Update]:
        """Play one rollout and differentiate the loss over it, with the parameters that the worker holds."""
        settings = self._settings
        rollout = worker.play(settings.steps, self._act)
        advantages = estimate_advantages(rollout, settings.discount, settings.advantage_lambda)  # (steps, n)
        returns = advantages + rollout.values[:-1]
        gradients, loss = self._differentiate(
            worker.parameters,
            rollout.observations.reshape(-1, *rollout.observations.shape[2:]),
            rollout.actions.reshape(-1),
            advantages.reshape(-1) / np.float32(settings.reward_unit),
            returns.reshape(-1) / np.float32(settings.reward_unit),
        )
        return gradients, Update(float(loss), rollout.rewards[rollout.ended])

    def _share(self, gradients: list[Any]) -> None:
        """One step of Adam on the shared parameters."""
        shared = self._shared
        rate = self._settings.learning_rate * max(0.0, 1 - shared.updates / self._total_updates)
        parameters, means, squares = self._apply(
            shared.parameters,
            shared.means,
            shared.squares,
            gradients,
            tf.constant(shared.updates + 1, tf.float32),
            tf.constant(rate, tf.float32),
        )
        self._shared = _Shared(parameters, means, squares, shared.updates + 1)

    def _predict(self, parameters: list[Any], observations: Any) -> tuple[Any, Any]:
        outputs, _ = self._model.stateless_call(parameters, [], observations, training=True)
        return outputs["logits"], outputs["value"]

    def _act_eagerly(self, parameters: list[Any], observations: Any) -> tuple[Any, Any]:
        """Probabilities [n, actions] and values [n]."""
        with tf.device("CPU"):  # steps this small take longer to reach a GPU than to compute
            logits, values = self._predict(parameters, observations)
            return tf.nn.softmax(logits), values

    def _differentiate_eagerly(
        self, parameters: list[Any], observations: Any, actions: Any, advantages: Any, returns: Any
    ) -> tuple[list[Any], Any]:
        """Clipped gradients of the loss over rows [n], and the loss."""
        settings = self._settings
        with tf.device("CPU"):
            with tf.GradientTape() as tape:
                tape.watch(parameters)
                logits, values = self._predict(parameters, observations)
                loss = actor_critic_loss(logits, values / settings.reward_unit, actions, advantages, returns, settings)
            gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, parameters), settings.clip_norm)
            return gradients, loss

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


def estimate_advantages(rollout: Rollout, discount: float, advantage_lambda: float) -> Floats:
    """How much better each action did than expected, float32 [steps, n]: generalised advantage estimation.

    Schulman et al. (2016), equation 16, cut off where the rollout or the game ends: what follows an ended game belongs
    to the next one.
    """
    going_on = 1 - rollout.ended.astype(np.float32)
    surprises = rollout.rewards + discount * going_on * rollout.values[1:] - rollout.values[:-1]
    advantages = np.zeros_like(surprises)
    later = np.zeros_like(surprises[0])
    for step in reversed(range(len(surprises))):
        later = surprises[step] + discount * advantage_lambda * going_on[step] * later
        advantages[step] = later
    return advantages


def draw(probabilities: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One action a row, int64 [n], drawn with the weights of its row [n, actions]; a weight of 0 is never drawn."""
    sums = probabilities.astype(np.float64).cumsum(axis=1)
    thresholds = rng.random(len(sums)) * sums[:, -1]
    actions: npt.NDArray[np.int64] = (sums > thresholds[:, None]).argmax(axis=1)
    return actions


class _Worker:
    """One environment, one source of random numbers, and the parameters as they were when it last handed in."""

    def __init__(self, environment: Environment, rng: np.random.Generator, parameters: list[Any]) -> None:
        self.parameters = parameters
        self._environment = environment
        self._rng = rng

    def play(self, steps: int, act: Callable[[list[Any], Floats], tuple[Any, Any]]) -> Rollout:
        """`steps` actions in every game, drawn from the policy."""

        def policy(observations: Floats) -> npt.NDArray[np.floating]:
            probabilities: npt.NDArray[np.floating] = act(self.parameters, observations)[0].numpy()
            return probabilities

        observations, actions, rewards, ended, values = [], [], [], [], []
        for _ in range(steps):
            seen = self._environment.observations
            probabilities, expected = act(self.parameters, seen)
            chosen = draw(probabilities.numpy(), self._rng)
            earned, over = self._environment.step(chosen, policy)
            observations.append(seen)
            actions.append(chosen)
            rewards.append(earned)
            ended.append(over)
            values.append(expected.numpy())
        values.append(act(self.parameters, self._environment.observations)[1].numpy())
        return Rollout(np.stack(observations), np.stack(actions), np.stack(rewards), np.stack(ended), np.stack(values))


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

"""The environment in which a policy learns tic-tac-toe.

The policy plays both sides: in half of the games it moves first, and the board is always seen from the side to move.
Its opponent plays each move like the policy itself or, by chance, at random. An opponent that only moves at random, as
chapter 8's does, teaches to gamble: the best answer to it is beaten in four lines of the game tree as O. One that errs
in half of its moves is answered best by a policy that never loses and still earns the most that such a policy can.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from bookserve.training.models.tictactoe import rules
from bookserve.training.models.tictactoe import tree as trees
from bookserve.training.models.tictactoe.a3c import Policy


class Games:
    """An `a3c.Environment` of many games against an opponent that errs.

    The state of a game is the row of its position in the tree, so a move is a look-up and needs no rules. A game begins
    after 0 to `opening` random stones, so that the policy meets positions that its own play would avoid; 1 is chapter
    8's way, in which the opponent moves first in half of the games. `slips` is the fraction of the opponent's moves
    that are random.
    """

    def __init__(self, games: int, slips: float, opening: int) -> None:
        tree = trees.tree()
        self._games = games
        self._slips = slips
        with tf.device("CPU"):
            self._openings = tf.constant(trees.openings(tree, opening).cumsum())  # (p,)
            self._boards = tf.constant(tree.boards)
            self._after = tf.constant(tree.after)
            self._at_random = tf.constant(np.where(tree.legal, 0.0, -1e9), tf.float32)  # (p, 9) logits
            self._ongoing = tf.constant(tree.ongoing)
            self._beaten = tf.constant(tree.lost)

    def start(self, seed: Any) -> Any:
        """The positions after random openings, the learner to move: int64 [n]."""
        chances = tf.random.stateless_uniform([self._games], seed, maxval=self._openings[-1], dtype=tf.float64)
        return tf.searchsorted(self._openings, chances, side="right", out_type=tf.int64)

    def observe(self, state: Any) -> Any:
        """The boards: float32 [n, 3, 3, 2]."""
        return tf.gather(self._boards, state)

    def step(self, state: Any, actions: Any, policy: Policy, seed: Any) -> tuple[Any, Any, Any]:
        """The learner's move in each game and the opponent's reply."""
        seeds = tf.unstack(tf.random.split(seed, 4))
        waiting = self._move(state, actions)
        won = tf.gather(self._beaten, waiting)
        decided = ~tf.gather(self._ongoing, waiting)
        slips = tf.random.stateless_uniform([self._games, 1], seeds[0]) < self._slips
        logits = tf.where(slips, tf.gather(self._at_random, waiting), policy(self.observe(waiting)))  # (n, 9)
        replies = tf.random.stateless_categorical(logits, 1, seeds[1])[:, 0]
        answered = tf.where(decided, waiting, self._move(waiting, replies))
        lost = tf.gather(self._beaten, answered) & ~decided
        ended = ~tf.gather(self._ongoing, answered)
        results = tf.where(won, rules.WIN, tf.where(lost, rules.LOSS, rules.DRAW))
        rewards = tf.where(ended, results, 0.0)
        return tf.where(ended, self.start(seeds[2]), answered), rewards, ended

    def _move(self, state: Any, squares: Any) -> Any:
        return tf.gather(tf.gather(self._after, state), squares, batch_dims=1)

"""Tic-tac-toe as it is played: the environment in which a policy learns, and games between two players.

The policy plays both sides: in half of the games it moves first, and the board is always seen from the side to move.
Its opponent plays each move like the policy itself or, by chance, at random. An opponent that only moves at random, as
chapter 8's does, teaches to gamble: the best answer to it is beaten in four lines of the game tree as O. One that errs
in half of its moves is answered best by a policy that never loses and still earns the most that such a policy can.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bookserve.training import tictactoe_rules as rules
from bookserve.training.a3c import Floats, Policy, draw

Player = Callable[[rules.Boards], npt.NDArray[np.floating]]
"""Boards float32 [n, 3, 3, 2] -> weights of the moves [n, 9]."""


def random_player(boards: rules.Boards) -> npt.NDArray[np.floating]:
    """The same weight for every free square."""
    return rules.free(boards).astype(np.float64)


class Games:
    """An `a3c.Environment` of many games against an opponent that errs.

    A game begins after 0 to `opening` random stones, so that the policy meets positions that its own play would avoid;
    1 is chapter 8's way, in which the opponent moves first in half of the games. `slips` is the share of the
    opponent's moves that are random.
    """

    def __init__(self, games: int, slips: float, opening: int, rng: np.random.Generator) -> None:
        self._slips = slips
        self._opening = opening
        self._rng = rng
        self._boards = self._deal(games)

    @property
    def observations(self) -> Floats:
        """The boards, the learner to move: float32 [n, 3, 3, 2]."""
        return self._boards

    def step(self, actions: npt.NDArray[np.int64], policy: Policy) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The learner's move in each game and the opponent's reply: rewards float32 [n] and which games ended [n]."""
        boards = rules.place(self._boards, actions)
        won = rules.won(boards, rules.MINE)
        ended = won | rules.full(boards)
        rewards = np.where(won, rules.WIN, np.where(ended, rules.DRAW, 0.0)).astype(np.float32)
        waiting = np.flatnonzero(~ended)
        replies = rules.swap(boards[waiting])
        replies = rules.place(replies, self._reply(replies, policy))
        lost = rules.won(replies, rules.MINE)
        over = lost | rules.full(replies)
        rewards[waiting[over]] = np.where(lost[over], rules.LOSS, rules.DRAW)
        ended[waiting[over]] = True
        boards[waiting] = rules.swap(replies)
        boards[ended] = self._deal(int(ended.sum()))
        self._boards = boards
        return rewards, ended

    def _reply(self, boards: rules.Boards, policy: Policy) -> npt.NDArray[np.int64]:
        at_random = draw(random_player(boards), self._rng)
        on_purpose = draw(policy(boards), self._rng)
        return np.where(self._rng.random(len(boards)) < self._slips, at_random, on_purpose)

    def _deal(self, games: int) -> rules.Boards:
        """New games; one that its random opening already decides is begun with an empty board instead."""
        boards = rules.start(games)
        stones = self._rng.integers(0, self._opening + 1, games)
        for stone in range(self._opening):
            more = np.flatnonzero(stones > stone)
            squares = draw(random_player(boards[more]), self._rng)
            boards[more] = rules.swap(rules.place(boards[more], squares))
        decided = rules.won(boards, rules.MINE) | rules.won(boards, rules.THEIRS)
        boards[decided] = 0
        return boards


def play(first: Player, second: Player, games: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How `games` games end for `first`, who begins them: int64 [games] of 1 won, 0 drawn, -1 lost.

    Raises:
        IllegalMoveError: a player made a move that the rules forbid.
    """
    results = np.zeros(games, np.int64)
    running = np.arange(games)
    boards = rules.start(games)
    for stone in range(rules.SQUARES):
        if not len(running):
            break
        player, sign = ((first, 1), (second, -1))[stone % 2]
        boards = rules.place(boards, draw(player(boards), rng))
        won = rules.won(boards, rules.MINE)
        results[running[won]] = sign
        running, boards = running[~won], rules.swap(boards[~won])
    return results

"""Every game of tic-tac-toe that a player can come into, played by the rules alone: one for each choice of replies.

What `tree` computes over its table, this plays; neither knows of the other, so that they check each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bookserve.training.models.tictactoe import rules

Player = Callable[[rules.Boards], npt.NDArray[np.floating]]
"""Boards float32 [n, 3, 3, 2], seen from the player -> weights of its moves [n, 9]; it makes the heaviest one."""


@dataclass(frozen=True)
class Lines:
    """How the games end, in numbers of games, and what they earn on average."""

    won: int
    drawn: int
    lost: int
    illegal: int  # broken off at a move that the rules forbid
    reward: float  # the mean of the book's rewards where all replies are equally likely; an illegal move earns a loss

    @property
    def games(self) -> int:
        """The number of all games."""
        return self.won + self.drawn + self.lost + self.illegal


def play(player: Player, begins: bool) -> Lines:
    """All games of a player that moves first, as X, or second, as O."""
    boards, chances = rules.start(1), np.ones(1)  # the games that go on, and how likely each is
    won, drawn, lost, illegal = (np.zeros(0) for _ in range(4))  # the chances of the games that ended so
    for stone in range(rules.SQUARES):
        free = rules.free(boards)
        if (stone % 2 == 0) == begins:
            squares = player(boards).argmax(axis=1)
            allowed = free[np.arange(len(boards)), squares]
            illegal = np.append(illegal, chances[~allowed])
            boards, chances = rules.place(boards[allowed], squares[allowed]), chances[allowed]
            three = rules.won(boards, rules.MINE)
            won = np.append(won, chances[three])
        else:
            games, squares = np.nonzero(free)
            boards, chances = rules.place(boards[games], squares), (chances / free.sum(axis=1))[games]
            three = rules.won(boards, rules.MINE)
            lost = np.append(lost, chances[three])
        over = three | rules.full(boards)
        drawn = np.append(drawn, chances[over & ~three])
        boards, chances = rules.swap(boards[~over]), chances[~over]
    reward = rules.WIN * won.sum() + rules.DRAW * drawn.sum() + rules.LOSS * (lost.sum() + illegal.sum())
    return Lines(len(won), len(drawn), len(lost), len(illegal), float(reward))

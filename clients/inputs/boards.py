"""From a tic-tac-toe board as a person has it to the tensor that the model takes. X always begins."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PLAYERS = ("X", "O")
SQUARES = 9
EXAMPLE = "X.O/.X./..."

_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


class BoardError(ValueError):
    """A board that no game can come to, or on which nobody can move any more; the message says which."""


def parse(text: str) -> list[str]:
    """Reads rows such as "X.O/.X./..." as nine squares, row by row, each "X", "O" or "".

    A dot is a free square. BoardError for anything else.
    """
    rows = text.upper().split("/")
    if len(rows) != 3 or any(len(row) != 3 or set(row) - set("XO.") for row in rows):
        raise BoardError(
            f"{text[:40]!r} is no board: give three rows of X, O and . (free) with slashes between them, as {EXAMPLE}"
        )
    return ["" if square == "." else square for row in rows for square in row]


def to_move(board: Sequence[str]) -> str:
    """Whose turn it is on nine squares: "X" or "O".

    BoardError when the counts of X and O cannot come about in turns, when both have three in a row, or when the game
    is over.
    """
    crosses, noughts = board.count("X"), board.count("O")
    if crosses not in (noughts, noughts + 1):
        raise BoardError(f"there are {crosses} X and {noughts} O, but X begins and they take turns")
    winners = [player for player in PLAYERS if _has_line(board, player)]
    if len(winners) == 2:
        raise BoardError("both have three in a row")
    player = "X" if crosses == noughts else "O"
    if winners:
        if winners[0] == player:
            raise BoardError(f"{player} has three in a row already, yet the other moved on")
        raise BoardError(f"the game is over: {winners[0]} has won")
    if crosses + noughts == SQUARES:
        raise BoardError("the game is over: a draw")
    return player


def planes(board: Sequence[str]) -> npt.NDArray[np.float32]:
    """Nine squares, each "X", "O" or "", as float32 [3,3,2]: plane 0 is the side to move, 1 the other.

    BoardError as `to_move`.
    """
    mine = to_move(board)
    other = PLAYERS[1 - PLAYERS.index(mine)]
    sides = [[float(square == side) for square in board] for side in (mine, other)]
    return np.array(sides, np.float32).T.reshape(3, 3, 2)


def without_each(board: Sequence[str]) -> list[tuple[int, npt.NDArray[np.float32]]]:
    """The number of each square that has a mark, with the planes without that mark, for the same side to move.

    That is what a model is asked to tell which mark mattered, as Puri et al. take away one piece at a time ("Explain
    your move", 2020). No game comes to such a board, but the planes hold it. BoardError as `to_move`.
    """
    whole = planes(board)
    found = []
    for square in (number for number, mark in enumerate(board) if mark):
        fewer = whole.copy()
        fewer[divmod(square, 3)] = 0.0
        found.append((square, fewer))
    return found


def _has_line(board: Sequence[str], player: str) -> bool:
    return any(all(board[square] == player for square in line) for line in _LINES)

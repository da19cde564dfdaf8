"""The rules of tic-tac-toe as pure functions over many boards at once; the ground that self-play stands on.

Boards are float32 [n, 3, 3, 2], always seen from the side to move: plane `MINE` holds its stones, plane `THEIRS` those
of the other side. Squares are numbered 0 to 8, row by row.

Chapter 8's environment looks for a win along the rows twice and never along the columns; here all eight lines count.
"""

import numpy as np
import numpy.typing as npt

Boards = npt.NDArray[np.float32]

SIDE = 3
SQUARES = SIDE * SIDE
MINE, THEIRS = 0, 1

WIN, DRAW, LOSS = 10.0, 5.0, -3.0
"""What a finished game earns (chapter 8). The book also gives 0.1 for every move that ends nothing, which pays for
dawdling; its own mean reward leaves that out, and so does everything here."""

LINES: tuple[tuple[int, int, int], ...] = (
    *((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    *((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    *((0, 4, 8), (2, 4, 6)),
)

_ON_LINE = np.zeros((SQUARES, len(LINES)), np.float32)
for _number, _line in enumerate(LINES):
    _ON_LINE[_line, _number] = 1


class IllegalMoveError(ValueError):
    """A stone was put where there is one already, or beside the board."""


def start(games: int) -> Boards:
    """`games` empty boards."""
    return np.zeros((games, SIDE, SIDE, 2), np.float32)


def free(boards: Boards) -> npt.NDArray[np.bool_]:
    """Which squares are empty: bool [n, 9]."""
    empty: npt.NDArray[np.bool_] = boards.sum(axis=-1).reshape(-1, SQUARES) == 0
    return empty


def full(boards: Boards) -> npt.NDArray[np.bool_]:
    """On which boards no square is empty: bool [n]."""
    filled: npt.NDArray[np.bool_] = boards.sum(axis=(1, 2, 3)) == SQUARES
    return filled


def won(boards: Boards, plane: int) -> npt.NDArray[np.bool_]:
    """On which boards the stones of `plane` fill a row, a column or a diagonal: bool [n]."""
    stones = boards[..., plane].reshape(-1, SQUARES)
    complete: npt.NDArray[np.bool_] = (stones @ _ON_LINE == SIDE).any(axis=1)
    return complete


def place(boards: Boards, squares: npt.NDArray[np.int64]) -> Boards:
    """New boards with one stone more of the side to move on each, still seen from that side. `squares` is int64 [n].

    Raises:
        IllegalMoveError: a square is taken, or no number from 0 to 8.
    """
    rows = np.arange(len(boards))
    outside = (squares < 0) | (squares >= SQUARES)
    if outside.any():
        raise IllegalMoveError(f"square {squares[outside][0]} is not on the board: squares are 0 to {SQUARES - 1}")
    taken = ~free(boards)[rows, squares]
    if taken.any():
        raise IllegalMoveError(f"square {squares[taken][0]} of board {rows[taken][0]} is taken")
    after = boards.copy()
    after.reshape(-1, SQUARES, 2)[rows, squares, MINE] = 1
    return after


def swap(boards: Boards) -> Boards:
    """The same boards seen from the other side."""
    return np.ascontiguousarray(boards[..., ::-1])

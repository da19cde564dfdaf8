import numpy as np
import pytest

from bookserve.clients.inputs import boards

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


def test_rows_are_read() -> None:
    assert boards.parse("x.O/.X./...") == ["X", "", "O", "", "X", "", "", "", ""]
    assert boards.parse(boards.EXAMPLE)


@pytest.mark.parametrize("text", ["", "XO", "X.O/.X./..", "X.O/.X./.../", "X.O.X....", "X.O/.Z./..."])
def test_other_texts_are_refused_with_an_example(text) -> None:
    with pytest.raises(boards.BoardError, match=r"X\.O/\.X\./\.\.\."):
        boards.parse(text)


def test_the_first_plane_is_the_side_to_move() -> None:
    planes = boards.planes(boards.parse("X.O/.X./..."))
    assert (planes.dtype, planes.shape) == (np.float32, (3, 3, 2))
    assert np.argwhere(planes[:, :, 0]).tolist() == [[0, 2]]
    assert np.argwhere(planes[:, :, 1]).tolist() == [[0, 0], [1, 1]]
    planes = boards.planes(boards.parse("X.O/.../..."))
    assert np.argwhere(planes[:, :, 0]).tolist() == [[0, 0]]
    assert boards.planes([""] * 9).sum() == 0


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("winner", boards.PLAYERS)
def test_every_line_ends_the_game_for_both_players(line, winner) -> None:
    board = [winner if square in line else "" for square in range(9)]
    loser = boards.PLAYERS[1 - boards.PLAYERS.index(winner)]
    free = [square for square in range(9) if square not in line]
    # Two marks of the loser, or three that are no line, so that the loser is to move.
    for square in _harmless(free, 2 if winner == "X" else 3):
        board[square] = loser
    with pytest.raises(boards.BoardError, match=f"{winner} has won"):
        boards.to_move(board)


def _harmless(free, count):
    chosen = free[:count]
    return [*free[: count - 1], free[-1]] if tuple(chosen) in LINES else chosen


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("XX./.../...", "2 X and 0 O"),
        ("O../.../...", "0 X and 1 O"),
        ("XXX/OOO/...", "both"),
        ("XXX/OO./O..", "moved on"),
        ("XOX/XOO/OXX", "draw"),
    ],
)
def test_boards_on_which_nobody_can_move_are_refused(text, reason) -> None:
    with pytest.raises(boards.BoardError, match=reason):
        boards.planes(boards.parse(text))

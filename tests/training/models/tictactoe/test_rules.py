import numpy as np
import pytest

from bookserve.training.models.tictactoe import rules


def board(drawing: str) -> rules.Boards:
    """A board float32 [1, 3, 3, 2] from nine characters: m the side to move, t the other, . empty."""
    squares = drawing.replace(" ", "")
    planes = [[square == side for side in "mt"] for square in squares]
    return np.array(planes, np.float32).reshape(1, 3, 3, 2)


def test_there_are_eight_lines_of_three() -> None:
    assert len(set(rules.LINES)) == 8
    steps = sorted({(b - a, c - b) for a, b, c in rules.LINES})
    assert steps == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [sum(square in line for line in rules.LINES) for square in range(9)] == [3, 2, 3, 2, 4, 2, 3, 2, 3]


@pytest.mark.parametrize("plane", [rules.MINE, rules.THEIRS])
@pytest.mark.parametrize("line", rules.LINES)
def test_every_line_wins_for_both_sides(line: tuple[int, int, int], plane: int) -> None:
    boards = rules.start(1)
    boards.reshape(9, 2)[list(line), plane] = 1
    assert rules.won(boards, plane).tolist() == [True]
    assert rules.won(boards, 1 - plane).tolist() == [False]
    assert rules.won(rules.swap(boards), 1 - plane).tolist() == [True]
    for square in line:
        broken = boards.copy()
        broken.reshape(9, 2)[square] = [plane, 1 - plane]  # the other side holds this square
        assert not rules.won(broken, plane).any()


def test_three_stones_that_are_no_line_do_not_win() -> None:
    winners = 0
    for code in range(512):
        stones = [code >> square & 1 for square in range(9)]
        boards = rules.start(1)
        boards.reshape(9, 2)[:, rules.MINE] = stones
        expected = any(all(stones[square] for square in line) for line in rules.LINES)
        assert rules.won(boards, rules.MINE)[0] == expected
        winners += sum(stones) == 3 and expected
    assert winners == 8


def test_free_and_full() -> None:
    boards = np.concatenate([board("mt. ... ..m"), board("mtm tmt tmt"), rules.start(1)])
    assert rules.free(boards)[0].tolist() == [False, False, True, True, True, True, True, True, False]
    assert not rules.free(boards)[1].any()
    assert rules.full(boards).tolist() == [False, True, False]


def test_place_puts_a_stone_of_the_side_to_move_and_leaves_the_board_that_it_got() -> None:
    before = np.concatenate([board("t.. ... ..."), board("... .t. ...")])
    untouched = before.copy()
    after = rules.place(before, np.array([8, 0]))
    np.testing.assert_array_equal(after, np.concatenate([board("t.. ... ..m"), board("m.. .t. ...")]))
    np.testing.assert_array_equal(before, untouched)
    np.testing.assert_array_equal(rules.swap(after)[:1], board("m.. ... ..t"))


@pytest.mark.parametrize(
    ("square", "message"),
    [(0, "square 0 of board 1 is taken"), (4, "square 4 of board 1 is taken"), (9, "9 is not on"), (-1, "-1 is not")],
)
def test_an_illegal_move_is_named(square: int, message: str) -> None:
    boards = np.concatenate([rules.start(1), board("t.. .m. ...")])
    with pytest.raises(rules.IllegalMoveError, match=message):
        rules.place(boards, np.array([2, square]))

import numpy as np
import numpy.typing as npt
import pytest

from bookserve.training.models.tictactoe import lines as tictactoe_lines
from bookserve.training.models.tictactoe import rules
from bookserve.training.models.tictactoe import tree as trees


def player(table: trees.Policy) -> tictactoe_lines.Player:
    """One that plays a table over the tree."""
    rows = {board.tobytes(): row for row, board in enumerate(trees.tree().boards)}
    return lambda boards: table[[rows[board.tobytes()] for board in boards]]


def first_free(boards: rules.Boards) -> npt.NDArray[np.floating]:
    return rules.free(boards).astype(np.float64)


def test_perfect_play_never_loses_and_earns_what_the_tree_says() -> None:
    tree = trees.tree()
    table = trees.greedy(tree, trees.optimal(tree))
    for begins, exact, counted in zip(
        (True, False),
        trees.walk(tree, table, trees.uniform(tree)),
        trees.walk(tree, table, trees.every_move(tree)),
        strict=True,
    ):
        lines = tictactoe_lines.play(player(table), begins)
        assert (lines.lost, lines.illegal) == (0, 0)
        assert (lines.won, lines.drawn) == (counted.won, counted.drawn)
        assert lines.reward == pytest.approx(exact.reward)


def test_one_spoiled_move_is_counted() -> None:
    """As O, the far corner is answered to a stone in a corner, which loses."""
    tree = trees.tree()
    table = trees.greedy(tree, trees.optimal(tree))
    corner_taken = tree.after[0, 0]
    spoiled = table.copy()
    spoiled[corner_taken] = np.eye(rules.SQUARES)[8]
    whole, bad = (tictactoe_lines.play(player(policy), begins=False) for policy in (table, spoiled))
    assert whole.lost == 0 < bad.lost
    assert bad.reward < whole.reward
    assert tictactoe_lines.play(player(spoiled), begins=True).lost == 0
    counted = trees.walk(tree, spoiled, trees.every_move(tree))[1]
    assert (bad.won, bad.drawn, bad.lost) == (counted.won, counted.drawn, counted.lost)


def test_a_player_of_the_first_free_square_as_the_tree_has_it() -> None:
    tree = trees.tree()
    counted = trees.walk(tree, trees.greedy(tree, rules.free(tree.boards)), trees.every_move(tree))
    for begins, results in zip((True, False), counted, strict=True):
        lines = tictactoe_lines.play(first_free, begins)
        assert (lines.won, lines.drawn, lines.lost) == (results.won, results.drawn, results.lost)
        assert lines.lost > 0
        assert lines.games == lines.won + lines.drawn + lines.lost


def test_illegal_moves_are_counted_and_end_the_game() -> None:
    def centre(boards: rules.Boards) -> npt.NDArray[np.floating]:
        return np.tile(np.eye(rules.SQUARES)[4], (len(boards), 1))

    lines = tictactoe_lines.play(centre, begins=True)  # every second move of it is on its own first stone
    assert (lines.won, lines.drawn, lines.lost, lines.illegal) == (0, 0, 0, 8)
    assert lines.reward == rules.LOSS
    as_o = tictactoe_lines.play(
        centre, begins=False
    )  # X takes the centre, or one of eight others and then one of seven
    assert as_o.illegal == 1 + 8 * 7

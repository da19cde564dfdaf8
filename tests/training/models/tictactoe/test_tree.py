import numpy as np
import pytest

from bookserve.training.models.tictactoe import rules
from bookserve.training.models.tictactoe import tree as trees


@pytest.fixture(scope="module")
def tree() -> trees.Tree:
    return trees.tree()


def test_the_tree_has_the_known_counts(tree: trees.Tree) -> None:
    assert len(tree.boards) == 5_478
    assert int(tree.ongoing.sum()) == 4_520
    beaten_by_x = tree.lost & (tree.stones % 2 == 1)
    assert (int(beaten_by_x.sum()), int(tree.lost.sum())) == (626, 626 + 316)
    assert int((~tree.ongoing & ~tree.lost).sum()) == 16
    games, _ = trees.walk(tree, trees.every_move(tree), trees.every_move(tree))
    assert (games.won, games.lost, games.drawn) == (131_184, 77_904, 46_080)
    assert games.won + games.lost + games.drawn == 255_168


def test_a_move_leads_where_the_rules_say(tree: trees.Tree) -> None:
    rng = np.random.default_rng(0)
    rows, squares = np.nonzero(tree.legal)
    some = rng.choice(len(rows), 500, replace=False)
    rows, squares = rows[some], squares[some]
    expected = rules.swap(rules.place(tree.boards[rows], squares))
    np.testing.assert_array_equal(tree.boards[tree.after[rows, squares]], expected)


def test_perfect_play_draws_and_is_never_beaten(tree: trees.Tree) -> None:
    perfect = trees.optimal(tree)
    for results in trees.walk(tree, perfect, perfect):
        assert results.drawn == pytest.approx(1)
    for results in trees.walk(tree, perfect, trees.every_move(tree)):
        assert results.lost == 0
        assert results.won > 0


def test_the_book_s_rewards_give_the_known_means(tree: trees.Tree) -> None:
    random = trees.uniform(tree)
    chance = np.mean([results.reward for results in trees.walk(tree, random, random)])
    best = np.mean([results.reward for results in trees.walk(tree, trees.best_response(tree, random), random)])
    assert chance == pytest.approx(3.69, abs=0.005)
    assert best == pytest.approx(9.79, abs=0.005)


def test_the_best_answer_to_a_random_player_can_be_beaten(tree: trees.Tree) -> None:
    response = trees.best_response(tree, trees.uniform(tree))
    as_x, as_o = trees.walk(tree, response, trees.every_move(tree))
    assert as_x.lost == 0
    assert as_o.lost > 0


def test_the_answer_to_an_opponent_that_errs_half_the_time_never_loses(tree: trees.Tree) -> None:
    erring = (trees.uniform(tree) + trees.optimal(tree)) / 2
    response = trees.best_response(tree, erring)
    assert [results.lost for results in trees.walk(tree, response, trees.every_move(tree))] == [0, 0]
    rewards = [results.reward for results in trees.walk(tree, response, trees.uniform(tree))]
    assert np.mean(rewards) > 0.995 * 9.79


def test_greedy_makes_the_most_probable_move_even_an_illegal_one(tree: trees.Tree) -> None:
    table = np.zeros((len(tree.boards), rules.SQUARES))
    table[:, 4] = 1
    policy = trees.greedy(tree, table)
    assert policy[tree.ongoing].argmax(axis=1).tolist() == [4] * 4_520
    assert not policy[~tree.ongoing].any()
    with pytest.raises(rules.IllegalMoveError, match=r"the player gives weight to \d+ moves that the rules forbid"):
        trees.walk(tree, policy, trees.uniform(tree))


def test_reward_is_the_same_for_probabilities_and_counts() -> None:
    assert trees.Results(0.5, 0.25, 0.25).reward == trees.Results(2, 1, 1).reward == pytest.approx(5.5)


def test_openings_are_every_number_of_random_stones_alike(tree: trees.Tree) -> None:
    two = trees.openings(tree, 2)
    assert two[0] == pytest.approx(1 / 3)
    np.testing.assert_allclose(two[tree.stones == 1], 1 / 27)
    np.testing.assert_allclose(two[tree.stones == 2], 1 / 3 / 72)
    six = trees.openings(tree, 6)
    assert six.sum() == pytest.approx(1)
    assert not six[~tree.ongoing].any()
    assert six[0] > 1 / 7  # what the stones have decided begins with an empty board
    assert six[tree.stones == 4].sum() == pytest.approx(1 / 7)
    assert 0 < six[tree.stones == 5].sum() < 1 / 7

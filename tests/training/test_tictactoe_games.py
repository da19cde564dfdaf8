import numpy as np
import numpy.typing as npt
import pytest

from bookserve.training import tictactoe_rules as rules
from bookserve.training import tictactoe_tree as trees
from bookserve.training.tictactoe_games import Games, play, random_player


def first_free(boards: rules.Boards) -> npt.NDArray[np.floating]:
    return np.eye(rules.SQUARES)[rules.free(boards).argmax(axis=1)]


def test_the_opponent_moves_first_in_half_of_the_games_of_the_book() -> None:
    games = Games(4_000, slips=1.0, opening=1, rng=np.random.default_rng(0))
    stones = games.observations.sum(axis=(1, 2))  # (n, 2)
    assert stones[:, rules.MINE].sum() == 0
    assert stones[:, rules.THEIRS].mean() == pytest.approx(0.5, abs=0.03)


def test_openings_leave_games_that_are_undecided_and_the_learner_to_move() -> None:
    games = Games(2_000, slips=1.0, opening=6, rng=np.random.default_rng(0))
    stones = games.observations.sum(axis=(1, 2))
    assert set((stones[:, rules.THEIRS] - stones[:, rules.MINE]).tolist()) == {0, 1}
    assert stones.sum(axis=1).max() == 6
    assert not rules.won(games.observations, rules.MINE).any()
    assert not rules.won(games.observations, rules.THEIRS).any()


def test_rewards_follow_from_the_rules_and_random_play_ends_as_the_tree_says() -> None:
    rng = np.random.default_rng(1)
    games = Games(500, slips=1.0, opening=1, rng=rng)
    rewards = []
    for _ in range(60):
        moves = rules.free(games.observations) * rng.random((500, rules.SQUARES))
        earned, ended = games.step(moves.argmax(axis=1), random_player)
        assert not earned[~ended].any()
        rewards.append(earned[ended])
    tree = trees.tree()
    as_x, as_o = trees.walk(tree, trees.uniform(tree), trees.uniform(tree))
    found = np.concatenate(rewards)
    assert set(found.tolist()) == {rules.WIN, rules.DRAW, rules.LOSS}
    for reward, exact in (
        (rules.WIN, (as_x.won + as_o.won) / 2),
        (rules.DRAW, (as_x.drawn + as_o.drawn) / 2),
        (rules.LOSS, (as_x.lost + as_o.lost) / 2),
    ):
        assert (found == reward).mean() == pytest.approx(exact, abs=0.03)


def test_an_opponent_that_never_slips_is_the_policy_itself() -> None:
    games = Games(3, slips=0.0, opening=0, rng=np.random.default_rng(0))
    _, ended = games.step(np.array([8, 4, 0]), first_free)
    assert not ended.any()
    stones = games.observations.reshape(3, rules.SQUARES, 2)
    assert stones[..., rules.MINE].argmax(axis=1).tolist() == [8, 4, 0]
    assert stones[..., rules.THEIRS].argmax(axis=1).tolist() == [0, 0, 1]


def test_sampled_games_end_as_the_tree_says() -> None:
    tree = trees.tree()
    as_x, _ = trees.walk(tree, trees.uniform(tree), trees.uniform(tree))
    results = play(random_player, random_player, 20_000, np.random.default_rng(0))
    for result, exact in ((1, as_x.won), (0, as_x.drawn), (-1, as_x.lost)):
        assert (results == result).mean() == pytest.approx(exact, abs=0.012)


def test_two_players_without_chance_play_one_game() -> None:
    assert play(first_free, first_free, 3, np.random.default_rng(0)).tolist() == [1, 1, 1]  # 0 2 4 6: a diagonal


def test_a_player_that_breaks_the_rules_is_told_so() -> None:
    def centre(boards: rules.Boards) -> npt.NDArray[np.floating]:
        return np.tile(np.eye(rules.SQUARES)[4], (len(boards), 1))

    with pytest.raises(rules.IllegalMoveError, match="square 4 of board 0 is taken"):
        play(centre, centre, 2, np.random.default_rng(0))

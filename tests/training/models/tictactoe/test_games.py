from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from bookserve.training.models.tictactoe import rules
from bookserve.training.models.tictactoe import tree as trees
from bookserve.training.models.tictactoe.games import Games

SEED = np.array([1, 2], np.int32)


def first_free(boards: Any) -> Any:
    """Logits of a player that takes the first free square."""
    taken = tf.reshape(tf.reduce_sum(boards, axis=-1), [-1, rules.SQUARES])
    return -1e9 * taken - 100.0 * np.arange(rules.SQUARES, dtype=np.float32)


def beatable(boards: rules.Boards) -> npt.NDArray[np.bool_]:
    """Whether the other side wins with one more stone: bool [n]."""
    found = np.zeros(len(boards), np.bool_)
    theirs = rules.swap(boards)
    for square in range(rules.SQUARES):
        rows = np.flatnonzero(rules.free(theirs)[:, square])
        found[rows] |= rules.won(rules.place(theirs[rows], np.full(len(rows), square)), rules.MINE)
    return found


def openings(opening: int, games: int = 4_000) -> npt.NDArray[np.float32]:
    made = Games(games, slips=1.0, opening=opening)
    boards: npt.NDArray[np.float32] = made.observe(made.start(SEED)).numpy()
    return boards


def test_the_opponent_moves_first_in_half_of_the_games_of_the_book() -> None:
    stones = openings(1).sum(axis=(1, 2))  # (n, 2)
    assert stones[:, rules.MINE].sum() == 0
    assert stones[:, rules.THEIRS].mean() == pytest.approx(0.5, abs=0.03)


def test_openings_leave_games_that_are_undecided_and_the_learner_to_move() -> None:
    boards = openings(6)
    stones = boards.sum(axis=(1, 2))
    assert set((stones[:, rules.THEIRS] - stones[:, rules.MINE]).tolist()) == {0, 1}
    assert stones.sum(axis=1).max() == 6
    assert not rules.won(boards, rules.MINE).any()
    assert not rules.won(boards, rules.THEIRS).any()


def test_rewards_and_boards_follow_from_the_rules_move_by_move() -> None:
    """Played beside the environment by the rules alone, with its own replies read off the boards."""
    made = Games(300, slips=0.5, opening=5)
    state = made.start(SEED)
    step: Callable[..., Any] = tf.function(lambda *arguments: made.step(*arguments[:2], first_free, arguments[2]))
    rng = np.random.default_rng(0)
    ends = set()
    for number in range(40):
        before = made.observe(state).numpy()
        squares = (rules.free(before) * rng.random((300, rules.SQUARES))).argmax(axis=1)
        state, rewards, ended = (tensor.numpy() for tensor in step(state, squares, np.array([3, number], np.int32)))
        mine = rules.place(before, squares)
        won, full = rules.won(mine, rules.MINE), rules.full(mine)
        assert ended[won | full].all()
        assert (rewards[won] == rules.WIN).all()
        assert (rewards[full & ~won] == rules.DRAW).all()
        after = made.observe(state).numpy()
        going_on = ~ended
        assert not rewards[going_on].any()
        replies = after[going_on] - mine[going_on]
        assert (replies.sum(axis=(1, 2)) == [0, 1]).all()  # one stone more, and it is the opponent's
        assert replies.min() == 0
        by_reply = ended & ~won & ~full
        assert set(rewards[by_reply].tolist()) <= {rules.DRAW, rules.LOSS}
        assert beatable(mine[rewards == rules.LOSS]).all()
        ends |= set(rewards.tolist())
    assert ends == {0.0, rules.WIN, rules.DRAW, rules.LOSS}


def test_random_play_ends_as_the_tree_says() -> None:
    games = Games(1_000, slips=1.0, opening=1)
    state = games.start(SEED)
    rng = np.random.default_rng(1)
    rewards = []
    for number in range(30):
        moves = rules.free(games.observe(state).numpy()) * rng.random((1_000, rules.SQUARES))
        state, earned, ended = games.step(state, moves.argmax(axis=1), first_free, np.array([7, number], np.int32))
        rewards.append(earned.numpy()[ended.numpy()])
    tree = trees.tree()
    as_x, as_o = trees.walk(tree, trees.uniform(tree), trees.uniform(tree))
    found = np.concatenate(rewards)
    for reward, exact in (
        (rules.WIN, (as_x.won + as_o.won) / 2),
        (rules.DRAW, (as_x.drawn + as_o.drawn) / 2),
        (rules.LOSS, (as_x.lost + as_o.lost) / 2),
    ):
        assert (found == reward).mean() == pytest.approx(exact, abs=0.03)


def test_an_opponent_that_never_slips_is_the_policy_itself() -> None:
    games = Games(3, slips=0.0, opening=0)
    state, _, ended = games.step(games.start(SEED), np.array([8, 4, 0]), first_free, SEED)
    assert not ended.numpy().any()
    stones = games.observe(state).numpy().reshape(3, rules.SQUARES, 2)
    assert stones[..., rules.MINE].argmax(axis=1).tolist() == [8, 4, 0]
    assert stones[..., rules.THEIRS].argmax(axis=1).tolist() == [0, 0, 1]

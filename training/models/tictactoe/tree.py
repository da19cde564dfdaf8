"""The whole game tree of tic-tac-toe, so that a policy can be judged exactly instead of by sampled games.

There are 5,478 positions, and a policy is a table float64 [positions, 9] of the weight that it gives to each move. One
backward pass over the tree then tells what two tables do against each other: with probabilities the chances of every
result, and with a weight of 1 on every legal reply (`every_move`) the number of games that end so.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bookserve.training.models.tictactoe import rules

Policy = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """Every position that play can reach, ordered by its number of stones; row 0 is the empty board."""

    boards: rules.Boards  # float32 [p, 3, 3, 2], seen from the side to move
    stones: npt.NDArray[np.int64]  # [p]
    after: npt.NDArray[np.int64]  # [p, 9]: the row of the position after each move, 0 where there is no such move
    legal: npt.NDArray[np.bool_]  # [p, 9]: nothing is legal where the game is over
    lost: npt.NDArray[np.bool_]  # [p]: the side to move has been beaten

    @property
    def ongoing(self) -> npt.NDArray[np.bool_]:
        """The positions in which there is a move to make: bool [p]."""
        playable: npt.NDArray[np.bool_] = np.any(self.legal, axis=1)
        return playable


@dataclass(frozen=True)
class Results:
    """How games end for a policy: probabilities, or numbers of games, as the tables were."""

    won: float
    drawn: float
    lost: float

    @property
    def reward(self) -> float:
        """The mean of the book's rewards, 10, 5 and -3."""
        total = self.won + self.drawn + self.lost
        return (rules.WIN * self.won + rules.DRAW * self.drawn + rules.LOSS * self.lost) / total


@functools.cache
def tree() -> Tree:
    """The one tree, built on the first call in some tenths of a second."""
    rows: dict[bytes, int] = {}
    layers = []
    layer = rules.start(1)
    edges: list[tuple[int, int, bytes]] = []
    for _ in range(rules.SQUARES + 1):
        first = len(rows)
        rows |= {board.tobytes(): first + row for row, board in enumerate(layer)}
        layers.append(layer)
        legal = rules.free(layer) & ~rules.won(layer, rules.THEIRS)[:, None]
        parents, squares = np.nonzero(legal)
        if not len(parents):
            break
        children = rules.swap(rules.place(layer[parents], squares))
        edges += [
            (first + parent, square, child.tobytes())
            for parent, square, child in zip(parents.tolist(), squares.tolist(), children, strict=True)
        ]
        layer = np.unique(children, axis=0)
    boards = np.concatenate(layers)
    after = np.zeros((len(boards), rules.SQUARES), np.int64)
    legal = np.zeros((len(boards), rules.SQUARES), np.bool_)
    for parent, square, child_key in edges:
        after[parent, square] = rows[child_key]
        legal[parent, square] = True
    stones = boards.sum(axis=(1, 2, 3)).astype(np.int64)
    return Tree(boards, stones, after, legal, rules.won(boards, rules.THEIRS))


def every_move(tree: Tree) -> Policy:
    """A weight of 1 on every legal move: counts games instead of weighing them."""
    return tree.legal.astype(np.float64)


def uniform(tree: Tree) -> Policy:
    """The player that picks any legal move with the same probability."""
    return _evenly(tree.legal)


def openings(tree: Tree, most: int) -> npt.NDArray[np.float64]:
    """The chance of each position [p] after 0 to `most` random stones, every number as likely as the others.

    One that the stones already decide counts as the empty board.
    """
    chances = np.zeros(len(tree.boards))
    stones = np.eye(1, len(tree.boards))[0]  # (p,): the chances after the stones so far
    moves = uniform(tree)
    for _ in range(most + 1):
        chances += stones / (most + 1)
        stones = np.bincount(tree.after.ravel(), (stones[:, None] * moves).ravel(), len(tree.boards))
    chances[~tree.ongoing] = 0
    chances[0] += 1 - chances.sum()
    return chances


def greedy(tree: Tree, probabilities: npt.NDArray[np.floating]) -> Policy:
    """The player that always makes the most probable move of a table [p, 9], legal or not."""
    choices = np.zeros(tree.legal.shape)
    choices[np.arange(len(choices)), probabilities.argmax(axis=1)] = tree.ongoing
    return choices


def optimal(tree: Tree) -> Policy:
    """The perfect player: any move that keeps what the position is worth against perfect replies."""
    values = -tree.lost.astype(np.float64)  # for the side to move: 1 wins, 0 draws, -1 loses
    keeps = np.zeros_like(tree.legal)
    for rows in _layers_from_the_end(tree):
        children = np.where(tree.legal[rows], -values[tree.after[rows]], -np.inf)  # (r, 9)
        values[rows] = children.max(axis=1)
        keeps[rows] = children == values[rows, None]
    return _evenly(keeps)


def best_response(tree: Tree, opponent: Policy) -> Policy:
    """The player that earns most on average, in the book's rewards, against this opponent."""
    response = np.zeros_like(opponent)
    to_move = np.where(tree.lost, rules.LOSS, rules.DRAW)  # expected reward where the responding player moves
    to_wait = np.where(tree.lost, rules.WIN, rules.DRAW)  # and where the opponent does
    for rows in _layers_from_the_end(tree):
        choices = np.where(tree.legal[rows], to_wait[tree.after[rows]], -np.inf)  # (r, 9)
        response[rows, choices.argmax(axis=1)] = 1
        replies = (opponent[rows] * to_move[tree.after[rows]]).sum(axis=1)  # (r,)
        to_move[rows], to_wait[rows] = choices.max(axis=1), replies
    return response


def walk(tree: Tree, player: Policy, opponent: Policy) -> tuple[Results, Results]:
    """How all games between two tables end for `player`: first where it begins (as X), then where it replies (as O).

    Raises:
        IllegalMoveError: a table gives weight to a move that the rules forbid.
    """
    for name, table in (("player", player), ("opponent", opponent)):
        if illegal := int(((table != 0) & ~tree.legal).sum()):
            raise rules.IllegalMoveError(f"the {name} gives weight to {illegal} moves that the rules forbid")
    over = np.stack([np.zeros(len(tree.lost)), ~tree.lost, tree.lost], axis=1)  # (p, 3): won, drawn, lost
    ends = np.stack([over, over[:, ::-1]])  # (2, p, 3): player to move, opponent to move
    for rows in _layers_from_the_end(tree):
        after = ends[:, tree.after[rows]]  # (2, r, 9, 3)
        ends[0, rows] = np.einsum("rm,rmk->rk", player[rows], after[1])
        ends[1, rows] = np.einsum("rm,rmk->rk", opponent[rows], after[0])
    begins, replies = ends[:, 0]
    return Results(*begins.tolist()), Results(*replies.tolist())


def _evenly(moves: npt.NDArray[np.bool_]) -> Policy:
    """The same probability for every move that is marked: bool [p, 9]."""
    chances: Policy = moves / np.maximum(moves.sum(axis=1, keepdims=True), 1)
    return chances


def _layers_from_the_end(tree: Tree) -> list[npt.NDArray[np.int64]]:
    """The rows of the ongoing positions with 8 stones, with 7, and so on to the empty board."""
    return [np.flatnonzero((tree.stones == stones) & tree.ongoing) for stones in reversed(range(rules.SQUARES))]

"""Tic-tac-toe by asynchronous advantage actor-critic (chapter 8): a board to the chances of the nine next moves.

Unlike the book's network this one has no batch normalisation, whose statistics the book never trained, and taken
squares are masked inside the graph instead of being punished. Unlike the book's training the opponent is not only
random, so the policy learns not to lose; `games` says how.

The policy is judged on the whole game tree: exact chances against a random opponent, and the number of games that a
perfectly unlucky choice of replies could make it lose. Mean reward alone proves little: the best possible one is 9.79
(9.97 as X, 9.61 as O), and random legal play earns 3.69.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution

from bookserve.export import figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.training import plots
from bookserve.training.datasets.data_card import DataCard
from bookserve.training.datasets.files import DataRequest, Origin, sha256_of_arrays
from bookserve.training.errors import DivergedError
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint, pack, unpack
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.models.tictactoe import a3c, rules
from bookserve.training.models.tictactoe import lines as tictactoe_lines
from bookserve.training.models.tictactoe import tree as trees
from bookserve.training.models.tictactoe.games import Games
from bookserve.training.tuning.search_space import Search, choice

CONTRACT = Contract(
    model="tictactoe",
    version=1,
    task="board",
    inputs=(Tensor("board", "float32", (None, 3, 3, 2)),),  # plane 0: squares of the side to move, 1: the other's
    outputs=(
        Tensor(  # of each square as the next move, row by row; 0 where taken
            "probabilities", "float32", (None, 9), unit="probability"
        ),
        Tensor("value", "float32", (None,), unit="reward"),  # what the side to move may expect
    ),
)
KEY_METRIC = KeyMetric(name="lost_lines", book=None)  # the book names no figure: its script prints the mean reward
GOAL = 0.99  # fraction of the best possible mean reward that a policy must earn, as X and as O
IMPOSSIBLE = -1e9  # the logit of a taken square: its probability is 0 in float32
ALGORITHM = a3c.Settings(steps=5, learning_rate=4e-3, reward_unit=rules.WIN)


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 8" marks those of the book."""

    epochs: int  # at most; a policy that cannot be improved ends the training
    moves: int = 100_000  # the learner's moves in an epoch, over all workers
    workers: int = 2  # threads that play and learn (chapter 8: one a core)
    games: int = 64  # that a worker plays at once (chapter 8: 1)
    hidden: tuple[int, ...] = (128, 128)  # units of the layers (chapter 8: 64, 32, 16)
    slips: float = 0.5  # fraction of the opponent's moves that are random (chapter 8: 1)
    opening: int = 5  # most random stones before a game begins (chapter 8: 1)
    patience: int = 6  # epochs that bring nothing before an unbeatable policy is done
    algorithm: a3c.Settings = ALGORITHM


BOOK = Config(  # chapter 8's own numbers
    epochs=20,
    moves=50_000,
    games=1,
    hidden=(64, 32, 16),
    slips=1.0,
    opening=1,
    algorithm=a3c.Settings(steps=5, advantage_lambda=0.5, final_learning_rate=1e-3),
)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {
        "smoke": Config(epochs=2, moves=20_000),
        "default": Config(epochs=20),
        "full": Config(epochs=60),
    },
    "book": {
        "smoke": replace(BOOK, epochs=1, moves=2_000),
        "default": replace(BOOK, epochs=5),
        "full": BOOK,
    },
}
SPACE = Search(
    objective="sound",
    higher_is_better=True,
    space={
        "hidden": choice((64, 32, 16), (128, 128), (256,)),
        "slips": FloatDistribution(0.2, 1.0),
        "opening": choice(1, 3, 5),
        "games": choice(16, 64),
    },
)
SEARCHES: dict[str, Search] = {STANDARD: SPACE, "book": SPACE}


@dataclass(frozen=True)
class Positions:
    """There is no data set: the policy learns from games against itself. The rows are all positions with a move."""

    boards: rules.Boards  # float32 [4520, 3, 3, 2]
    origin: Origin

    @property
    def examples(self) -> Mapping[str, npt.NDArray[Any]]:
        """Positions in random order as the contract's inputs."""
        return {"board": self.boards}

    def card(self, labels: Sequence[str]) -> DataCard:
        """The data card: positions, which are no splits."""
        division = "no splits: games against itself train, and the test plays every game"
        return DataCard(rows={"positions": len(self.boards)}, division=division)


def load_data(config: Config, request: DataRequest, seed: int) -> Positions:
    """Every position, in an order that the seed draws; nothing is read or downloaded, whatever was requested."""
    tree = trees.tree()
    boards = np.random.default_rng(seed).permutation(tree.boards[tree.ongoing])
    checksum = sha256_of_arrays([tree.boards])
    return Positions(boards, Origin("real", "self-play: every game follows from the rules", checksum))


def build_model(config: Config) -> keras.Model:
    """The network, untrained: float32 boards [n, 3, 3, 2] in; `logits` float32 [n, 9] and `value` float32 [n] out."""
    layers = keras.layers
    board = keras.Input((rules.SIDE, rules.SIDE, 2), dtype="float32", name="board")
    taken = keras.ops.sum(layers.Reshape((rules.SQUARES, 2))(board), axis=-1)  # (n, 9)
    x = layers.Flatten()(board)
    for units in config.hidden:
        x = layers.Dense(units, activation="relu")(x)
    logits = layers.Dense(rules.SQUARES)(x) + taken * IMPOSSIBLE
    value = layers.Rescaling(rules.WIN)(layers.Dense(1)(x))[:, 0]  # (n,)
    return keras.Model(board, {"logits": logits, "value": value}, name="tictactoe_policy")


def train(
    model: keras.Model,
    data: Positions,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place and keep the weights of the epoch whose most probable moves are best: first by `lost_lines`.

    Every epoch begins with new games, whose chances hang on (seed, epoch) alone. Returns figure -> epochs: of the games
    of the training, with `val_` before the name of the most probable moves against a random opponent, and `sound` and
    `lost_lines` as `evaluate` has them.

    Raises:
        DivergedError: the policy came to moves that are not allowed; its logits are huge or no numbers.
        TrainingError: the checkpoint is damaged, or a callback found the loss not finite.
        OSError: a checkpoint cannot be written.
    """
    rounds = max(1, config.moves // (config.workers * config.games * config.algorithm.steps))
    updates_an_epoch = rounds * config.workers
    environment = Games(config.games, config.slips, config.opening)
    learner = a3c.A3C(model, config.algorithm, environment, config.epochs * updates_an_epoch)
    progress, best_weights = _Progress(), model.get_weights()
    saved = checkpoint.load()
    if saved is not None:
        learner.shared, best_weights = a3c.restored(saved.arrays), unpack("best", saved.arrays)
        progress = _Progress(**saved.notes)
    model.optimizer = None  # A3C brings its own; TensorBoard's callback asks the model for one
    watchers = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=config.epochs, steps=updates_an_epoch)
    watchers.on_train_begin()
    while progress.epochs < config.epochs and not progress.finished(config.patience):
        updates: list[a3c.Update] = []

        def on_update(number: int, update: a3c.Update, updates: list[a3c.Update] = updates) -> None:
            updates.append(update)
            watchers.on_train_batch_end(number, {"loss": update.loss})

        watchers.on_epoch_begin(progress.epochs)
        learner.run(config.workers, rounds, (seed, progress.epochs), on_update)
        try:
            judged = judge(model)
        except rules.IllegalMoveError as error:
            raise DivergedError(
                f"the policy of epoch {progress.epochs + 1} is broken ({error}): the training diverged. "
                "Lower the learning rate."
            ) from error
        figures = _training_figures(updates) | {"sound": judged.sound, "lost_lines": judged.lost_lines}
        figures |= {f"val_{name}": value for name, value in judged.figures.items() if name in figures}
        watchers.on_epoch_end(progress.epochs, figures)
        if progress.note(figures, judged):
            best_weights = model.get_weights()
        arrays = {**learner.shared.arrays(), **pack("best", best_weights)}
        checkpoint.save(progress.epochs, arrays, asdict(progress))
    watchers.on_train_end()
    model.set_weights(best_weights)
    return progress.history


def evaluate(model: keras.Model, data: Positions, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value; draws how games end into `report`.

    There are no rows to split, so the splits are three ways to look at one policy. `train`: it draws its moves as in
    the training, against a random opponent, exact chances. `valid`: it makes the most probable move, which decided
    between the epochs; `lost_lines` counts the games of the tree that it can lose, `sound` is the fraction of all
    positions in which its move keeps what the position is worth. `test`: every game that those moves can come into is
    played by the rules alone and not by the tree: `lost_lines` counts those it loses, `illegal` those it breaks off
    with a move that is not allowed; `reward` is the mean against a random opponent, and `reward_share` the fraction of
    the best possible one.
    """
    tree = trees.tree()
    probabilities = move_probabilities(model, tree.boards) * tree.ongoing[:, None]
    drawing = trees.walk(tree, probabilities, trees.uniform(tree))
    judged = judge(model)
    _draw(judged, report / "games.png")
    return {
        "train": _figures(*drawing),
        "valid": judged.figures | {"lost_lines": judged.lost_lines, "sound": judged.sound},
        "test": line_figures(lambda boards: move_probabilities(model, boards)),
    }


def line_figures(player: tictactoe_lines.Player) -> dict[str, float]:
    """The figures of the test: all games of a player as X and as O, by the rules alone."""
    as_x, as_o = tictactoe_lines.play(player, begins=True), tictactoe_lines.play(player, begins=False)
    best_x, best_o = best_rewards()
    reward, best = (as_x.reward + as_o.reward) / 2, (best_x + best_o) / 2
    return {
        "lost_lines": float(as_x.lost + as_o.lost),
        "lost_lines_as_x": float(as_x.lost),
        "lost_lines_as_o": float(as_o.lost),
        "illegal": float(as_x.illegal + as_o.illegal),
        "lines": float(as_x.games + as_o.games),
        "reward": reward,
        "reward_as_x": as_x.reward,
        "reward_as_o": as_o.reward,
        "best_reward": best,
        "reward_share": reward / best,
        "reward_share_as_x": as_x.reward / best_x,
        "reward_share_as_o": as_o.reward / best_o,
    }


@functools.cache
def best_rewards() -> tuple[float, float]:
    """The highest mean reward against a random opponent, as X and as O, of any player: 9.974 and 9.612."""
    tree = trees.tree()
    random = trees.uniform(tree)
    as_x, as_o = trees.walk(tree, trees.best_response(tree, random), random)
    return as_x.reward, as_o.reward


def measurement(data: Positions) -> figures.Measurement:
    """How many of all games the served graph loses; its rows are all positions, so there is nothing to draw."""
    place = {board.tobytes(): number for number, board in enumerate(data.boards)}

    def lost_lines(outputs: Mapping[str, npt.NDArray[Any]], _: npt.NDArray[np.int64]) -> float:
        def player(boards: rules.Boards) -> npt.NDArray[np.floating]:
            return outputs["probabilities"][[place[board.tobytes()] for board in boards]]

        return line_figures(player)["lost_lines"]

    rows = {"board": data.boards}
    return figures.Measurement(
        rows, figures.Figure("lost_lines", rows, lost_lines, higher_is_better=False, resamples=0)
    )


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract: `board` in, `probabilities` and `value` out."""
    board = keras.Input((rules.SIDE, rules.SIDE, 2), dtype="float32", name="board")
    outputs = model(board, training=False)
    taken = keras.ops.sum(keras.layers.Reshape((rules.SQUARES, 2))(board), axis=-1)  # (n, 9)
    probabilities = keras.layers.Softmax()(outputs["logits"]) * (1.0 - taken)  # a full board has no move at all
    return keras.Model(board, {"probabilities": probabilities, "value": outputs["value"]}, name="tictactoe")


@dataclass
class _Progress:
    """How far a training has come, as the checkpoint notes it."""

    epochs: int = 0  # that are done
    history: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = 0  # counted from 1
    best_score: list[float] = field(default_factory=list)

    def note(self, figures: Mapping[str, float], judged: "Judgement") -> bool:
        """Take in the figures of one more epoch; whether its policy is the best so far."""
        self.epochs += 1
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        score = [float(judged.at_goal), -judged.lost_lines, judged.sound, judged.figures["reward"]]
        better = score > self.best_score
        if better:
            self.best_epoch, self.best_score = self.epochs, score
        return better

    def finished(self, patience: int) -> bool:
        """Whether more epochs are not worth it: the policy is at its goal and makes no mistake, or gets no better."""
        if not self.best_score or not self.best_score[0]:
            return False
        return self.best_score[2] == 1 or self.epochs - self.best_epoch >= patience


@dataclass(frozen=True)
class Judgement:
    """What the most probable moves of a policy are worth, exactly."""

    against_random: tuple[trees.Results, trees.Results]  # chances as X and as O
    against_perfect: tuple[trees.Results, trees.Results]
    lost_lines: float  # games of the tree that it loses: 0 for a policy that cannot be beaten
    sound: float  # fraction of all positions in which the move keeps the worth of the position

    @property
    def at_goal(self) -> bool:
        """Whether it can never lose, and earns its fraction of the best reward as X and as O."""
        earned = zip(self.against_random, best_rewards(), strict=True)
        return self.lost_lines == 0 and all(results.reward >= GOAL * best for results, best in earned)

    @property
    def figures(self) -> dict[str, float]:
        """The mean over X and O against the random opponent."""
        return _figures(*self.against_random)


def judge(model: keras.Model) -> Judgement:
    """Walk the whole tree with the most probable move of the model in every position."""
    tree = trees.tree()
    policy = trees.greedy(tree, move_probabilities(model, tree.boards))
    perfect = trees.optimal(tree)
    lines = trees.walk(tree, policy, trees.every_move(tree))
    return Judgement(
        against_random=trees.walk(tree, policy, trees.uniform(tree)),
        against_perfect=trees.walk(tree, policy, perfect),
        lost_lines=sum(result.lost for result in lines),
        sound=float(((policy > 0) & (perfect > 0)).sum() / tree.ongoing.sum()),
    )


def move_probabilities(model: keras.Model, boards: rules.Boards) -> npt.NDArray[np.float64]:
    """The policy on boards float32 [n, 3, 3, 2]: float64 [n, 9], rows add up to 1, or are NaN where a logit is."""
    logits = model(boards, training=False)["logits"].numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def _figures(as_x: trees.Results, as_o: trees.Results) -> dict[str, float]:
    """Mean reward and fractions of won, drawn and lost games, X and O counting alike; and what is lost as each."""
    x, o = (np.array([r.won, r.drawn, r.lost]) / (r.won + r.drawn + r.lost) for r in (as_x, as_o))
    won, drawn, lost = ((x + o) / 2).tolist()
    return {
        "reward": (as_x.reward + as_o.reward) / 2,
        "won": won,
        "drawn": drawn,
        "lost": lost,
        "lost_as_x": float(x[2]),
        "lost_as_o": float(o[2]),
    }


def _training_figures(updates: Sequence[a3c.Update]) -> dict[str, float]:
    rewards = np.concatenate([update.game_rewards for update in updates])
    return {
        "loss": float(np.mean([update.loss for update in updates])),
        "reward": float(rewards.mean()),
        "won": float((rewards == rules.WIN).mean()),
        "drawn": float((rewards == rules.DRAW).mean()),
        "lost": float((rewards == rules.LOSS).mean()),
    }


def _draw(judged: Judgement, path: Path) -> None:
    games = {
        "X against random": judged.against_random[0],
        "O against random": judged.against_random[1],
        "X against perfect": judged.against_perfect[0],
        "O against perfect": judged.against_perfect[1],
    }
    fractions = {name: (results.won, results.drawn, results.lost) for name, results in games.items()}
    plots.fractions(fractions, ("won", "drawn", "lost"), "how games end, exactly", path)

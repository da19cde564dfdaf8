import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.export import onnx_graph, publish, run_reader
from bookserve.export.store import ModelStore
from bookserve.training import run
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import DivergedError
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.models import STANDARD
from bookserve.training.models.tictactoe import lines as tictactoe_lines
from bookserve.training.models.tictactoe import model as tictactoe
from bookserve.training.models.tictactoe import rules
from bookserve.training.models.tictactoe import tree as trees

TINY = tictactoe.Config(epochs=2, moves=3_000, games=32, hidden=(32,))


@pytest.fixture(scope="module")
def untrained() -> keras.Model:
    run.make_repeatable(0)
    return tictactoe.build_model(TINY)


class Oracle(keras.Model):  # type: ignore[misc]
    """A model whose logits are those of a table over the tree."""

    def __init__(self, table: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self._rows = {board.tobytes(): row for row, board in enumerate(trees.tree().boards)}
        self._table = table

    def call(self, boards: npt.NDArray[np.float32], training: bool = False) -> dict[str, keras.KerasTensor]:
        rows = [self._rows[board.tobytes()] for board in np.asarray(boards)]
        table = self._table[rows]
        logits = np.log(table, where=table > 0, out=np.full(table.shape, tictactoe.IMPOSSIBLE))
        return {"logits": keras.ops.convert_to_tensor(logits.astype(np.float32))}


def test_the_examples_are_all_positions_with_a_move() -> None:
    data = tictactoe.load_data(TINY, DataRequest("real"), seed=3)
    boards = data.examples["board"]
    assert boards.shape == (4_520, 3, 3, 2)
    assert boards.dtype == np.float32
    assert len(np.unique(boards.reshape(4_520, -1), axis=0)) == 4_520
    assert data.origin.source == "real"
    assert "self-play" in data.origin.name
    other = tictactoe.load_data(TINY, DataRequest("sample"), seed=4)
    assert (other.boards != boards).any()
    assert other.origin == data.origin


def test_taken_squares_have_no_probability_at_all(untrained: keras.Model) -> None:
    tree = trees.tree()
    probabilities = tictactoe.move_probabilities(untrained, tree.boards[tree.ongoing])
    taken = ~rules.free(tree.boards[tree.ongoing])
    assert (probabilities[taken] == 0).all()
    assert (probabilities[~taken] > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_the_serving_model_keeps_the_contract(untrained: keras.Model) -> None:
    tree = trees.tree()
    outputs = tictactoe.serving_model(untrained)(tree.boards)
    assert set(outputs) == {tensor.name for tensor in CONTRACTS["tictactoe"].outputs}
    probabilities, value = outputs["probabilities"].numpy(), outputs["value"].numpy()
    assert (probabilities.dtype, value.dtype) == (np.float32, np.float32)
    assert (probabilities.shape, value.shape) == ((5_478, 9), (5_478,))
    free = rules.free(tree.boards)
    assert (probabilities[~free] == 0).all()
    playable = free.any(axis=1)
    np.testing.assert_allclose(probabilities[playable].sum(axis=1), 1, atol=1e-6)
    assert not probabilities[~playable].any()
    np.testing.assert_allclose(
        probabilities[playable], tictactoe.move_probabilities(untrained, tree.boards[playable]), atol=1e-6
    )


def test_perfect_play_is_judged_perfect_and_bad_play_is_not() -> None:
    tree = trees.tree()
    perfect = tictactoe.judge(Oracle(trees.optimal(tree)))
    assert (perfect.lost_lines, perfect.sound, perfect.figures["lost"]) == (0, 1, 0)
    assert perfect.against_perfect[0].drawn == pytest.approx(1)
    first_free = tictactoe.judge(Oracle(np.cumprod(np.full((len(tree.boards), 9), 0.5), axis=1) * tree.legal))
    assert first_free.lost_lines > 0
    assert first_free.sound < 1
    assert first_free.figures["lost"] > 0.05


@pytest.mark.usefixtures("drawn")
def test_evaluation_plays_as_the_tree_says(tmp_path: Path) -> None:
    tree = trees.tree()
    data = tictactoe.load_data(TINY, DataRequest(), seed=0)
    first_free = np.cumprod(np.full((len(tree.boards), 9), 0.5), axis=1)
    metrics = tictactoe.evaluate(Oracle(first_free * tree.legal), data, tmp_path)
    assert set(metrics) == {"train", "valid", "test"}
    assert metrics["test"]["lost_lines"] == metrics["valid"]["lost_lines"] > 0
    assert metrics["test"]["lost_lines_as_x"] + metrics["test"]["lost_lines_as_o"] == metrics["test"]["lost_lines"]
    assert metrics["test"]["illegal"] == 0
    assert metrics["test"]["reward"] == pytest.approx(metrics["valid"]["reward"])
    assert metrics["train"]["lost"] > metrics["valid"]["lost"]  # drawing its moves, the same policy plays worse
    assert (tmp_path / "games.png").read_bytes().startswith(b"\x89PNG")


def test_the_share_of_the_best_reward_is_1_for_the_best_answer_to_a_random_player(tmp_path: Path) -> None:
    tree = trees.tree()
    data = tictactoe.load_data(TINY, DataRequest(), seed=0)
    gambler = Oracle(trees.best_response(tree, trees.uniform(tree)))
    figures = tictactoe.evaluate(gambler, data, tmp_path)["test"]
    for name in ("reward_share", "reward_share_as_x", "reward_share_as_o"):
        assert figures[name] == pytest.approx(1)
    assert figures["best_reward"] == pytest.approx(9.79, abs=0.005)
    assert (figures["lost_lines_as_x"], figures["lost_lines_as_o"]) == (0, 4)
    assert not tictactoe.judge(gambler).at_goal
    careful = Oracle(trees.best_response(tree, (trees.uniform(tree) + trees.optimal(tree)) / 2))
    assert tictactoe.judge(careful).at_goal


def test_training_learns_and_keeps_the_best_epoch() -> None:
    run.make_repeatable(0)
    config = replace(TINY, epochs=4, moves=12_000)
    model = tictactoe.build_model(config)
    before = tictactoe.judge(model)
    history = tictactoe.train(model, tictactoe.load_data(config, DataRequest(), 0), config, seed=0, callbacks=[])
    after = tictactoe.judge(model)
    assert set(history) == {
        *("loss", "reward", "won", "drawn", "lost", "sound", "lost_lines"),
        *("val_reward", "val_won", "val_drawn", "val_lost"),
    }
    assert [len(values) for values in history.values()] == [4] * 11
    assert after.sound in history["sound"]
    assert after.sound > before.sound
    assert after.lost_lines < before.lost_lines / 2
    assert after.figures["reward"] > before.figures["reward"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e10, 1e38], ids=["huge logits", "no numbers"])
def test_a_policy_that_the_last_update_breaks_is_an_error_of_one_line(rate: float) -> None:
    moves = TINY.workers * TINY.games * TINY.algorithm.steps  # one update of each worker, of a loss that is finite
    wild = replace(TINY, moves=moves, algorithm=replace(TINY.algorithm, learning_rate=rate))
    run.make_repeatable(0)
    model, data = tictactoe.build_model(wild), tictactoe.load_data(wild, DataRequest(), 0)
    with pytest.raises(DivergedError, match=r"the policy of epoch 1 is broken .*: the training diverged"):
        tictactoe.train(model, data, wild, 0, [StopOnNan()])


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_what_export_needs_and_the_seed_decides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tictactoe.CONFIGS[STANDARD], "smoke", TINY)
    console = Console(quiet=True)
    first, again = (
        run.train_model("tictactoe", DataRequest(), tmp_path, console, profile="smoke", seed=5) for _ in range(2)
    )
    assert first.metrics == again.metrics
    assert {path.name for path in (first.folder / "report").iterdir()} == {"curves.png", "games.png", "evaluation.json"}
    assert list((first.folder / "tensorboard").rglob("events.out.tfevents.*"))
    rows = list(csv.DictReader((first.folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    config = json.loads((first.folder / "config.json").read_text())
    assert config["config"]["algorithm"]["discount"] == 0.99
    served = keras.saving.load_model(first.folder / "model.keras")
    with np.load(first.folder / "examples.npz") as examples:
        outputs = served(examples["board"])
        assert (outputs["probabilities"].numpy()[~rules.free(examples["board"])] == 0).all()


def test_every_profile_has_its_numbers() -> None:
    assert list(tictactoe.CONFIGS[STANDARD]) == ["smoke", "default", "full"]
    smoke, default, full = tictactoe.CONFIGS[STANDARD].values()
    assert smoke.epochs * smoke.moves < default.epochs * default.moves < full.epochs * full.moves


class Killed(Exception):
    pass


class KillIn(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the training in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch
        self._now = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._now = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._now == self._epoch and batch == 3:
            raise Killed


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_with_the_same_figures(tmp_path: Path) -> None:
    config = replace(TINY, epochs=4)
    data = tictactoe.load_data(config, DataRequest(), 0)

    def trained(checkpoint: Checkpoint, *callbacks: keras.callbacks.Callback) -> tuple[dict[str, list[float]], Any]:
        run.make_repeatable(0)
        model = tictactoe.build_model(config)
        history = tictactoe.train(model, data, config, 0, callbacks, checkpoint)
        return history, model.get_weights()

    through, weights = trained(NO_CHECKPOINT)
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    with pytest.raises(Killed):
        trained(checkpoint, KillIn(epoch=2))
    begun: list[int] = []
    watcher = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(epoch))
    resumed, same_weights = trained(checkpoint, watcher)
    assert begun == [2, 3]
    assert resumed == through
    for left, right in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_book_s_configuration_has_the_book_s_numbers() -> None:
    book = tictactoe.CONFIGS["book"]["full"]
    assert (book.games, book.slips, book.opening, book.hidden) == (1, 1.0, 1, (64, 32, 16))
    assert book.algorithm.final_learning_rate == book.algorithm.learning_rate == 1e-3
    tiny = replace(book, epochs=1, moves=40)
    run.make_repeatable(0)
    history = tictactoe.train(tictactoe.build_model(tiny), tictactoe.load_data(tiny, DataRequest(), 0), tiny, 0, [])
    assert len(history["reward"]) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_default_never_loses_through_the_exported_graph_and_earns_within_one_percent_of_the_best(
    tmp_path: Path,
) -> None:
    """Every reply of the opponent, as X and as O, by the rules alone, with the graph that is served."""
    result = run.train_model("tictactoe", DataRequest(), tmp_path / "runs", Console(quiet=True))
    store = ModelStore(tmp_path / "models")
    version = publish.publish(run_reader.read(result.folder, "tictactoe"), store, lambda _: None).version
    session = onnxruntime.InferenceSession(store.path("tictactoe", version) / onnx_graph.LOCATION)
    for begins, best in ((True, 9.974), (False, 9.612)):
        played = tictactoe_lines.play(lambda boards: session.run(["probabilities"], {"board": boards})[0], begins)
        assert (played.lost, played.illegal) == (0, 0)
        assert played.games > 50
        assert played.reward > 0.99 * best
    test = result.metrics["test"]
    assert (test["lost_lines"], test["illegal"]) == (0, 0)
    assert test["reward"] > 0.99 * 9.79
    assert result.metrics["valid"]["sound"] > 0.98

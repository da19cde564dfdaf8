import csv
import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from bookserve.export.contracts import TICTACTOE
from bookserve.training import run
from bookserve.training import tictactoe_rules as rules
from bookserve.training import tictactoe_tree as trees
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import tictactoe

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
    assert set(outputs) == {tensor.name for tensor in TICTACTOE.outputs}
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


def test_evaluation_plays_as_the_tree_says(tmp_path: Path) -> None:
    data = tictactoe.load_data(TINY, DataRequest(), seed=0)
    first_free = np.cumprod(np.full((len(trees.tree().boards), 9), 0.5), axis=1)
    metrics = tictactoe.evaluate(Oracle(first_free * trees.tree().legal), data, tmp_path)
    assert set(metrics) == {"train", "valid", "test"}
    assert metrics["test"]["rows"] == 4_000
    for figure in ("won", "drawn", "lost", "lost_as_x", "lost_as_o"):
        assert metrics["test"][figure] == pytest.approx(metrics["valid"][figure], abs=0.03)
    assert metrics["test"]["won"] + metrics["test"]["drawn"] + metrics["test"]["lost"] == pytest.approx(1)
    assert metrics["test"]["reward"] == pytest.approx(metrics["valid"]["reward"], abs=0.4)
    assert metrics["train"]["lost"] > metrics["valid"]["lost"]  # drawing its moves, the same policy plays worse
    assert (tmp_path / "games.png").read_bytes().startswith(b"\x89PNG")


def test_training_learns_and_keeps_the_best_epoch() -> None:
    run.make_repeatable(0)
    config = replace(TINY, epochs=4, moves=12_000)
    model = tictactoe.build_model(config)
    before = tictactoe.judge(model)
    history = tictactoe.train(model, tictactoe.load_data(config, DataRequest(), 0), config, seed=0, callbacks=[])
    after = tictactoe.judge(model)
    assert set(history) == {
        *("loss", "reward", "won", "drawn", "lost", "sound"),
        *("val_reward", "val_won", "val_drawn", "val_lost"),
    }
    assert [len(values) for values in history.values()] == [4] * 10
    assert after.sound in history["sound"]
    assert after.sound > before.sound
    assert after.lost_lines < before.lost_lines / 2
    assert after.figures["reward"] > before.figures["reward"] + 1


def test_a_run_leaves_what_export_needs_and_the_seed_decides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tictactoe.PROFILES, "smoke", TINY)
    console = Console(quiet=True)
    first, again = (
        run.train_model("tictactoe", DataRequest(), tmp_path, console, profile="smoke", seed=5) for _ in range(2)
    )
    assert first.metrics == again.metrics
    assert {path.name for path in (first.folder / "report").iterdir()} == {"curves.png", "games.png"}
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
    assert list(tictactoe.PROFILES) == ["smoke", "default", "full"]
    smoke, default, full = tictactoe.PROFILES.values()
    assert smoke.epochs * smoke.moves < default.epochs * default.moves < full.epochs * full.moves


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_default_is_never_beaten_and_earns_within_one_percent_of_the_best(tmp_path: Path) -> None:
    config = tictactoe.PROFILES["default"]
    data = tictactoe.load_data(config, DataRequest(), seed=0)
    run.make_repeatable(0)
    model = tictactoe.build_model(config)
    tictactoe.train(model, data, config, seed=0, callbacks=[])
    metrics = tictactoe.evaluate(model, data, tmp_path)
    assert metrics["valid"]["lost_lines"] == 0
    assert metrics["test"]["lost"] == 0
    assert metrics["valid"]["reward"] > 0.99 * 9.79
    assert metrics["valid"]["sound"] > 0.98

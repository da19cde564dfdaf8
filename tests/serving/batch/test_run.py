"""The run over an INPUT: killed at every step that it takes on disk, and at any time; order, limits, errors."""

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.batch import results, run
from bookserve.serving.batch.model import ModelLost, Pace, RowsRefused
from bookserve.serving.batch.parts import Parts
from bookserve.serving.batch.questions import Columns, Questions
from bookserve.serving.batch.records import MAX_ROW_BYTES
from bookserve.serving.batch.run import Run
from bookserve.serving.batch.text_lines import TextLines

DOUBLE = Contract("double", 1, (Tensor("x", "float32", (None, 2)),), (Tensor("y", "float32", (None, 2)),))
ROWS = 20_000


class Model:
    """y = 2 x. Refuses rows that hold 13, and is lost after so many runs."""

    contract = DOUBLE
    version = 1
    identity = "double"

    def __init__(self, rows: int = 64, runs: int = 4, lives: int = 1_000_000) -> None:
        self.pace = Pace(rows, runs)
        self.sizes: list[int] = []
        self.lives = lives

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.sizes.append(len(x))
        if len(self.sizes) > self.lives:
            raise ModelLost("gone")
        if (x == 13).any():
            raise RowsRefused("it brings bad luck")
        time.sleep(random.random() / 1000)
        return {"y": 2 * x}

    def close(self) -> None:
        pass


def whole(source: Path, output: Path, model: Model | None = None, most_bad: int | None = None) -> None:
    """A run from its beginning, or from where another was stopped, to OUTPUT."""
    asked = model or Model()
    lines = TextLines(source, "ndjson", names=False, max_row_bytes=MAX_ROW_BYTES)
    questions = Questions(DOUBLE, 1, lines, Columns(), None, 1)
    form = results.Ndjson(questions.has_names)
    with Parts(output) as parts:
        running = Run(lines, questions, asked, form, parts, most_bad, lambda _: None)
        done = running.go_on(parts.begin({"of": "this"}))
        with parts.whole_file(output.with_name("errors")) as stream:
            results.Ndjson(True).write(stream, parts.errors(done.parts), ())
        with parts.whole_file(output) as stream:
            form.write(stream, parts.answers(done.parts), ())
        parts.drop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20,000 rows, of which those with a number that ends in 777 are no row, and one is refused."""
    path = tmp_path / "in.ndjson"
    lines = (json.dumps("none" if place % 1000 == 777 else [place, 1]) for place in range(ROWS))
    path.write_text("\n".join(lines) + "\n")
    return path


def check(output: Path) -> None:
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    bad = [json.loads(line) for line in output.with_name("errors").read_text().splitlines()]
    wanted_bad = [14, *(place + 1 for place in range(ROWS) if place % 1000 == 777)]
    assert [row["line"] for row in bad] == wanted_bad
    assert bad[0]["reason"] == "it brings bad luck"
    assert [row["line"] for row in rows] == sorted(set(range(1, ROWS + 1)) - set(wanted_bad))
    assert all(row["y"] == [2.0 * (row["line"] - 1), 2.0] for row in rows)


def in_a_child(source: Path, output: Path, *, steps: int = 0) -> int:
    """Forks a child with the run; it kills itself before the step on disk of that number. Returns its process."""
    child = os.fork()
    if child:
        return child
    try:
        if steps:
            left = [steps]

            def counted(call):
                def step(*arguments, **named):
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*arguments, **named)

                return step

            for name in ("replace", "rename", "unlink", "rmdir", "fsync"):
                setattr(os, name, counted(getattr(os, name)))
        whole(source, output)
        os._exit(0)
    except BaseException:
        os._exit(1)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_kill_before_any_step_on_disk_loses_and_doubles_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PART_ROWS", 4_000)
    steps = 0
    while True:
        steps += 1
        folder = tmp_path / str(steps)
        folder.mkdir()
        ended = status_of(in_a_child(source, folder / "out.ndjson", steps=steps))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        # Killed after all was done, it may have left nothing.
        if not (folder / "out.ndjson").exists() or (folder / "out.ndjson.parts").exists():
            assert status_of(in_a_child(source, folder / "out.ndjson")) == 0
        check(folder / "out.ndjson")
        assert {path.name for path in folder.iterdir()} == {"out.ndjson", "errors"}
    assert steps > 20


def test_kills_at_any_time_lose_and_double_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PART_ROWS", 300)
    chance, kills = random.Random(1), 0
    output = tmp_path / "out.ndjson"
    while True:
        child = in_a_child(source, output)
        time.sleep(chance.uniform(0.0, (1 + kills) / 50))  # longer and longer: a busy machine has to come to the end
        os.kill(child, signal.SIGKILL)
        if status_of(child) == 0:
            break
        kills += 1
        if output.exists() and not (tmp_path / "out.ndjson.parts").exists():
            break
        assert kills < 500
    assert kills > 2
    check(output)
    assert {path.name for path in tmp_path.iterdir()} == {"in.ndjson", "out.ndjson", "errors"}


def test_a_lost_model_keeps_what_is_done(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLost, match="gone"):
        whole(source, tmp_path / "out.ndjson", Model(lives=100))
    first = Model()
    whole(source, tmp_path / "out.ndjson", first)
    check(tmp_path / "out.ndjson")
    assert sum(first.sizes) < ROWS - 1000


@pytest.mark.parametrize("rows", [1, 2, 64, 1024])
def test_runs_have_as_many_rows_as_they_may(source: Path, tmp_path: Path, rows: int) -> None:
    source.write_text("\n".join(json.dumps([place, 1]) for place in range(20, 2020)))
    model = Model(rows, runs=1)
    whole(source, tmp_path / "out.ndjson", model)
    assert max(model.sizes) == rows
    assert len(model.sizes) == -(-2000 // rows)


def test_a_run_of_large_rows_has_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.ndjson"
    source.write_text("\n".join(json.dumps([place, 1]) for place in range(20, 120)))
    for limit, most in ((7, 1), (16, 2), (23, 2), (24, 3)):
        monkeypatch.setattr(run, "_RUN_BYTES", limit)  # a row has 8
        model = Model(64, runs=1)
        whole(source, tmp_path / f"{limit}.ndjson", model)
        assert max(model.sizes) == most


def test_so_many_bad_rows_are_allowed(tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    source.write_text('[1, 2]\n"a"\n"b"\n[3, 4]\n')
    for allowed in (2, 3, None):
        whole(source, tmp_path / f"{allowed}.ndjson", most_bad=allowed)
    with pytest.raises(run.TooManyBadRows, match=r"more than 1 rows are bad \(--max-errors\); the last, line 3"):
        whole(source, tmp_path / "out.ndjson", most_bad=1)


def test_few_records_wait(tmp_path: Path) -> None:
    """However fast the INPUT is read, memory holds a few chunks of it."""
    source = tmp_path / "in.ndjson"
    source.write_text("[1, 2]\n" * 20_000)
    read = 0
    most = 0

    class Slow(Model):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            nonlocal most
            most = max(most, read - 64 * len(self.sizes))
            return super().run(inputs)

    class Counted(TextLines):
        def read(self, start):
            nonlocal read
            for found in super().read(start):
                read += 1
                yield found

    lines = Counted(source, "ndjson", names=False, max_row_bytes=MAX_ROW_BYTES)
    questions = Questions(DOUBLE, 1, lines, Columns(), None, 1)
    with Parts(tmp_path / "out.ndjson") as parts:
        running = Run(lines, questions, Slow(64, 2), results.Ndjson(True), parts, None, lambda _: None)
        done = running.go_on(parts.begin({}))
    assert done.answered == 20_000
    assert most <= 64 * 8

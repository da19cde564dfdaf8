"""The run over an INPUT: records to tensors, answers to parts, in the order of the INPUT.

Some runs are under way at once, each on a thread: it makes the tensors of some records, asks the model, and writes the
answers as text. Never more than a few of them wait, so the size of the INPUT is no matter.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from bookserve.export.errors import ExportError
from bookserve.serving.batch import results
from bookserve.serving.batch.model import Model, RowsRefused
from bookserve.serving.batch.parts import Done, Parts
from bookserve.serving.batch.questions import Questions, Row, Rows
from bookserve.serving.batch.records import BadRow, Block, Place, Record, Source
from bookserve.serving.batch.results import Answered, ColumnsDiffer, Form

_ALONE = 16  # rows that a thread takes at once where each is a run of its own
_BLOCK_BYTES = 8 << 20  # of rows that a thread takes at once, the last one aside
_RUN_BYTES = 32 << 20  # of the inputs of one run, the last row aside
_NOT_A_ROW_EACH = "its outputs do not have one row for each of the inputs: say no --rows-independent"
_PART_ROWS, _PART_BYTES, _PART_SECONDS = 65_536, 16 << 20, 5.0  # after which a part is written

Outcome = Answered | BadRow
Report = Callable[[Done], None]  # told after some rows


class TooManyBadRows(Exception):
    """More rows than allowed got no answer."""


@dataclass(frozen=True)
class Run:
    """One run; `most_bad` rows may get no answer, None for any number."""

    source: Source
    questions: Questions
    model: Model
    form: Form
    parts: Parts
    most_bad: int | None
    report: Report

    def go_on(self, done: Done) -> Done:
        """Answer the rows behind those that are done.

        What is answered is kept whatever ends it. Raises TooManyBadRows, ModelLost, InputError, OSError.
        """
        gc.freeze()  # rows are many short-lived lists: what was made before is not looked at again for each thousand
        runs = self.model.pace.runs
        writer = _Writer(self, done)
        pool = ThreadPoolExecutor(runs, thread_name_prefix="batch")
        under_way: deque[tuple[Future[list[Outcome]], Place]] = deque()
        try:
            for block in self.source.blocks(done.place, self._most, _BLOCK_BYTES):
                under_way.append((pool.submit(self._answer, block), block.behind))
                if len(under_way) > 2 * runs:
                    writer.take(*under_way.popleft())
            while under_way:
                writer.take(*under_way.popleft())
        finally:
            gc.unfreeze()
            pool.shutdown(wait=False, cancel_futures=True)
            writer.write()
        return writer.done

    @property
    def _most(self) -> int:
        """How many rows a thread takes at once."""
        return self.model.pace.rows if self.model.pace.rows > 1 else _ALONE

    def _answer(self, block: Block) -> list[Outcome]:
        """The outcomes of a block, in the order of its rows."""
        if self.model.pace.rows == 1 or not self.questions.reads_at_once:
            return self._answer_rows(block.records())
        outcomes = self._answer_at_once(block)
        if outcomes is not None:
            return outcomes
        if halves := block.halves():  # a bad row costs those around it alone
            return [outcome for half in halves for outcome in self._answer(half)]
        return self._answer_rows(block.records())

    def _answer_at_once(self, block: Block) -> list[Outcome] | None:
        """The outcomes of a block whose rows are all right; None where one has to be looked at by itself."""
        rows = self.questions.at_once(block)
        if rows is None:
            return None
        size = sum(array[:1].nbytes for array in rows.tensors.values())
        most = max(1, min(self.model.pace.rows, _RUN_BYTES // max(1, size)))
        outcomes: list[Outcome] = []
        try:
            for begin in range(0, len(rows.lines), most):
                outcomes.append(self._ask_at_once(rows.part(begin, begin + most)))
        except (RowsRefused, ExportError):
            return None
        return outcomes

    def _ask_at_once(self, rows: Rows) -> Answered:
        """One run. Raises RowsRefused, ExportError."""
        found = self.model.run(rows.tensors)
        if any(array.shape[:1] != (len(rows.lines),) for array in found.values()):
            raise RowsRefused(_NOT_A_ROW_EACH)
        return Answered(rows.lines, rows.names, self.questions.columns(found))

    def _answer_rows(self, found: Sequence[Record | BadRow]) -> list[Outcome]:
        """The outcome of each record, in their order."""
        prepared = iter(self.questions.rows([one for one in found if isinstance(one, Record)]))
        rows = [next(prepared) if isinstance(one, Record) else one for one in found]
        outcomes: dict[int, Outcome] = {place: row for place, row in enumerate(rows) if isinstance(row, BadRow)}
        for places in self._runs(rows):
            some = [row for row in (rows[place] for place in places) if isinstance(row, Row)]
            outcomes.update(zip(places, self._ask(some), strict=True))
        return [outcomes[place] for place in range(len(rows))]

    def _runs(self, rows: Sequence[Row | BadRow]) -> Iterator[list[int]]:
        """The places of the rows that share a run: as many as may, of one shape each."""
        by_shape: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, row in enumerate(rows):
            if isinstance(row, Row):
                by_shape.setdefault(tuple([array.shape for array in row.tensors.values()]), []).append(place)
        for shapes, places in by_shape.items():
            row = rows[places[0]]
            assert isinstance(row, Row)
            size = sum(array.nbytes for array in row.tensors.values())
            most = max(1, min(self.model.pace.rows, _RUN_BYTES // max(1, size))) if shapes else 1
            for begin in range(0, len(places), most):
                yield places[begin : begin + most]

    def _ask(self, rows: Sequence[Row]) -> list[Outcome]:
        """One run. Where it is refused each row is asked alone, so that the others have their answers."""
        inputs = {
            name: np.concatenate([row.tensors[name] for row in rows]) if len(rows) > 1 else array
            for name, array in rows[0].tensors.items()
        }
        try:
            found = self.model.run(inputs)
            if len(rows) > 1 and any(array.shape[:1] != (len(rows),) for array in found.values()):
                raise RowsRefused(_NOT_A_ROW_EACH)
            answers = self.questions.answers(rows, found)
        except (RowsRefused, ExportError) as error:
            if len(rows) > 1:
                return [outcome for row in rows for outcome in self._ask([row])]
            return [BadRow(rows[0].line, rows[0].name, str(error))]
        return [
            Answered([row.line], [row.name], {key: [value] for key, value in answer.items()})
            for row, answer in zip(rows, answers, strict=True)
        ]


class _Writer:
    """Collects outcomes and writes them as parts."""

    def __init__(self, run: Run, done: Done) -> None:
        self.done = done  # with what is collected
        self._run = run
        self._written = done
        self._answers: list[bytes] = []
        self._errors: list[bytes] = []
        self._bytes = 0
        self._begun = time.monotonic()

    def take(self, future: "Future[list[Outcome]]", place: Place) -> None:
        """The outcomes of the next records. Raises what their run raised, or TooManyBadRows."""
        outcomes = future.result()
        done, tables, errors, answered = self.done, [], [], 0
        columns, form, most = done.columns, self._run.form, self._run.most_bad
        for outcome in outcomes:
            if isinstance(outcome, BadRow):
                bad = [outcome]
            else:
                table = form.table(outcome)
                columns = columns or form.columns(table)
                try:
                    tables.append(results.fitting(table, columns))
                    answered += len(outcome.lines)
                    continue
                except ColumnsDiffer as error:
                    names = outcome.names or [None] * len(outcome.lines)
                    bad = [BadRow(line, name, str(error)) for line, name in zip(outcome.lines, names, strict=True)]
            for row in bad:
                errors.append(results.error(row))
                if most is not None and done.bad + len(errors) > most:
                    reason = f"the last, line {row.line}: {row.reason}"
                    raise TooManyBadRows(f"more than {most:,} rows are bad (--max-errors); {reason}")
        answers = [form.rows(table) for table in results.joined(tables)]
        self._answers += answers
        self._errors += errors
        self._bytes += sum(map(len, answers)) + sum(map(len, errors))
        answered, bad_rows = done.answered + answered, done.bad + len(errors)
        self.done = replace(done, place=place, answered=answered, bad=bad_rows, columns=columns)
        rows = self.done.answered + self.done.bad - self._written.answered - self._written.bad
        if rows >= _PART_ROWS or self._bytes >= _PART_BYTES or time.monotonic() - self._begun >= _PART_SECONDS:
            self.write()
        self._run.report(self.done)

    def write(self) -> None:
        """What is collected becomes a part."""
        if self.done.place == self._written.place:
            return
        done = replace(self.done, parts=self.done.parts + 1)
        self._run.parts.add(done, b"".join(self._answers), b"".join(self._errors))
        self.done = self._written = done
        self._answers, self._errors, self._bytes, self._begun = [], [], 0, time.monotonic()

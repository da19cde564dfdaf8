"""The forms of OUTPUT: NDJSON, CSV and Parquet. Every row has `line`, and `id` where the INPUT has names."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np
import orjson

from bookserve.export.contracts import Contract
from bookserve.serving.batch import parquet_table
from bookserve.serving.batch.questions import flat
from bookserve.serving.batch.records import BadRow, InputError

LINE, NAME = "line", "id"
Answered = tuple[int, str | None, Mapping[str, Any]]  # line, name, answer


class ColumnsDiffer(ValueError):
    """An answer has other columns than those of the rows before; the message names them."""


class Form(Protocol):
    """One form of OUTPUT."""

    def columns(self, answered: Answered) -> tuple[str, ...]:
        """The columns of the file, by the first row that is answered; none where rows name their own."""
        ...

    def row(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """A row as it stands in a part. Raises ColumnsDiffer."""
        ...

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """The whole file, from pieces that hold whole rows."""
        ...


class Ndjson:
    """An object a line. What is not finite becomes null, as JSON has nothing for it."""

    def __init__(self, names: bool) -> None:
        self._names = names

    def columns(self, answered: Answered) -> tuple[str, ...]:
        """See Form.columns."""
        return ()

    def row(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.row."""
        return orjson.dumps(_named(answered, self._names), option=orjson.OPT_APPEND_NEWLINE)

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        for piece in pieces:
            stream.write(piece)


class Csv:
    """A line of names, then a line a row. A list is written as JSON."""

    def __init__(self, names: bool) -> None:
        self._names = names

    def columns(self, answered: Answered) -> tuple[str, ...]:
        """See Form.columns."""
        return tuple(flat(_named(answered, self._names)))

    def row(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.row."""
        values = flat(_named(answered, self._names))
        if tuple(values) != tuple(columns):
            other = sorted(set(values) ^ set(columns))
            raise ColumnsDiffer(f"its answer differs from the first row's in {', '.join(other[:5])}: write NDJSON")
        return _line([_cell(value) for value in values.values()])

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        stream.write(_line(list(columns) or ([LINE, NAME] if self._names else [LINE])))
        for piece in pieces:
            stream.write(piece)


class Parquet:
    """Columns as those of CSV, but lists stay lists. The parts are NDJSON; pyarrow writes the file in the end."""

    def __init__(self, names: bool, contract: Contract) -> None:
        """Raises InputError without pyarrow."""
        try:
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise InputError(parquet_table.NEEDED) from error
        self._arrow: Any = pyarrow
        self._names = names
        self._leaves = {tensor.name: tensor.dtype for tensor in contract.outputs}

    def columns(self, answered: Answered) -> tuple[str, ...]:
        """See Form.columns."""
        return tuple(flat(_named(answered, self._names)))

    def row(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.row."""
        values = flat(_named(answered, self._names))
        if tuple(values) != tuple(columns):
            other = sorted(set(values) ^ set(columns))
            raise ColumnsDiffer(f"its answer differs from the first row's in {', '.join(other[:5])}: write NDJSON")
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        schema: Any = None
        writer: Any = None
        for piece in pieces:
            rows = [orjson.loads(line) for line in piece.splitlines()]
            if rows and schema is None:
                schema = self._arrow.schema([(name, self._type(name, value)) for name, value in rows[0].items()])
                writer = self._writer(stream, schema)
            if rows:
                writer.write_table(self._arrow.Table.from_pylist(rows, schema=schema))
        if writer is None:
            fields = [(LINE, self._arrow.int64()), *([(NAME, self._arrow.string())] if self._names else [])]
            writer = self._writer(stream, self._arrow.schema(fields))
        writer.close()

    def _writer(self, stream: IO[bytes], schema: Any) -> Any:
        return self._arrow.parquet.ParquetWriter(stream, schema)

    def _type(self, name: str, value: Any) -> Any:
        """The type of a column, by its value in the first row, or the output that it has."""
        arrow = self._arrow
        if name == NAME:
            return arrow.string()
        if isinstance(value, list):
            if value and isinstance(value[0], dict):
                return arrow.list_(arrow.struct([(key, self._type(key, item)) for key, item in value[0].items()]))
            return arrow.list_(self._type(name, value[0] if value else None))
        if value is None:
            return self._of_output(name)
        for kind, found in ((bool, arrow.bool_()), (int, arrow.int64()), (float, arrow.float64())):
            if isinstance(value, kind):
                return found
        return arrow.string()

    def _of_output(self, name: str) -> Any:
        dtype = self._leaves.get(name.partition(".")[0], "object")
        kind = "O" if dtype == "object" else np.dtype(dtype).kind
        return {"f": self._arrow.float64(), "i": self._arrow.int64(), "u": self._arrow.int64()}.get(
            kind, self._arrow.string()
        )


def error(row: BadRow) -> bytes:
    """A bad row as it stands in the file of errors."""
    return orjson.dumps({LINE: row.line, NAME: row.name, "reason": row.reason}, option=orjson.OPT_APPEND_NEWLINE)


def _named(answered: Answered, names: bool) -> dict[str, Any]:
    """The columns of a row. An output with the name of one of the first two has `output.` before it."""
    line, name, answer = answered
    found: dict[str, Any] = {LINE: line}
    if names:
        found[NAME] = name
    return found | {f"output.{key}" if key in (LINE, NAME) else key: value for key, value in answer.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return orjson.dumps(value).decode()
    return value


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()

"""The forms of OUTPUT: NDJSON, CSV and Parquet. Every row has `line`, and `id` where the INPUT has names."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import orjson

from bookserve.export.contracts import Contract
from bookserve.serving.batch import parquet_table
from bookserve.serving.batch.records import BadRow, InputError

LINE, NAME = "line", "id"


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows whose answers have the same keys: key -> a value for each of them. `names` is None where there are none."""

    lines: Sequence[int]
    names: Sequence[str | None] | None
    answers: Mapping[str, Sequence[Any]]


class ColumnsDiffer(ValueError):
    """An answer has other columns than those of the rows before; the message names them."""


class Form(Protocol):
    """One form of OUTPUT."""

    def columns(self, answered: Answered) -> tuple[str, ...]:
        """The columns of the file, by the first rows that are answered; none where rows name their own."""
        ...

    def rows(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """The rows as they stand in a part. Raises ColumnsDiffer."""
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

    def rows(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.rows."""
        return _json_lines(_named(answered, self._names))

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
        return tuple(_flat(_named(answered, self._names)))

    def rows(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.rows."""
        return _lines(list(map(_cells, _same(answered, self._names, columns).values())))

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        head = list(columns) or ([LINE, NAME] if self._names else [LINE])
        stream.write(_lines([[name] for name in head]))
        for piece in pieces:
            stream.write(piece)


class Parquet:
    """Columns as those of CSV, but lists stay lists. pyarrow writes the file in the end; a line of a part is an object
    with some rows' values of every column.
    """

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
        return tuple(_flat(_named(answered, self._names)))

    def rows(self, answered: Answered, columns: Sequence[str]) -> bytes:
        """See Form.rows."""
        return orjson.dumps(_same(answered, self._names, columns), option=orjson.OPT_APPEND_NEWLINE)

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        schema: Any = None
        writer: Any = None
        for piece in pieces:
            columns_of_part: dict[str, list[Any]] = {}
            for line in piece.splitlines():
                for name, values in orjson.loads(line).items():
                    columns_of_part.setdefault(name, []).extend(values)
            if columns_of_part and schema is None:
                first = [(name, self._type(name, values[0])) for name, values in columns_of_part.items()]
                schema = self._arrow.schema(first)
                writer = self._writer(stream, schema)
            if columns_of_part:
                writer.write_table(self._arrow.Table.from_pydict(columns_of_part, schema=schema))
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


def _named(answered: Answered, names: bool) -> dict[str, Sequence[Any]]:
    """The columns of rows. An output with the name of one of the first two has `output.` before it."""
    found: dict[str, Sequence[Any]] = {LINE: list(answered.lines)}
    if names:
        found[NAME] = answered.names or [None] * len(answered.lines)
    return found | {f"output.{key}" if key in (LINE, NAME) else key: some for key, some in answered.answers.items()}


def _flat(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of a table: objects of single values as a column for each of their keys, called NAME.KEY."""
    found: dict[str, Sequence[Any]] = {}
    for name, values in columns.items():
        first = values[0]
        if isinstance(first, dict) and not any(isinstance(item, dict | list) for item in first.values()):
            found |= {f"{name}.{key}": [value[key] for value in values] for key in first}
        else:
            found[name] = values
    return found


def _same(answered: Answered, names: bool, columns: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Rows as the columns of the file. Raises ColumnsDiffer."""
    found = _flat(_named(answered, names))
    if tuple(found) != tuple(columns):
        other = sorted(set(found) ^ set(columns))
        raise ColumnsDiffer(f"its answer differs from the first row's in {', '.join(other[:5])}: write NDJSON")
    return found


def _json_lines(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """An object a row, each as orjson writes it."""
    keys = [orjson.dumps(name).replace(b"%", b"%%") for name in columns]
    line = b"{" + b",".join(key + b":%b" for key in keys) + b"}\n"
    return b"".join([line % row for row in zip(*map(_json_texts, columns.values()), strict=True)])


def _json_texts(values: Sequence[Any]) -> list[bytes]:
    if set(map(type, values)) <= {int, float, bool, type(None)}:
        return orjson.dumps(values)[1:-1].split(b",")
    return [orjson.dumps(value) for value in values]


def _cells(values: Sequence[Any]) -> Sequence[Any]:
    if set(map(type, values)) & {list, dict}:
        return [orjson.dumps(value).decode() if isinstance(value, list | dict) else value for value in values]
    return values


def _lines(columns: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue().encode()

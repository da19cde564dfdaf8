"""The forms of OUTPUT: NDJSON, CSV and Parquet. Every row has `line`, and `id` where the INPUT has names."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, Protocol

import numpy as np
import orjson

from bookserve.clients.answers import Array
from bookserve.clients.outputs import Column
from bookserve.export import example_inputs
from bookserve.export.contracts import Contract
from bookserve.serving.batch import parquet_table
from bookserve.serving.batch.records import BadRow, InputError

LINE, NAME = "line", "id"
_SPECIAL = re.compile(rb'[",\r\n]')


Table = dict[str, Column]  # the columns of some rows, by their names


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows whose answers have the same keys: key -> a value for each of them. `names` is None where there are none."""

    lines: Sequence[int]
    names: Sequence[str | None] | None
    answers: Mapping[str, Column]


class ColumnsDiffer(ValueError):
    """An answer has other columns than those of the rows before; the message names them."""


class Form(Protocol):
    """One form of OUTPUT."""

    def table(self, answered: Answered) -> Table:
        """The rows as columns of the file."""
        ...

    def columns(self, table: Table) -> tuple[str, ...]:
        """The columns of the file, by the first rows that are answered; none where rows name their own."""
        ...

    def rows(self, table: Table) -> bytes:
        """The rows as they stand in a part."""
        ...

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """The whole file, from pieces that hold whole rows."""
        ...


class Ndjson:
    """An object a line. What is not finite becomes null, as JSON has nothing for it."""

    def __init__(self, names: bool) -> None:
        self._names = names

    def table(self, answered: Answered) -> Table:
        """See Form.table."""
        return _named(answered, self._names)

    def columns(self, table: Table) -> tuple[str, ...]:
        """See Form.columns."""
        return ()

    def rows(self, table: Table) -> bytes:
        """See Form.rows."""
        keys = [orjson.dumps(name).replace(b"%", b"%%") for name in table]
        line = b"{" + b",".join(key + b":%b" for key in keys) + b"}\n"
        return b"".join([line % row for row in zip(*map(_json_texts, table.values()), strict=True)])

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        for piece in pieces:
            stream.write(piece)


class Csv:
    """A line of names, then a line a row. A list is written as JSON, a number as JSON has it."""

    def __init__(self, names: bool) -> None:
        self._names = names

    def table(self, answered: Answered) -> Table:
        """See Form.table."""
        return _flat(_named(answered, self._names))

    def columns(self, table: Table) -> tuple[str, ...]:
        """See Form.columns."""
        return tuple(table)

    def rows(self, table: Table) -> bytes:
        """See Form.rows."""
        return _lines(list(map(_cells, table.values())))

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        head = list(columns) or ([LINE, NAME] if self._names else [LINE])
        stream.write(_lines([_cells([name]) for name in head]))
        for piece in pieces:
            stream.write(piece)


class Parquet:
    """Columns as those of CSV, but lists stay lists. Parts hold streams of Arrow's IPC format, one behind the other."""

    def __init__(self, names: bool, contract: Contract) -> None:
        """Raises InputError without pyarrow."""
        try:
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise InputError(parquet_table.NEEDED) from error
        self._arrow: Any = pyarrow
        self._names = names
        self._leaves = {tensor.name: tensor.dtype for tensor in contract.outputs}

    def table(self, answered: Answered) -> Table:
        """See Form.table."""
        return _flat(_named(answered, self._names))

    def columns(self, table: Table) -> tuple[str, ...]:
        """See Form.columns."""
        return tuple(table)

    def rows(self, table: Table) -> bytes:
        """See Form.rows."""
        arrow = self._arrow
        table = {
            name: list(map(_texts, some)) if self._dtype(name) == "object" else some for name, some in table.items()
        }
        arrays = [arrow.array(values, self._type(name, values[0])) for name, values in table.items()]
        rows = arrow.record_batch(arrays, names=list(table))
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        stream: bytes = sink.getvalue().to_pybytes()
        return stream

    def write(self, stream: IO[bytes], pieces: Iterator[bytes], columns: Sequence[str]) -> None:
        """See Form.write."""
        arrow = self._arrow
        writer: Any = None
        for piece in pieces:
            tables = list(self._tables(piece))
            if tables:
                writer = writer or self._writer(stream, tables[0].schema)
                writer.write_table(arrow.concat_tables([table.cast(writer.schema) for table in tables]))
        if writer is None:
            fields = [(LINE, arrow.int64()), *([(NAME, arrow.string())] if self._names else [])]
            writer = self._writer(stream, arrow.schema(fields))
        writer.close()

    def _tables(self, piece: bytes) -> Iterator[Any]:
        source = self._arrow.BufferReader(piece)
        while source.tell() < len(piece):
            yield self._arrow.ipc.open_stream(source).read_all()

    def _writer(self, stream: IO[bytes], schema: Any) -> Any:
        """Numbers are written without a dictionary, as they seldom repeat; lines as steps from one to the next."""
        texts = [field.name for field in schema if self._arrow.types.is_string(field.type) and field.name != NAME]
        return self._arrow.parquet.ParquetWriter(
            stream, schema, use_dictionary=texts, column_encoding={LINE: "DELTA_BINARY_PACKED"}
        )

    def _type(self, name: str, value: Any) -> Any:
        """The type of a column, by its value in the first row, or the output that it has."""
        arrow = self._arrow
        if name == NAME:
            return arrow.string()
        if isinstance(value, list):
            if value and isinstance(value[0], dict):
                fields = [(key, self._type(f"{name}.{key}", item)) for key, item in value[0].items()]
                return arrow.list_(arrow.struct(fields))
            return arrow.list_(self._type(name, value[0] if value else None))
        if value is None:
            return self._of_output(name)
        kinds = ((bool, arrow.bool_()), (int | np.integer, arrow.int64()), (float | np.floating, self._float(name)))
        for kind, found in kinds:
            if isinstance(value, kind):
                return found
        return arrow.string()

    def _of_output(self, name: str) -> Any:
        dtype = self._dtype(name)
        kind = "O" if dtype in (None, "object") else np.dtype(dtype).kind
        return {"f": self._float(name), "i": self._arrow.int64(), "u": self._arrow.int64()}.get(
            kind, self._arrow.string()
        )

    def _float(self, name: str) -> Any:
        """That of floats: the output's own, as far as readers of Parquet know it."""
        return self._arrow.float32() if self._dtype(name) in ("float16", "float32") else self._arrow.float64()

    def _dtype(self, name: str) -> str | None:
        """That of the output that a column is of; None of other columns."""
        return self._leaves.get(name) or self._leaves.get(name.partition(".")[0])


def fitting(table: Table, columns: Sequence[str]) -> Table:
    """Some rows, which have the columns of the file. Raises ColumnsDiffer."""
    if columns and tuple(table) != tuple(columns):
        other = sorted(set(table) ^ set(columns))
        raise ColumnsDiffer(f"its answer differs from the first row's in {', '.join(other[:5])}: write NDJSON")
    return table


def joined(tables: Sequence[Table]) -> list[Table]:
    """The same rows, with neighbours that have the same columns in one table."""
    found: list[Table] = []
    for names, some in groupby(tables, key=tuple):
        alike = list(some)
        if len(alike) > 1:
            alike = [{name: _concatenated([table[name] for table in alike]) for name in names}]
        found += alike
    return found


def error(row: BadRow) -> bytes:
    """A bad row as it stands in the file of errors."""
    return orjson.dumps({LINE: row.line, NAME: row.name, "reason": row.reason}, option=orjson.OPT_APPEND_NEWLINE)


def exact(array: Array) -> Any:
    """Lists of an array as `example_inputs.to_rest` has them; of finite float32 in a tenth of its time."""
    if array.dtype == np.float32 and np.isfinite(array).all():
        return orjson.loads(orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY))
    return example_inputs.to_rest(array)


def _concatenated(columns: Sequence[Column]) -> Column:
    arrays = [column for column in columns if isinstance(column, np.ndarray)]
    if len(arrays) == len(columns):
        return np.concatenate(arrays)
    return [value for column in columns for value in _listed(column)]


def _listed(column: Column) -> Sequence[Any]:
    found: Sequence[Any] = exact(column) if isinstance(column, np.ndarray) else column
    return found


def _named(answered: Answered, names: bool) -> Table:
    """The columns of rows. An output with the name of one of the first two has `output.` before it."""
    lines = answered.lines
    found: Table = {LINE: np.arange(lines.start, lines.stop) if isinstance(lines, range) else lines}
    if names:
        found[NAME] = answered.names or [None] * len(answered.lines)
    return found | {f"output.{key}" if key in (LINE, NAME) else key: some for key, some in answered.answers.items()}


def _flat(columns: Table) -> Table:
    """Columns of a table: objects of single values as a column for each of their keys, called NAME.KEY.

    Bytes that are no text are one value: {"b64": …}.
    """
    found: Table = {}
    for name, values in columns.items():
        first = values[0]
        if _is_object(first) and not any(isinstance(item, dict | list) for item in first.values()):
            found |= {f"{name}.{key}": [value[key] for value in values] for key in first}
        else:
            found[name] = values
    return found


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and "b64" not in value


def _texts(value: Any) -> Any:
    """A value of texts for Parquet, with bytes that are none as JSON."""
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return orjson.dumps(value).decode() if isinstance(value, dict) and not _is_object(value) else value


def _json_texts(values: Column) -> list[bytes]:
    if isinstance(values, np.ndarray) and values.dtype != np.float64 and values.dtype.kind == "f":
        values = exact(values)  # orjson writes 1e15 as a float32 with, as a float without an exponent
    if isinstance(values, np.ndarray):
        return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    if set(map(type, values)) <= {int, float, bool, type(None)}:
        return orjson.dumps(values)[1:-1].split(b",")
    return [orjson.dumps(value) for value in values]


def _cells(values: Column) -> list[bytes]:
    """The values of a column as they stand in a line of CSV, quoted where they have to be."""
    kinds = {values.dtype.type} if isinstance(values, np.ndarray) else set(map(type, values))
    if kinds <= {int, np.int64}:
        return _json_texts(values)
    if kinds <= {float, np.float32, np.float64} and np.isfinite(values).all():
        return _json_texts(values)
    return [_quoted(_text(value)) for value in _listed(values)]


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, list | dict) or (isinstance(value, float) and math.isfinite(value)):
        return orjson.dumps(value)
    return str(value).encode()


def _quoted(text: bytes) -> bytes:
    """A cell as RFC 4180 has it. The csv module leaves a carriage return as it is, and so ends the row there."""
    return b'"' + text.replace(b'"', b'""') + b'"' if _SPECIAL.search(text) else text


def _lines(columns: Sequence[Sequence[bytes]]) -> bytes:
    return b"".join([b",".join(row) + b"\n" for row in zip(*columns, strict=True)])

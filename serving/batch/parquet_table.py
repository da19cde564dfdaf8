"""The rows of a Parquet file as records, a few at a time. pyarrow is imported here and in `results.py` alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.clients.answers import Array
from bookserve.serving.batch import text_lines
from bookserve.serving.batch.records import FEW, BadRow, Block, InputError, Numbers, Place, Record

_ROWS = 256  # that are turned into Python's values at a time
_LARGEST_EXACT = 2**53  # of the whole numbers that a float64 tells apart
NEEDED = "a Parquet file needs the package 'pyarrow', which is not installed: pip install 'bookserve[batch]'"


class ParquetTable:
    """A Parquet file; a value of it is a dict with all columns."""

    kind = "parquet"
    has_names = False

    def __init__(self, path: Path, *, max_row_bytes: int) -> None:
        """Raises InputError where it is none, or pyarrow is missing."""
        try:
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise InputError(NEEDED) from error
        self._path = path
        self._most = max_row_bytes
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                self.total = file.metadata.num_rows
                self.columns = tuple(file.schema_arrow.names)
                types = list(file.schema_arrow.types)
                self._groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
                self._bytes = sum(file.metadata.row_group(place).total_byte_size for place in range(len(self._groups)))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as a Parquet file: {error}") from error
        self.numeric = [_is_number(kind) for kind in types]
        self.lists = [_is_list(kind) for kind in types]
        self.texts = [place for place, kind in enumerate(types) if not (_is_primitive(kind) or self.lists[place])]

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
        for batch, number in self._batches(start, _ROWS):
            for found in self.records(batch, number):
                yield found, Place(found.line, found.line)

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """See Source.blocks."""
        fitting = max(1, size * self.total // max(1, self._bytes))
        for batch, number in self._batches(start, min(rows, fitting)):
            yield ParquetBlock(batch, number, self, self._most)

    def records(self, batch: Any, number: int) -> Iterator[Record | BadRow]:
        """The rows of a batch behind the row of that number."""
        for begin in range(0, batch.num_rows, _ROWS):
            for value in batch.slice(begin, _ROWS).to_pylist():
                number += 1
                yield self._record(number, value)

    def digest(self) -> str:
        """See Source.digest."""
        return text_lines.digest(self._path)

    def _batches(self, start: Place, size: int) -> Iterator[tuple[Any, int]]:
        """Batches of up to `size` rows behind a place, each with the number of rows before it."""
        import pyarrow.parquet

        before = 0  # rows of the groups that are passed over
        groups: list[int] = []
        for place, rows in enumerate(self._groups):
            if before + rows <= start.offset and not groups:
                before += rows
            else:
                groups.append(place)
        number = before
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                # The runs keep all processors busy: Arrow's own threads only cost time of them.
                for batch in file.iter_batches(batch_size=size, row_groups=groups, use_threads=False):
                    skipped = min(batch.num_rows, max(0, start.offset - number))
                    if skipped < batch.num_rows:
                        yield batch.slice(skipped), number + skipped
                    number += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{self._path} cannot be read behind row {number}: {error}") from error

    def _record(self, number: int, value: dict[str, Any]) -> Record | BadRow:
        if sum(len(cell) for cell in value.values() if isinstance(cell, str | bytes)) > self._most:
            return BadRow(number, None, f"the row has more than {self._most:,} bytes (--max-row-bytes)")
        return Record(number, None, value)


@dataclass(frozen=True, slots=True)
class ParquetBlock:
    """Some rows of a Parquet file behind the row of a number."""

    batch: Any  # pyarrow.RecordBatch
    number: int
    source: ParquetTable
    most: int  # bytes of a row

    @property
    def behind(self) -> Place:
        """See Block.behind."""
        return Place(self.number + self.batch.num_rows, self.number + self.batch.num_rows)

    def records(self) -> list[Record | BadRow]:
        """See Block.records."""
        return list(self.source.records(self.batch, self.number))

    def halves(self) -> tuple[Block, ...]:
        """See Block.halves."""
        rows = self.batch.num_rows
        parts = ((0, rows // 2), (rows // 2, rows - rows // 2)) if rows > FEW else ()
        return tuple(
            ParquetBlock(self.batch.slice(begin, length), self.number + begin, self.source, self.most)
            for begin, length in parts
        )

    def numbers(self, width: int, wanted: Sequence[int], name: int | None, dtype: str) -> Numbers | None:
        """See Table.numbers. A single column may hold lists of numbers, all of one length."""
        source, columns = self.source, self.batch.columns
        if sum(columns[place].nbytes for place in source.texts) > self.most:
            return None
        if len(set(source.columns)) < len(columns):
            return None
        if len(wanted) == 1 and source.lists[wanted[0]]:
            cells = _lists(columns[wanted[0]], dtype)
        elif all(source.numeric[place] and not columns[place].null_count for place in wanted):
            cells = _stacked([np.from_dlpack(columns[place]) for place in wanted], dtype)
        else:
            cells = None
        if cells is None:
            return None
        names = None
        if name is not None:
            names = [None if value is None else str(value) for value in columns[name].to_pylist()]
        return Numbers(range(self.number + 1, self.number + 1 + self.batch.num_rows), cells, names)


def _stacked(columns: Sequence[Array], dtype: str) -> Array | None:
    """Columns of numbers as [rows, columns], of the type of a list of a row's values; floats as `dtype` if it is one.

    None where a list of Python's would have other values.
    """
    whole = [column for column in columns if column.dtype.kind != "f"]
    if any(column.dtype == np.uint64 for column in whole):
        return None
    if len(whole) == len(columns):
        return np.stack(columns, axis=1, dtype=np.int64) if columns else None
    if any((np.abs(column) >= _LARGEST_EXACT).any() for column in whole):
        return None
    wanted = np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.dtype(np.float64)
    with np.errstate(over="ignore"):
        cells = np.stack(columns, axis=1, dtype=wanted, casting="unsafe")
    return cells if np.isfinite(cells).all() else None


def _lists(column: Any, dtype: str) -> Array | None:
    """A column of lists of numbers as [rows, values]."""
    import pyarrow.compute

    flat = column.flatten()
    if not _is_number(flat.type) or flat.null_count:
        return None
    values = _stacked([np.from_dlpack(flat)], dtype)
    lengths = set(pyarrow.compute.list_value_length(column).to_pylist())  # of no list: None
    if values is None or lengths != {len(values) // len(column)}:
        return None
    return values.reshape(len(column), -1)


def _is_primitive(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_primitive(kind))


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))

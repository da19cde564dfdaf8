"""The rows of a Parquet file as records, a few at a time. pyarrow is imported here and in `results.py` alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bookserve.serving.batch import text_lines
from bookserve.serving.batch.records import BadRow, InputError, Place, Record

_ROWS = 256  # that are turned into Python's values at a time
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
                self._groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as a Parquet file: {error}") from error

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
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
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups):
                    skipped = min(batch.num_rows, max(0, start.offset - number))
                    number += skipped
                    for value in batch.slice(skipped).to_pylist():
                        number += 1
                        yield self._record(number, value), Place(number, number)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{self._path} cannot be read behind row {number}: {error}") from error

    def digest(self) -> str:
        """See Source.digest."""
        return text_lines.digest(self._path)

    def _record(self, number: int, value: dict[str, Any]) -> Record | BadRow:
        if sum(len(cell) for cell in value.values() if isinstance(cell, str | bytes)) > self._most:
            return BadRow(number, None, f"the row has more than {self._most:,} bytes (--max-row-bytes)")
        return Record(number, None, value)

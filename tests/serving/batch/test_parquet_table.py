import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from bookserve.serving.batch.parquet_table import ParquetTable
from bookserve.serving.batch.records import BadRow, InputError, Place


def write(path: Path, rows: int, group: int) -> Path:
    pyarrow.parquet.write_table(pa.table({"x": list(range(rows))}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("start", [0, 1, 99, 100, 101, 255, 256, 257, 699, 700])
def test_reading_goes_on_behind_every_place(tmp_path: Path, start: int) -> None:
    source = ParquetTable(write(tmp_path / "in.parquet", 700, 100), max_row_bytes=100)
    found = list(source.read(Place(start, start)))
    assert [one.value["x"] for one, _ in found] == list(range(start, 700))
    assert [place.offset for _, place in found] == list(range(start + 1, 701))
    assert source.total == 700


@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, True), (101, False)])
def test_a_row_may_have_so_many_bytes(tmp_path: Path, length: int, fits: bool) -> None:
    pyarrow.parquet.write_table(pa.table({"text": ["x" * length]}), tmp_path / "in.parquet")
    ((found, _),) = ParquetTable(tmp_path / "in.parquet", max_row_bytes=100).read(Place())
    assert isinstance(found, BadRow) is not fits


def test_the_line_that_installs_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.parquet", 1, 1)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'bookserve\[batch\]'"):
        ParquetTable(path, max_row_bytes=100)

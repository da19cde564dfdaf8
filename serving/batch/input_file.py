"""Which source reads an INPUT: by --format, or by the end of its name."""

from pathlib import Path

from bookserve.serving.batch.csv_table import CsvTable
from bookserve.serving.batch.parquet_table import ParquetTable
from bookserve.serving.batch.picture_files import PictureArchive, PictureFolder
from bookserve.serving.batch.records import InputError, Source
from bookserve.serving.batch.text_lines import TextLines

# --format -> the ends of names that stand for it
FORMATS = {
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
    "ndjson": (".ndjson", ".jsonl"),
    "smiles": (".smi", ".smiles"),
    "text": (".txt",),
    "pictures": (".zip",),
}


def open_source(path: Path, form: str | None, max_row_bytes: int) -> Source:
    """The source of an INPUT; `form` is one of FORMATS, or None.

    Raises:
        InputError: there is no such file, it is of no known form, or it cannot be read as such.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    if path.is_dir():
        if form not in (None, "pictures"):
            raise InputError(f"{path} is a folder, which holds pictures: --format {form} needs a file")
        return PictureFolder(path, max_row_bytes=max_row_bytes)
    if not path.is_file():
        raise InputError(f"{path} is no regular file: a run that was stopped has to read it again, so save it first")
    suffix = path.suffix.lower()
    form = form or next((name for name, ends in FORMATS.items() if suffix in ends), None)
    match form:
        case "csv":
            return CsvTable(path, max_row_bytes=max_row_bytes)
        case "parquet":
            return ParquetTable(path, max_row_bytes=max_row_bytes)
        case "ndjson":
            return TextLines(path, "ndjson", names=False, max_row_bytes=max_row_bytes)
        case "smiles" | "text":
            return TextLines(path, "lines", names=form == "smiles", max_row_bytes=max_row_bytes)
        case "pictures":
            return PictureArchive(path, max_row_bytes=max_row_bytes)
        case _:
            ends = ", ".join(end for ends in FORMATS.values() for end in ends)
            raise InputError(f"{path} does not tell what it holds: its name should end in {ends}; or give --format")

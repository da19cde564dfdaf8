"""The INPUTs of `bookserve predict`: what a person names (values, files, folders, `-`), as one item after the other.

Items are made while they are asked for, so that a long file or standard input costs no memory.
"""

import csv
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookserve.clients import forms
from bookserve.clients.answers import Array
from bookserve.export import example_inputs
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import Rows

STANDARD_INPUT = "-"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
_TENSOR_FILES = (".json", ".npz", ".npy", ".csv")  # whatever the task
_COLUMN = {forms.MOLECULES: "smiles", forms.TEXT: "text", forms.BOARD: "board"}  # of a table with other columns, too
_MAX_BYTES = 64 << 20  # of a picture or JSON on standard input
_MAX_LINE = 1 << 20  # characters


@dataclass(frozen=True)
class Tensors:
    """Inputs of a request as arrays, whatever the task; of a picture with its file, which a server may read itself."""

    rows: Rows
    picture: Path | None = None


Value = str | Path | bytes | Array | Tensors


@dataclass(frozen=True)
class Item:
    """One thing to ask, and what it is called in a table: as it was typed, or its file and line.

    `value` is a picture (path or bytes), a molecule, text or board (str), a row of numbers (str or array), or Tensors.
    """

    name: str
    value: Value


def items(sources: Sequence[str], contract: Contract) -> Iterator[Item]:
    """Every item of the sources in turn.

    Raises:
        ExportError: a file cannot be read as what it should be, or a folder holds nothing of use.
        OSError: a file cannot be read.
    """
    form = forms.form(contract)
    for source in sources:
        if source == STANDARD_INPUT:
            yield from _standard_input(form, contract)
        elif is_tensors(source, form):
            yield Item(source, _tensors(source, contract))
        elif len(source) < 4096 and Path(source).is_dir():
            yield from _folder(Path(source), form, contract)
        else:
            yield from _file_or_value(source, form, contract)


def is_tensors(source: str, form: str) -> bool:
    """Whether INPUT is tensors in a file or as JSON, and not what a person has of a task."""
    if form == forms.TENSORS:
        return not Path(source).is_dir()
    begins = source.lstrip()[:1]
    if begins == "{" and form != forms.TEXT:
        return True
    if begins == "[" and form not in (forms.TEXT, forms.MOLECULES):
        return True
    suffix = Path(source).suffix.lower()
    return suffix in _TENSOR_FILES and suffix != ".csv" and Path(source).is_file()


def tensors(source: str, contract: Contract) -> Rows:
    """The tensors in a file or in JSON.

    Raises:
        ExportError: they cannot be read, or do not fit the contract.
    """
    if source.lstrip()[:1] in ("{", "["):
        return example_inputs.read_json(source, contract, "INPUT")
    return example_inputs.read(Path(source), contract)


def have_picture(sources: Sequence[str]) -> bool:
    """Whether one of the sources, or of the files in a folder among them, is a picture by its name."""
    paths = [Path(source) for source in sources if len(source) < 4096]
    return any(_is_picture(file) for path in paths for file in (path.iterdir() if path.is_dir() else [path]))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES


def _tensors(source: str, contract: Contract) -> Tensors:
    return Tensors(tensors(source, contract), Path(source) if _is_picture(Path(source)) else None)


def _folder(folder: Path, form: str, contract: Contract) -> Iterator[Item]:
    """The files in a folder that a model of the form can be asked with, by name; folders within are left alone."""
    suffixes = {forms.PICTURES: PICTURES, forms.TENSORS: (*_TENSOR_FILES, *PICTURES)}.get(form, (".csv", ".txt"))
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise ExportError(f"{folder} holds no file that ends in {', '.join(suffixes)}")
    for path in files:
        if form == forms.TENSORS:
            yield Item(str(path), _tensors(str(path), contract))
        else:
            yield from _file_or_value(str(path), form, contract)


def _file_or_value(source: str, form: str, contract: Contract) -> Iterator[Item]:
    """A table's rows, a text file's lines, or the one thing that was named."""
    path = Path(source)
    suffix = path.suffix.lower() if len(source) < 4096 else ""
    if form == forms.PICTURES:
        yield Item(source, path)
    elif suffix == ".csv" and path.is_file():
        if form in forms.NUMBERS:
            yield from _numbers(example_inputs.read(path, contract), source)
        else:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                yield from _table(lines, source, _COLUMN[form])
    elif suffix == ".txt" and path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from _lines(lines, source)
    else:
        yield Item(source, source)


def _standard_input(form: str, contract: Contract) -> Iterator[Item]:
    """What is piped in: one picture; JSON or a table of tensors; or an item a line."""
    name = "standard input"
    if form == forms.PICTURES:
        yield Item(name, _bytes())
    elif form == forms.TENSORS:
        text = _bytes().decode()
        read = example_inputs.read_json if text.lstrip()[:1] in ("{", "[") else example_inputs.read_csv
        yield Item(name, Tensors(read(text, contract, name)))
    elif form in forms.NUMBERS:
        lines = iter(sys.stdin)
        first = next(lines, "")
        if set(first.strip().split(",")) & set(contract.columns):
            yield from _numbers(example_inputs.read_csv(first + "".join(lines), contract, name), name)
        else:
            yield from _lines(itertools.chain([first], lines), name)
    else:
        yield from _lines(sys.stdin, name)


def _bytes() -> bytes:
    content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ExportError(f"standard input has more than {_MAX_BYTES:,} bytes: give a file")
    return content


def _numbers(rows: Rows, name: str) -> Iterator[Item]:
    (array,) = rows.values()
    for number, row in enumerate(array, 1):
        yield Item(f"{name} row {number}", row)


def _lines(lines: Iterable[str], name: str) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        if len(line) > _MAX_LINE:
            raise ExportError(f"line {number} of {name} has more than {_MAX_LINE:,} characters")
        if line.strip():
            yield Item(f"{name} line {number}", line.strip())


def _table(lines: Iterable[str], name: str, wanted: str) -> Iterator[Item]:
    """The cells of the column that is called `wanted`, or of the only column."""
    reader = csv.reader(lines)
    head = next(reader, [])
    names = [cell.strip().lower() for cell in head]
    if wanted in names:
        place = names.index(wanted)
    elif len(head) == 1:
        place = 0
        yield Item(f"{name} line 1", head[0])
    else:
        raise ExportError(f"{name} has no column '{wanted}'; its columns are {', '.join(head)[:200] or 'none'}")
    for row in reader:
        if len(row) > place and row[place].strip():
            yield Item(f"{name} line {reader.line_num}", row[place].strip())


def first_of(found: Iterator[Item]) -> tuple[Iterator[Item], Any]:
    """The same items, and whether there are more than one."""
    head = list(itertools.islice(found, 2))
    return itertools.chain(head, found), len(head) > 1

"""A table for a terminal: columns beside each other, as wide as their cells, and cut where the terminal is narrower."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence

_BETWEEN = "  "
_LEAST = 4  # characters of a column that is cut


def lines(rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """The rows, the first of which names the columns; of at most `width` characters, the widest columns cut first.

    Nothing is cut without a width.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None:
        room = width - len(_BETWEEN) * (len(widths) - 1)
        while sum(widths) > room and max(widths) > _LEAST:
            widths[widths.index(max(widths))] -= 1
    for row in rows:
        cells = (_cut(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True))
        yield _BETWEEN.join(cells).rstrip()


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows, the first of which names the columns, as a Markdown table whose columns stand below each other."""
    widths = [max(1, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    lined = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lined
    ]


def folded(line: str, indent: int = 10) -> str:
    """A line of a name and what is told of it, over as many lines as a terminal needs; as it is for a program.

    It is broken between words. A list without blanks that is longer than a line is broken after its commas, too; any
    other word stays whole, so that a path can be copied.
    """
    width = terminal_width()
    if width is None or len(line) <= width:
        return line
    lines, current = [], ""
    for part in _parts(line, width - indent):
        if len(current) + len(part) > width and current.strip():
            lines.append(current.rstrip())
            current = " " * indent + part.lstrip()
        else:
            current += part
    return "\n".join([*lines, current])


def _parts(line: str, longest: int) -> Iterator[str]:
    """The words of a line, each with the blanks before it; one of more than `longest` letters in parts."""
    for word in re.findall(r"\s*\S+", line):
        yield from [word] if len(word.lstrip()) <= longest else re.findall(r"\s*[^\s,]+,*|,+", word)


def terminal_width() -> int | None:
    """The columns of the terminal; None where the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else cell[: size - 1] + "…"

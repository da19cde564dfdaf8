"""Many predictions as a table for a terminal, as CSV or as JSON, each printed when it is there."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import click

_WIDTH = 80  # characters of a line of the table
_INPUT = 30  # of the input's name


@dataclass(frozen=True)
class Prediction:
    """What came of one input: `values` as the gateway gives them, or an `error`, which is empty otherwise."""

    name: str
    version: int
    values: dict[str, Any]
    error: str


class Printer(Protocol):
    """One way to print predictions."""

    def add(self, prediction: Prediction) -> None:
        """Prints one more."""

    def end(self) -> None:
        """Prints what comes after the last one."""


class TablePrinter:
    """A line of at most 80 characters for each prediction."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._begun = False

    def add(self, prediction: Prediction) -> None:
        """As `Printer.add`."""
        if prediction.error:
            click.echo(f"Error: {prediction.name}: {prediction.error}", err=True)
            return
        if not self._begun:
            click.echo(f"{self._model} version {prediction.version}")
            self._begun = True
        values = "  ".join(f"{name} {_cell(value)}" for name, value in prediction.values.items())
        line = f"{_shortened(prediction.name, _INPUT):<{_INPUT}}  {values}"
        click.echo(_shortened(line, _WIDTH))

    def end(self) -> None:
        """As `Printer.end`."""


class CsvPrinter:
    """RFC 4180: `input`, `version`, a column for each number or label of an output, `error`."""

    def __init__(self, model: str) -> None:
        self._columns: list[str] = []
        self._waiting: list[Prediction] = []  # those that failed before the columns were known

    def add(self, prediction: Prediction) -> None:
        """As `Printer.add`."""
        if not self._columns and prediction.error:
            self._waiting.append(prediction)
            return
        if not self._columns:
            self._columns = list(_flat(prediction.values))
            self._begin()
        self._write(prediction)

    def end(self) -> None:
        """As `Printer.end`."""
        if not self._columns:
            self._begin()

    def _begin(self) -> None:
        _echo_row(["input", "version", *self._columns, "error"])
        for prediction in self._waiting:
            self._write(prediction)
        self._waiting = []

    def _write(self, prediction: Prediction) -> None:
        flat = _flat(prediction.values)
        version = "" if prediction.error else str(prediction.version)
        _echo_row([prediction.name, version, *(flat.get(column, "") for column in self._columns), prediction.error])


class JsonPrinter:
    """One document {"model", "predictions": [{"input", "version", …} or {"input", "error"}]}, a prediction a line."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._begun = False

    def add(self, prediction: Prediction) -> None:
        """As `Printer.add`."""
        told = {"error": prediction.error} if prediction.error else {"version": prediction.version, **prediction.values}
        self._begin()
        click.echo(json.dumps({"input": prediction.name, **told}), nl=False)

    def end(self) -> None:
        """As `Printer.end`."""
        if not self._begun:
            self._begin()
        click.echo("\n]}")

    def _begin(self) -> None:
        click.echo(",\n" if self._begun else f'{{"model": {json.dumps(self._model)}, "predictions": [\n', nl=False)
        self._begun = True


PRINTERS: dict[str, Callable[[str], Printer]] = {"table": TablePrinter, "csv": CsvPrinter, "json": JsonPrinter}


def _cell(value: Any) -> str:
    """A short text for a value: of numbers by label the largest one."""
    match value:
        case dict() if value and all(isinstance(number, float | int) for number in value.values()):
            best = max(value, key=lambda label: value[label])
            return f"{best} {value[best]:.4g}"
        case [{"word": _}, *_]:
            return f"{value[0]['word']} {value[0]['probability']:.4g}"
        case float():
            return f"{value:.6g}"
        case str():
            return value
        case _:
            return json.dumps(value)


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Column -> text: numbers by label have a column each, other lists and objects are JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{label}": str(number) for label, number in value.items()}
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _echo_row(cells: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    click.echo(text.getvalue(), nl=False)


def _shortened(text: str, width: int) -> str:
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    return clean if len(clean) <= width else clean[: width - 1] + "…"

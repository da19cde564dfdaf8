"""The options of `bookserve train` that name a user's own data, and what they mean together."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bookserve.training.datasets.files import DataError
from bookserve.training.datasets.own_data import Corpus, MoleculeTable, OwnData, PictureFolder, PointTable
from bookserve.training.models import MODELS, OWN_DATA

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # of a model in the store
VOCABULARY = 10_000  # words, unless said otherwise

_PATH = click.Path(path_type=Path)
# Option -> the kinds of data that it is for, and what it says.
_OPTIONS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "--data-file": (("points", "molecules"), _PATH, "Your own data: a CSV file with a line of column names."),
    "--x": (("points",), str, "Its columns of numbers to predict from, as in a,b."),
    "--y": (("points",), str, "Its column to predict."),
    "--smiles-column": (("molecules",), str, "Its column of molecules as SMILES."),
    "--labels": (("molecules",), str, "Its columns of 1, 0 or nothing to predict, as in a,b."),
    "--text": (("text",), _PATH, "Your own text, UTF-8."),
    "--valid-text": (("text",), _PATH, "The text to validate with; by default a tenth of --text."),
    "--test-text": (("text",), _PATH, "The text to test with; by default a tenth of --text."),
    "--vocabulary": (
        ("text",),
        click.IntRange(min=20, max=200_000),
        f"Words that a model of your text knows.  [default: {VOCABULARY:,}]",
    ),
}


@dataclass
class OwnDataOptions:
    """What the command line says: option -> value, None where it was not given."""

    values: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return [name for name, value in self.values.items() if value is not None]


_pass_options = click.make_pass_decorator(OwnDataOptions, ensure=True)


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.ensure_object(OwnDataOptions).values[parameter.opts[0]] = value


def own_data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command that takes them as its first argument."""
    made: Callable[..., None] = _pass_options(command)
    for name, (_, kind, words) in reversed(_OPTIONS.items()):
        made = click.option(name, type=kind, help=words, expose_value=False, callback=_note)(made)
    return made


def chosen(model: str, options: OwnDataOptions, pictures: Path | None) -> OwnData | None:
    """The data that the options name for a model of the book; `pictures` is a folder of the user's own.

    Raises:
        DataError: an option is missing, or is for another kind of model.
    """
    kind = OWN_DATA.get(model, "")
    for name in options.given:
        if kind not in _OPTIONS[name][0]:
            raise DataError(f"{name} is not for {model}: {_takes(model)}")
    if pictures is not None:
        if kind != "pictures":
            raise DataError(f"{model} does not learn from pictures: {_takes(model)}")
        return PictureFolder(pictures)
    if not options.given:
        return None
    values = options.values
    if kind == "text":
        if values["--text"] is None:
            raise DataError(f"{options.given[0]} needs --text: {_takes(model)}")
        if (values["--valid-text"] is None) != (values["--test-text"] is None):
            raise DataError("--valid-text and --test-text go together: without both, they are cut from --text")
        return Corpus(
            values["--text"], values["--valid-text"], values["--test-text"], values["--vocabulary"] or VOCABULARY
        )
    missing = [name for name, (kinds, _, _) in _OPTIONS.items() if kind in kinds and values[name] is None]
    if missing:
        raise DataError(f"{', '.join(missing)} is missing: {_takes(model)}")
    if kind == "points":
        return PointTable(values["--data-file"], _columns("--x", values["--x"]), values["--y"])
    labels = _columns("--labels", values["--labels"])
    return MoleculeTable(values["--data-file"], values["--smiles-column"], labels)


def run_name(model: str, name: str | None, own: OwnData | None) -> str:
    """What the run and the model in the store are called: as asked, or as the data is, or as the book has it.

    Raises:
        DataError: that is no name, or a name of the book's for a user's own data.
    """
    chosen_name = name or (own.name if own is not None else model)
    if not NAME.fullmatch(chosen_name):
        raise DataError(
            f"'{chosen_name}' is no name for a model: give one of letters, digits, '_', '.' and '-' with --name"
        )
    if chosen_name in MODELS and (own is not None or chosen_name != model):
        raise DataError(f"'{chosen_name}' is a model of the book: give yours another name with --name")
    return chosen_name


def _columns(option: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    twice = {name for name in names if names.count(name) > 1}
    if not all(names) or twice:
        fault = f"has '{min(twice)}' twice" if twice else "has an empty name"
        raise DataError(f"{option} {text!r} {fault}: give names of columns with a comma between them, as in a,b")
    return names


def _takes(model: str) -> str:
    """What a model takes of a user's own, for a message."""
    kind = OWN_DATA.get(model, "")
    if not kind:
        return "it learns from no data"
    if kind == "pictures":
        return "it takes --data-dir with a folder of pictures for each class"
    return "it takes " + ", ".join(name for name, (kinds, _, _) in _OPTIONS.items() if kind in kinds)

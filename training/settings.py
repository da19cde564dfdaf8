"""`--set name=value`: fields of a model's `Config` that the command line gives other values, checked by their types."""

import dataclasses
import json
import math
import typing
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal

from bookserve.training.errors import TrainingError

# What comes from the data: another value would contradict the contract.
FROM_DATA = frozenset({"classes", "columns", "labels", "assays", "vocabulary", "means", "deviations", "scale"})
AT_LEAST_ONE = frozenset(
    {"epochs", "batch", "steps", "units", "layers", "members", "train_rows", "train_words", "filters_1", "filters_2"}
    | {"kernel", "hidden", "moves", "workers", "games", "stair", "memory_parts"}
)
BELOW_ONE = ("dropout",)  # fields whose names end so


def changed(config: Any, texts: Sequence[str]) -> dict[str, Any]:
    """The fields that texts such as "dropout=0.3" or "hidden=512,256" set, with their values.

    Raises:
        TrainingError: there is no such field, it is set twice, or the value is none of its type or range.
    """
    kinds = typing.get_type_hints(type(config))
    settable = [field.name for field in dataclasses.fields(config) if _is_settable(field.name, kinds[field.name])]
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals or name not in settable:
            fault = "has no '='" if not equals else f"names no number of this model's: '{name}'"
            raise TrainingError(f"--set {text!r} {fault}; give name=value, with one of {', '.join(settable)}")
        if name in values:
            raise TrainingError(f"--set gives '{name}' twice")
        values[name] = _value(name, written, kinds[name], getattr(config, name))
    return values


def grid(config: Any, texts: Sequence[str]) -> dict[str, tuple[Any, ...]] | None:
    """Field -> its values, of texts such as "dropout=0,0.5" or "hidden=[64],[64,32]"; None where there are none.

    Raises:
        TrainingError: as `changed`, or a field has a value twice.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        try:
            listed = [json.dumps(value) for value in json.loads(f"[{written}]")]
        except ValueError:
            listed = [part.strip() for part in written.split(",")]
        values = [value for each in listed or [""] for value in changed(config, [f"{name}{equals}{each}"]).values()]
        if name in found or any(value in values[:place] for place, value in enumerate(values)):
            raise TrainingError(f"--grid {text!r} gives '{name}' or a value of it twice: name each once")
        found[name] = tuple(values)
    return found or None


def _is_settable(name: str, kind: Any) -> bool:
    return name not in FROM_DATA and not dataclasses.is_dataclass(kind)


def _value(name: str, written: str, kind: Any, now: Any) -> Any:
    """What a text says, in the type of the field.

    Raises:
        TrainingError: it says nothing of that type, or it is out of range.
    """
    for candidate in _readings(written):
        value = float(candidate) if _takes(kind, float) and type(candidate) is int else candidate
        if _fits(value, kind):
            _check_range(name, value)
            return value
    raise TrainingError(f"--set {name}={written}: {_described(kind)} is expected, such as {_written(now)}")


def _readings(written: str) -> list[Any]:
    """What a text may mean: JSON, a list of JSON with commas, or itself."""
    found: list[Any] = []
    for text in (written, f"[{written}]"):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        found.append(tuple(value) if isinstance(value, list) else value)
    return [*found, written, tuple(part.strip() for part in written.split(","))]


def _takes(kind: Any, wanted: type) -> bool:
    """Whether a field of that kind may be `wanted`, and is not a whole number."""
    options = typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return wanted in options and int not in options


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and bool(value) and all(_fits(each, typing.get_args(kind)[0]) for each in value)
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return value is None if kind is NoneType else type(value) is kind


def _check_range(name: str, value: Any) -> None:
    numbers = [each for each in (value if isinstance(value, tuple) else (value,)) if type(each) in (int, float)]
    least = 1 if name in AT_LEAST_ONE or isinstance(value, tuple) else 0
    for number in numbers:
        if number < least:
            raise TrainingError(f"--set {name}={_written(value)}: it must be at least {least}")
        if name.endswith(BELOW_ONE) and number >= 1:
            raise TrainingError(f"--set {name}={_written(value)}: it is a fraction, and must be below 1")


def _described(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_described(option) for option in typing.get_args(kind))
    origin = typing.get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if origin is tuple:
        return f"{_described(typing.get_args(kind)[0])}, or several with commas,"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}
    return names[kind]


def _written(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)

"""From output tensors to the answer that a person reads; the gateway and `bookserve predict` give the same.

Every answer is {"model", "version", "predictions": [...]}, with one prediction a row of the request. What the outputs
mean stands in the contract: units, labels, which outputs are class numbers.

A person reads rounded numbers: probabilities of six decimal places, others of seven digits. Who goes on calculating
gives `exact`, which makes lists of an array of floats, each with the digits that tell it from its neighbours. Nothing
is rounded then, and a column of single numbers stays the array that it was.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bookserve.clients import forms
from bookserve.clients.answers import Array, Prediction
from bookserve.clients.inputs import boards
from bookserve.clients.inputs.words import Tokens, Vocabulary
from bookserve.export import example_inputs
from bookserve.export.contracts import SIMILARITY, Contract, Tensor

UNLIKE_TRAINING = "unlike_training"
Column = Sequence[Any] | Array  # a value for each row; an array is of floats [rows]
Exact = Callable[[Array], Any]

_MANY = 64  # numbers that are rounded at once: fewer are faster one by one


def rows(contract: Contract, prediction: Prediction, exact: Exact | None = None) -> dict[str, Any]:
    """The answer for numbers and pictures: {"class": label} first, where an output has class numbers, then every other
    output under its name.

    Numbers for each label become {label: number}. The class of a picture is the likeliest, where no output names it.
    """
    return _answer(contract, prediction.version, _labelled(contract, prediction.outputs, exact))


def molecules(
    contract: Contract,
    prediction: Prediction,
    smiles: Sequence[str],
    unlike: float | None = None,
    exact: Exact | None = None,
) -> dict[str, Any]:
    """The answer for molecules: {"smiles"} and the outputs as in `rows`.

    Where the model tells how like a molecule is to the nearest training molecule, and `unlike` is known, below which
    that is too little to trust the answer as much as others, `UNLIKE_TRAINING` says whether it is.
    """
    near = next((tensor.name for tensor in contract.outputs if tensor.unit == SIMILARITY), None)
    found = zip(smiles, _labelled(contract, prediction.outputs, exact), strict=True)
    predictions = [{"smiles": text, **row} for text, row in found]
    if near is not None and unlike is not None:
        for row, similarity in zip(predictions, prediction.outputs[near], strict=True):
            row[UNLIKE_TRAINING] = bool(similarity < unlike)
    return _answer(contract, prediction.version, predictions)


def board(
    contract: Contract, prediction: Prediction, positions: Sequence[Sequence[str]], exact: Exact | None = None
) -> dict[str, Any]:
    """The answer for boards: {"player", "move", "row", "column", "probabilities", "value"}.

    `move` is the most probable square, 0 to 8 row by row, and `row` and `column` the same from 0; only free squares
    are candidates. `probabilities` has one number a square, `value` is what the player may expect.
    """
    squares = forms.scores(contract)
    assert squares is not None
    predictions = []
    rows = zip(positions, prediction.outputs[squares.name], _squares(contract, prediction, exact), strict=True)
    for position, probabilities, found in rows:
        free = [number for number, square in enumerate(position) if not square]
        move = max(free, key=lambda number: float(probabilities[number]))
        place = {"player": boards.to_move(position), "move": move, "row": move // 3, "column": move % 3}
        predictions.append({**place, **found})
    return _answer(contract, prediction.version, predictions)


def board_without(
    contract: Contract, prediction: Prediction, position: Sequence[str], squares: Sequence[int]
) -> dict[str, Any]:
    """The answer for one board as in `board`, and `without`: {"square", "mark", "probabilities", "value"} of each mark.

    The prediction has a row for the whole board, then one without the mark of each of `squares`.
    """
    first = {name: array[:1] for name, array in prediction.outputs.items()}
    answer = board(contract, Prediction(prediction.model, prediction.version, first), [position])
    rows = zip(squares, _squares(contract, prediction)[1:], strict=True)
    without = [{"square": square, "mark": position[square], **found} for square, found in rows]
    return {**answer, "without": without}


def next_words(
    contract: Contract,
    version: int,
    vocabulary: Vocabulary,
    texts: Sequence[tuple[str, Tokens, Array]],
    top_k: int,
    exact: Exact | None = None,
) -> dict[str, Any]:
    """The answer for texts: {"text", "unknown", "words": [{"word", "probability"}]}, the likeliest words first.

    `texts` has each text with its tokens and its probabilities float32 [vocabulary]. The unknown word and the
    vocabulary's fillers are no suggestions and are left out.
    """
    predictions = []
    for text, tokens, probabilities in texts:
        shares = probabilities.copy()
        shares[list(vocabulary.silent)] = -1.0
        order = np.argsort(-shares, kind="stable")
        best = order[: min(top_k, len(order) - len(vocabulary.silent))]
        values = _rounded_list(probabilities[best]) if exact is None else exact(probabilities[best])
        words = [
            {"word": vocabulary.words[number], "probability": value} for number, value in zip(best, values, strict=True)
        ]
        predictions.append({"text": text, "unknown": list(tokens.unknown), "words": words})
    return _answer(contract, version, predictions)


def text_classes(
    contract: Contract, version: int, texts: Sequence[tuple[str, Tokens, Array]], exact: Exact | None = None
) -> dict[str, Any]:
    """The answer of a model that labels texts: {"text", "unknown", "class"} and the scores, {label: number}.

    `texts` has each text with its tokens and its scores float32 [labels].
    """
    scores = forms.scores(contract)
    assert scores is not None
    predictions = []
    for text, tokens, values in texts:
        (row,) = _labelled(contract, {scores.name: values[None]}, exact)
        best = contract.labels[int(values.argmax())]
        predictions.append({"text": text, "unknown": list(tokens.unknown), "class": best, **row})
    return _answer(contract, version, predictions)


def tensors(contract: Contract, prediction: Prediction, exact: Exact | None = None) -> dict[str, Any]:
    """The answer in tensors: output -> value in the REST form; an output with a number for each label as {label:
    number}. Outputs of different batches are one prediction.
    """
    arrays = {tensor.name: np.asarray(prediction.outputs[tensor.name]) for tensor in contract.outputs}
    sizes = {len(array) if array.ndim else 1 for array in arrays.values()}
    if len(sizes) > 1 or any(array.ndim == 0 for array in arrays.values()):
        predictions = [{name: example_inputs.to_rest(array) for name, array in arrays.items()}]
    else:
        values = tensor_columns(contract, arrays, exact)
        predictions = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return _answer(contract, prediction.version, predictions)


def _squares(contract: Contract, prediction: Prediction, exact: Exact | None = None) -> list[dict[str, Any]]:
    """The probability of each square and what to expect, one object a row."""
    squares, worth = forms.scores(contract), forms.values(contract)
    assert squares is not None
    assert worth is not None
    probabilities, values = prediction.outputs[squares.name], prediction.outputs[worth.name]
    if exact is None:
        rows = zip(map(_rounded_list, probabilities), map(_number, values), strict=True)
    else:
        rows = zip(exact(probabilities), exact(values), strict=True)
    return [{"probabilities": row, "value": value} for row, value in rows]


def columns(contract: Contract, outputs: Mapping[str, Array], exact: Exact | None = None) -> dict[str, Column]:
    """The answers of `rows` by their keys, each with a value for every row. Outputs that are not given are left out."""
    given = [tensor for tensor in contract.outputs if tensor.name in outputs]
    classes, scores = forms.classes(contract), forms.scores(contract)
    if scores is not None and scores in given:
        outputs = {**outputs, scores.name: outputs[scores.name].reshape(len(outputs[scores.name]), -1)}
    found: dict[str, Column] = {}
    if classes is not None and classes in given:
        found["class"] = [_label(contract.labels, classes, value) for value in outputs[classes.name]]
    elif contract.task == forms.PICTURES and scores is not None:
        best = outputs[scores.name].argmax(axis=1).tolist()
        found["class"] = [contract.labels[place] if contract.labels else str(place) for place in best]
    for tensor in given:
        if tensor is not classes:
            found[tensor.name] = _readable(tensor, outputs[tensor.name], contract.labels, exact)
    return found


def tensor_columns(
    contract: Contract, outputs: Mapping[str, Array], exact: Exact | None = None
) -> dict[str, list[Any]]:
    """The answers of `tensors` by their keys, of outputs that all have as many rows."""
    return {tensor.name: _values(outputs[tensor.name], contract.labels, exact) for tensor in contract.outputs}


def _labelled(contract: Contract, outputs: Mapping[str, Array], exact: Exact | None) -> list[dict[str, Any]]:
    """One object a row: the class, then all other outputs."""
    found = columns(contract, outputs, exact)
    listed = exact or np.ndarray.tolist
    values = [listed(column) if isinstance(column, np.ndarray) else column for column in found.values()]
    return [dict(zip(found, row, strict=True)) for row in zip(*values, strict=True)]


def _label(labels: Sequence[str], tensor: Tensor, value: Any) -> str:
    """The label of a class, which is its place among the labels, or the label itself where the model was given it."""
    if tensor.dtype == "object":
        return str(example_inputs.to_rest(np.asarray(value)))
    text, number = str(int(value)), int(value)
    if (text in labels and not tensor.ranks) or not 0 <= number < len(labels):
        return text
    return labels[number]


def _readable(tensor: Tensor, array: Array, labels: Sequence[str], exact: Exact | None) -> Column:
    """The values of an output [rows, …], one a row."""
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.ndim > 2:
        found: list[Any] = example_inputs.to_rest(array)
        return found
    if exact is None:
        numbers = _probabilities(array.ravel()) if tensor.unit == "probability" else _numbers(array.ravel())
        array = numbers.reshape(array.shape)
    if array.ndim == 1 or (array.shape[1] == 1 and len(labels) != 1):
        return array.ravel()
    lists: list[Any] = array.tolist() if exact is None else exact(array)
    return [dict(zip(labels, row, strict=True)) for row in lists] if labels and array.shape[1] == len(labels) else lists


def _values(array: Array, labels: tuple[str, ...], exact: Exact | None) -> list[Any]:
    """The value of each row of an output."""
    if labels and array.shape[1:] == (len(labels),) and array.dtype.kind == "f":
        rows = array.tolist() if exact is None else exact(array)
        return [dict(zip(labels, row if exact else map(_number, row), strict=True)) for row in rows]
    values: list[Any] = (exact or example_inputs.to_rest)(array)
    return values


def _answer(contract: Contract, version: int, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": contract.model, "version": version, "predictions": predictions}


def _probability(value: Any) -> float:
    return round(float(value), 6)


def _rounded_list(array: Array) -> list[float]:
    return [_probability(value) for value in array]


def _number(value: Any) -> float:
    """A float32 with the digits it has."""
    return float(f"{float(value):.7g}")


def _probabilities(array: Array) -> Array:
    """`_probability` of each of the floats [n]."""
    if len(array) < _MANY:
        return np.array([_probability(value) for value in array.tolist()], np.float64)
    return _rounded(array, np.full(len(array), 6), _probability)


def _numbers(array: Array) -> Array:
    """`_number` of each of the floats [n]."""
    if len(array) < _MANY:
        return np.array([_number(value) for value in array.tolist()], np.float64)
    with np.errstate(all="ignore"):
        places = 6 - np.floor(np.log10(np.abs(array.astype(np.float64))))
    return _rounded(array, np.where(np.isfinite(places), places, 0), _number)


def _rounded(array: Array, places: Array, one: Callable[[Any], float]) -> Array:
    """Floats, each rounded to so many decimal places, at once: as `one` rounds them by their texts.

    A whole number below 2**53 divided by a power of ten up to 10**22 is the float64 that its decimal text stands for.
    What is not sure to be that, such as a value half way between two, is left to `one`.
    """
    with np.errstate(all="ignore"):
        values = array.astype(np.float64)
        powers = 10.0 ** np.clip(places, 0, 22)
        scaled = values * powers
        found = np.rint(scaled) / powers
        sure = (places >= 0) & (places <= 22) & (np.abs(scaled) < 2**40) & (np.abs(scaled % 1 - 0.5) > 1e-3)
    for place in np.flatnonzero(~sure):
        found[place] = one(values[place])
    return found

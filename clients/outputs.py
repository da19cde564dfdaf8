"""From output tensors to the answer that a person reads; the gateway and `bookserve predict` give the same.

Every answer is {"model", "version", "predictions": [...]}, with one prediction a row of the request.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bookserve.clients.answers import Array, Prediction
from bookserve.clients.inputs import boards
from bookserve.clients.inputs.words import Tokens, Vocabulary
from bookserve.export.book_contracts import LINEAR, LOGISTIC, PTB, TICTACTOE, TOX21
from bookserve.export.contracts import Contract


def linear(prediction: Prediction) -> dict[str, Any]:
    """The answer of the linear model: each prediction is {"y"}."""
    return _answer(LINEAR, prediction.version, [{"y": _number(y)} for y in prediction.outputs["y"]])


def logistic(prediction: Prediction) -> dict[str, Any]:
    """The answer of the logistic model: {"class", "probability"}; the probability is that of class "1"."""
    rows = zip(prediction.outputs["class"], prediction.outputs["probability"], strict=True)
    predictions = [
        {"class": LOGISTIC.labels[int(number)], "probability": _probability(probability)}
        for number, probability in rows
    ]
    return _answer(LOGISTIC, prediction.version, predictions)


def classification(contract: Contract, prediction: Prediction) -> dict[str, Any]:
    """The answer of a classifier: the class and all probabilities of each row.

    Reads the outputs `probabilities` float32 [n,len(contract.labels)] and `classes` int64 [n]; each prediction is
    {"class", "probabilities": {label: probability}}.
    """
    rows = zip(prediction.outputs["probabilities"], prediction.outputs["classes"], strict=True)
    predictions = [
        {"class": contract.labels[int(number)], "probabilities": _by_label(contract.labels, probabilities)}
        for probabilities, number in rows
    ]
    return _answer(contract, prediction.version, predictions)


def tox21(prediction: Prediction, smiles: Sequence[str]) -> dict[str, Any]:
    """The answer for molecules: {"smiles", "probabilities": {assay: probability of being active in it}}."""
    rows = zip(smiles, prediction.outputs["probabilities"], strict=True)
    predictions = [
        {"smiles": text, "probabilities": _by_label(TOX21.labels, probabilities)} for text, probabilities in rows
    ]
    return _answer(TOX21, prediction.version, predictions)


def tictactoe(prediction: Prediction, positions: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The answer for boards: {"player", "move", "row", "column", "probabilities", "value"}.

    `move` is the most probable square, 0 to 8 row by row, and `row` and `column` the same from 0; only free squares
    are candidates. `probabilities` has one number a square, `value` is what the player may expect.
    """
    predictions = []
    outputs = zip(positions, prediction.outputs["probabilities"], prediction.outputs["value"], strict=True)
    for board, probabilities, value in outputs:
        free = [number for number, square in enumerate(board) if not square]
        move = max(free, key=lambda number: float(probabilities[number]))
        predictions.append(
            {
                "player": boards.to_move(board),
                "move": move,
                "row": move // 3,
                "column": move % 3,
                "probabilities": [_probability(probability) for probability in probabilities],
                "value": _number(value),
            }
        )
    return _answer(TICTACTOE, prediction.version, predictions)


def next_words(
    version: int, vocabulary: Vocabulary, texts: Sequence[tuple[str, Tokens, Array]], top_k: int
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
        words = [
            {"word": vocabulary.words[number], "probability": _probability(probabilities[number])} for number in best
        ]
        predictions.append({"text": text, "unknown": list(tokens.unknown), "words": words})
    return _answer(PTB, version, predictions)


def _answer(contract: Contract, version: int, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": contract.model, "version": version, "predictions": predictions}


def _by_label(labels: Sequence[str], probabilities: Array) -> dict[str, float]:
    return {label: _probability(value) for label, value in zip(labels, probabilities, strict=True)}


def _probability(value: Any) -> float:
    return round(float(value), 6)


def _number(value: Any) -> float:
    """A float32 with the digits it has."""
    return float(f"{float(value):.7g}")

"""POST /api/v1/ptb: texts to their likeliest next words; POST /api/v1/ptb/generate: texts to how they may go on.

Words are numbered by the vocabulary of the version that answers, which the gateway reads in the model store.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.clients.inputs import points, words
from bookserve.export.book_contracts import PTB
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import Problem, bad_value, shown
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1/ptb"
GENERATE = f"{PATH}/generate"
EXAMPLE = {"text": "the stock", "top_k": 5}
GENERATE_EXAMPLE = {"text": "the stock", "words": 10, "temperature": 0.8, "seed": 1}

MAX_TOP_K = 50
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**32 - 1

_Probabilities = npt.NDArray[np.float32]  # (vocabulary,)
_Named = tuple[str, str]  # a text's name in the body, and the text


def routes(dependencies: Dependencies) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("ptb", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = request_parsing.choice(request)
        body = request_parsing.read_json_only(request, dependencies.limits, EXAMPLE)
        request_parsing.known_fields(body, ("text", "top_k"), EXAMPLE)
        texts = _texts(body, dependencies.limits, EXAMPLE)
        top_k = request_parsing.whole_number(body, "top_k", 5, MAX_TOP_K, EXAMPLE)

        def ask(version: int) -> dict[str, Any]:
            vocabulary = _vocabulary(dependencies, version)
            tokens = _tokens(texts, vocabulary, EXAMPLE)
            rows = _next(dependencies, version, vocabulary, [entry.ids for entry in tokens])
            answers = [(text, entry, row) for (_, text), entry, row in zip(texts, tokens, rows, strict=True)]
            return outputs.next_words(version, vocabulary, answers, top_k)

        return json_response(dependencies.models.with_version(PTB, choice, ask))

    @blueprint.post(GENERATE)
    def generate() -> Response:
        choice = request_parsing.choice(request)
        body = request_parsing.read_json_only(request, dependencies.limits, GENERATE_EXAMPLE)
        request_parsing.known_fields(body, ("text", "words", "temperature", "seed"), GENERATE_EXAMPLE)
        texts = _texts(body, dependencies.limits, GENERATE_EXAMPLE)
        count = request_parsing.whole_number(
            body,
            "words",
            min(10, dependencies.limits.generated_words),
            dependencies.limits.generated_words,
            GENERATE_EXAMPLE,
        )
        temperature, seed = _temperature(body), _seed(body)

        def ask(version: int) -> dict[str, Any]:
            vocabulary = _vocabulary(dependencies, version)
            tokens = _tokens(texts, vocabulary, GENERATE_EXAMPLE)
            chance = np.random.default_rng(seed)
            rows = [entry.ids for entry in tokens]
            for _ in range(count):
                chosen = [
                    _draw(probabilities, vocabulary, temperature, chance)
                    for probabilities in _next(dependencies, version, vocabulary, rows)
                ]
                rows = [(*row, number) for row, number in zip(rows, chosen, strict=True)]
            predictions = [
                {
                    "text": text,
                    "unknown": list(entry.unknown),
                    "words": [vocabulary.words[number] for number in row[len(entry.ids) :]],
                }
                for (_, text), entry, row in zip(texts, tokens, rows, strict=True)
            ]
            return {"model": PTB.model, "version": version, "seed": seed, "predictions": predictions}

        return json_response(dependencies.models.with_version(PTB, choice, ask))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    text = {"type": "string", "minLength": 1, "maxLength": words.MAX_CHARACTERS}
    texts = {"text": schemas.one_or_many(text, limits.items, f"at most {words.MAX_WORDS} words, or a list of texts")}
    top_k = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": EXAMPLE["top_k"]}
    options = {
        "words": {"type": "integer", "minimum": 1, "maximum": limits.generated_words},
        "temperature": {"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE, "default": 1.0},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
    }
    word = schemas.struct({"word": {"type": "string"}, "probability": schemas.PROBABILITY})
    unknown = {"type": "array", "items": {"type": "string"}}
    ranked = schemas.struct({"text": text, "unknown": unknown, "words": {"type": "array", "items": word}})
    drawn = schemas.struct({"text": text, "unknown": unknown, "words": {"type": "array", "items": {"type": "string"}}})
    about = 'Words that the vocabulary does not have are named under "unknown"; "<eos>" ends a sentence.'
    body = schemas.json_body(texts, EXAMPLE, {"top_k": top_k})
    generate_body = schemas.json_body(texts, GENERATE_EXAMPLE, options)
    return {
        PATH: {"post": schemas.prediction("predictPtb", "Which word is next?", about, body, ranked)},
        GENERATE: {"post": schemas.prediction("generatePtb", "How may the text go on?", about, generate_body, drawn)},
    }


def _texts(body: dict[str, Any], limits: Limits, example: object) -> list[_Named]:
    value = request_parsing.field(body, "text", example)
    items = request_parsing.one_or_many(value, "text", isinstance(value, list), limits.items, example)
    for name, text in items:
        if not isinstance(text, str):
            raise bad_value(name, "a text", shown(text), example)
    return items


def _temperature(body: dict[str, Any]) -> float:
    value = body.get("temperature", 1.0)
    try:
        temperature = points.number(value)
    except points.NumberError:
        temperature = -1.0
    if not 0.0 <= temperature <= MAX_TEMPERATURE:
        raise bad_value("temperature", f"a number from 0 to {MAX_TEMPERATURE:g}", shown(value), GENERATE_EXAMPLE)
    return temperature


def _seed(body: dict[str, Any]) -> int:
    """The seed of the drawing; without one a new one, which the answer tells."""
    value = body.get("seed", secrets.randbelow(MAX_SEED + 1))
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise bad_value("seed", f"a whole number from 0 to {MAX_SEED}", shown(value), GENERATE_EXAMPLE)
    return value


def _vocabulary(dependencies: Dependencies, version: int) -> words.Vocabulary:
    if dependencies.store is None:
        raise Problem(503, "ptb needs its vocabulary: start the gateway with --models-dir, the model store's folder")
    try:
        return dependencies.store.vocabulary(PTB.model, version)
    except words.VocabularyError as error:
        detail = f"version {version} of ptb has no vocabulary below --models-dir: {error}"
        raise Problem(503, f"{detail}; do the gateway and the model server use one store?") from error


def _tokens(texts: Sequence[_Named], vocabulary: words.Vocabulary, example: object) -> list[words.Tokens]:
    entries = []
    for name, text in texts:
        try:
            entries.append(words.tokens(text, vocabulary))
        except words.TextTooLong as error:
            raise Problem(413, f"{name}: {error}", field=name, example=example) from error
        except words.TextError as error:
            raise bad_value(name, "a text with words in it", f"{shown(text)}: {error}", example) from error
    return entries


def _next(
    dependencies: Dependencies, version: int, vocabulary: words.Vocabulary, rows: Sequence[tuple[int, ...]]
) -> list[_Probabilities]:
    """The probability of every word after each row of word numbers. Rows of one length are asked for together."""
    found: dict[int, _Probabilities] = {}
    for length in sorted({len(row) for row in rows}):
        places = [place for place, row in enumerate(rows) if len(row) == length]
        batch = np.array([rows[place] for place in places], np.int32)  # (rows, length)
        prediction = dependencies.models.predict(PTB, {"tokens": batch}, request_parsing.Choice(version=version))
        probabilities = prediction.outputs["probabilities"]
        if probabilities.shape[1] != len(vocabulary.words):
            counts = f"{probabilities.shape[1]} words, its vocabulary {len(vocabulary.words)}"
            raise Problem(502, f"version {version} of ptb has {counts}")
        found.update(zip(places, probabilities, strict=True))
    return [found[place] for place in range(len(rows))]


def _draw(
    probabilities: _Probabilities, vocabulary: words.Vocabulary, temperature: float, chance: np.random.Generator
) -> int:
    """A word's number, drawn by probability ** (1 / temperature); the likeliest at 0. Never one that is no word."""
    weights = probabilities.astype(np.float64)
    weights[list(vocabulary.silent)] = 0.0
    if temperature == 0.0 or weights.max() <= 0.0:
        return int(weights.argmax())
    scaled = np.power(weights / weights.max(), 1.0 / temperature)
    return int(chance.choice(len(scaled), p=scaled / scaled.sum()))

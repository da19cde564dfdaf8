"""The task `text`: texts to their likeliest next words, or to their class where the contract has labels.

`POST /api/v1/NAME/generate`: texts to how they may go on, by a model of next words. Words are numbered by the
vocabulary of the version that answers, which the gateway reads in the model store.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flask import Request

from bookserve.clients import forms, outputs
from bookserve.clients.inputs import points, words
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import Problem, bad_value, shown
from bookserve.serving.gateway.request_parsing import Choice

EXAMPLE = {"text": "the stock", "top_k": 5}
GENERATE_EXAMPLE = {"text": "the stock", "words": 10, "temperature": 0.8, "seed": 1}

MAX_TOP_K = 50
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**32 - 1

_Scores = npt.NDArray[Any]  # (vocabulary,) or (labels,)
_Named = tuple[str, str]  # a text's name in the body, and the text


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    example = _example(contract)
    body = request_parsing.read_json_only(request, dependencies.limits, example)
    request_parsing.known_fields(body, tuple(example), example)
    texts = _texts(body, dependencies.limits, example)
    top_k = request_parsing.whole_number(body, "top_k", 5, MAX_TOP_K, example)

    def ask(version: int) -> dict[str, Any]:
        vocabulary = _vocabulary(dependencies, contract, version)
        tokens = _tokens(texts, vocabulary, example)
        rows = _scores(dependencies, contract, version, vocabulary, [entry.ids for entry in tokens])
        answers = [(text, entry, row) for (_, text), entry, row in zip(texts, tokens, rows, strict=True)]
        if contract.labels:
            return outputs.text_classes(contract, version, answers)
        return outputs.next_words(contract, version, vocabulary, answers, top_k)

    return dependencies.models.with_version(contract, choice, ask)


def generate(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request for words."""
    if contract.labels:
        raise Problem(404, f"{contract.model} labels texts and generates none")
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
        vocabulary = _vocabulary(dependencies, contract, version)
        tokens = _tokens(texts, vocabulary, GENERATE_EXAMPLE)
        chance = np.random.default_rng(seed)
        rows = [entry.ids for entry in tokens]
        for _ in range(count):
            chosen = [
                _draw(probabilities, vocabulary, temperature, chance)
                for probabilities in _scores(dependencies, contract, version, vocabulary, rows)
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
        return {"model": contract.model, "version": version, "seed": seed, "predictions": predictions}

    return dependencies.models.with_version(contract, choice, ask)


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    text = {"type": "string", "minLength": 1, "maxLength": words.MAX_CHARACTERS}
    texts = {"text": schemas.one_or_many(text, limits.items, f"at most {words.MAX_WORDS} words, or a list of texts")}
    unknown = {"type": "array", "items": {"type": "string"}}
    about = 'Words that the vocabulary does not have are named under "unknown"; "<eos>" ends a sentence.'
    if contract.labels:
        scores = forms.scores(contract)
        assert scores is not None
        numbers = schemas.by_label(contract.labels, schemas.number_of(scores))
        label = {"enum": list(contract.labels)}
        item = schemas.struct({"text": text, "unknown": unknown, "class": label, scores.name: numbers})
        body = schemas.json_body(texts, _example(contract))
        return {path: {"post": schemas.prediction("predict", contract.model, "Which class is it?", about, body, item)}}
    top_k = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": EXAMPLE["top_k"]}
    options = {
        "words": {"type": "integer", "minimum": 1, "maximum": limits.generated_words},
        "temperature": {"type": "number", "minimum": 0, "maximum": MAX_TEMPERATURE, "default": 1.0},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
    }
    word = schemas.struct({"word": {"type": "string"}, "probability": schemas.PROBABILITY})
    ranked = schemas.struct({"text": text, "unknown": unknown, "words": {"type": "array", "items": word}})
    drawn = schemas.struct({"text": text, "unknown": unknown, "words": {"type": "array", "items": {"type": "string"}}})
    body = schemas.json_body(texts, EXAMPLE, {"top_k": top_k})
    generate_body = schemas.json_body(texts, GENERATE_EXAMPLE, options)
    model, summary, longer = contract.model, "Which word is next?", "How may the text go on?"
    return {
        path: {"post": schemas.prediction("predict", model, summary, about, body, ranked)},
        f"{path}/generate": {"post": schemas.prediction("generate", model, longer, about, generate_body, drawn)},
    }


def _example(contract: Contract) -> dict[str, Any]:
    return {"text": EXAMPLE["text"]} if contract.labels else EXAMPLE


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


def _vocabulary(dependencies: Dependencies, contract: Contract, version: int) -> words.Vocabulary:
    model = contract.model
    if dependencies.store is None or contract.preprocessing is None:
        raise Problem(
            503, f"{model} needs its vocabulary: start the gateway with --models-dir, the model store's folder"
        )
    try:
        return dependencies.store.vocabulary(model, version, contract.preprocessing.vocabulary)
    except words.VocabularyError as error:
        detail = f"version {version} of {model} has no vocabulary below --models-dir: {error}"
        raise Problem(503, f"{detail}; do the gateway and the model server use one store?") from error


def _tokens(texts: Sequence[_Named], vocabulary: words.Vocabulary, example: object) -> list[words.Tokens]:
    entries = []
    for name, text in texts:
        try:
            entries.append(words.tokens(text, vocabulary))
        except words.TextTooLong as error:
            most = f"a text of at most {words.MAX_WORDS} words, in {words.MAX_CHARACTERS} characters"
            raise Problem(413, f"{name}: {error}", field=name, expected=most, example=example) from error
        except words.TextError as error:
            raise bad_value(name, "a text with words in it", f"{shown(text)}: {error}", example) from error
    return entries


def _scores(
    dependencies: Dependencies,
    contract: Contract,
    version: int,
    vocabulary: words.Vocabulary,
    rows: Sequence[tuple[int, ...]],
) -> list[_Scores]:
    """The scores of each row of word numbers, those of every word where the model says the next one.

    Rows of one length are asked for together.
    """
    tensor, scores = contract.inputs[0], forms.scores(contract)
    assert scores is not None
    found: dict[int, _Scores] = {}
    for length in sorted({len(row) for row in rows}):
        places = [place for place, row in enumerate(rows) if len(row) == length]
        batch = np.array([rows[place] for place in places], tensor.dtype)  # (rows, length)
        prediction = dependencies.models.predict(contract, {tensor.name: batch}, Choice(version=version))
        values = prediction.outputs[scores.name]
        if not contract.labels and values.shape[1] != len(vocabulary.words):
            counts = f"{values.shape[1]} words, its vocabulary {len(vocabulary.words)}"
            raise Problem(502, f"version {version} of {contract.model} has {counts}")
        found.update(zip(places, values, strict=True))
    return [found[place] for place in range(len(rows))]


def _draw(probabilities: _Scores, vocabulary: words.Vocabulary, temperature: float, chance: np.random.Generator) -> int:
    """A word's number, drawn by probability ** (1 / temperature); the likeliest at 0. Never one that is no word."""
    weights = probabilities.astype(np.float64)
    weights[list(vocabulary.silent)] = 0.0
    if temperature == 0.0 or weights.max() <= 0.0:
        return int(weights.argmax())
    scaled = np.power(weights / weights.max(), 1.0 / temperature)
    return int(chance.choice(len(scaled), p=scaled / scaled.sum()))

"""The task `molecules`: molecules, as SMILES or by name, to what the model says of each, such as activity in assays.

`GET /api/v1/NAME/drawing?smiles=CCO` draws a molecule for the page, as a picture of its own: an SVG that a page loads
as an image runs no script, and opened by itself it is in a sandbox. `POST /api/v1/NAME/explain` asks the model again
without the share of each atom, which `clients/inputs/molecule_atoms.py` takes away.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from flask import Request, Response

from bookserve.clients import outputs
from bookserve.clients.inputs import compounds, molecule_atoms, molecules
from bookserve.export.contracts import SIMILARITY, Contract, Preprocessing
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.caching import FRESH
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.molecule_pool import MoleculePool
from bookserve.serving.gateway.problems import Problem, bad_value, shown
from bookserve.serving.gateway.request_parsing import Choice

EXAMPLE = {"smiles": "CCO"}

_OF_WHOLE = ("smiles", outputs.UNLIKE_TRAINING)  # what is told of a whole molecule only

_log = structlog.get_logger()

# RDKit writes colours as style attributes.
_DRAWING_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_WEIGHTS = re.compile(r"^-?(100|[0-9]{1,2})(,-?(100|[0-9]{1,2}))*$")
_MOST_WEIGHTS = 5 * molecules.MAX_ATOMS  # characters
_SMILES = {"type": "string", "minLength": 1, "maxLength": molecules.MAX_CHARACTERS, "pattern": "^[ -~]+$"}


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    body = request_parsing.read_json_only(request, dependencies.limits, EXAMPLE)
    value = request_parsing.only_field(body, "smiles", EXAMPLE)
    items = request_parsing.one_or_many(value, "smiles", isinstance(value, list), dependencies.limits.items, EXAMPLE)
    texts = [_text(item, name) for name, item in items]
    made = _features(dependencies.molecule_pool, _means(contract), [name for name, _ in items], texts)
    prediction = dependencies.models.predict(contract, _stacked(contract, made), choice)
    return outputs.molecules(contract, prediction, texts, _unlike(contract, prediction.version, dependencies))


def explain(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer for one molecule, and `without`: the answer without the share of each of its atoms.

    `kept` names the inputs that are of the whole molecule in all of them.
    """
    body = request_parsing.read_json_only(request, dependencies.limits, EXAMPLE)
    smiles = _text(request_parsing.only_field(body, "smiles", EXAMPLE), "smiles")
    means = _means(contract)
    try:
        found = dependencies.molecule_pool.without_each(smiles, means)
    except molecules.MoleculeError as error:
        raise _problem(error, "smiles", smiles, EXAMPLE, molecule_atoms.MAX_ATOMS) from error
    prediction = dependencies.models.predict(contract, _stacked(contract, [made for _, made in found]), choice)
    unlike = _unlike(contract, prediction.version, dependencies)
    answer = outputs.molecules(contract, prediction, [smiles] * len(found), unlike)
    whole, *rows = answer["predictions"]
    without = [
        {"atom": atom, "symbol": symbol, **{name: value for name, value in row.items() if name not in _OF_WHOLE}}
        for atom, ((symbol, _), row) in enumerate(zip(found[1:], rows, strict=True))
    ]
    kept = [] if means.descriptors is None else [means.descriptors.values]
    return {**answer, "predictions": [whole], "without": without, "kept": kept}


def draw(request: Request, molecule_pool: MoleculePool) -> Response:
    """The drawing of a molecule."""
    example = f"{request.path}?smiles=CCO"
    for name in request.args:
        if name not in ("smiles", "weights"):
            raise bad_value(f"?{name[:40]}", "smiles, and weights where atoms are marked", shown(name), example)
    smiles = _text(request.args.get("smiles"), "?smiles")
    weights = _weights(request.args.get("weights", ""), example)
    try:
        svg = molecule_pool.drawing(smiles, weights)
    except molecules.MoleculeError as error:
        raise _problem(error, "?smiles", smiles, example) from error
    headers = {"Content-Security-Policy": _DRAWING_POLICY, **FRESH}
    return Response(svg, content_type="image/svg+xml; charset=iso-8859-1", headers=headers)


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    means = _means(contract)
    kind = means.fingerprint
    assert kind is not None
    more = "" if means.descriptors is None else f", counts and {len(means.descriptors.names)} descriptors"
    row = schemas.row(contract)
    item = schemas.struct({"smiles": {"type": "string"}, **row["properties"]})
    tells_similarity = any(tensor.unit == SIMILARITY for tensor in contract.outputs)
    if tells_similarity:
        item["properties"][outputs.UNLIKE_TRAINING] = {
            "type": "boolean",
            "description": "Whether the nearest training molecule is so far that the answer is less certain.",
        }
    molecule = schemas.one_or_many(_SMILES, limits.items, f"a molecule of at most {molecules.MAX_ATOMS} atoms, or more")
    text = (
        f"Molecules are given as SMILES, or by the name of a common compound, such as aspirin. Their Morgan "
        f"fingerprints (radius {kind.radius}, {kind.bits} bits){more} go "
        "to the model."
    )
    if tells_similarity:
        text += (
            " `nearest` is the similarity to the training molecule that is most like it (Tanimoto's, from 0 to 1 for "
            "the same fingerprint). Where that is less than for nine of ten test molecules, `unlike_training` is true: "
            "the answer is less certain."
        )
    body = schemas.json_body({"smiles": molecule}, EXAMPLE)
    drawing = {
        "operationId": "drawMolecule",
        "tags": ["models"],
        "summary": "The structure of a molecule as a picture.",
        "parameters": [
            {"name": "smiles", "in": "query", "required": True, "schema": _SMILES},
            {
                "name": "weights",
                "in": "query",
                "description": "From -100 (blue) to 100 (orange) for each atom, with commas between them.",
                "schema": {"type": "string", "pattern": _WEIGHTS.pattern},
            },
        ],
        "responses": {
            "200": {
                "description": "The drawing.",
                "headers": {"ETag": schemas.ETAG},
                "content": {"image/svg+xml": {"schema": {"type": "string"}}},
            },
            "304": {"description": "It is what If-None-Match names."},
        },
    }
    without = schemas.struct(
        {"atom": {"type": "integer", "minimum": 0}, "symbol": {"type": "string"}, **row["properties"]}
    )
    more_fields = {
        "without": {"type": "array", "maxItems": molecule_atoms.MAX_ATOMS, "items": without},
        "kept": {"type": "array", "items": {"type": "string"}},
    }
    explained = (
        f"The answer, and in `without` the answer without the share of each atom: a molecule of at most "
        f"{molecule_atoms.MAX_ATOMS} atoms, in the order of its SMILES. `kept` are the inputs that stay as they are."
    )
    one = schemas.json_body({"smiles": _SMILES}, EXAMPLE)
    summary = "Which assays does it set off?" if contract.labels else "What does it say of a molecule?"
    return {
        path: {"post": schemas.prediction("predict", contract.model, summary, text, body, item)},
        f"{path}/drawing": {"get": drawing},
        f"{path}/explain": {
            "post": schemas.prediction(
                "explain", contract.model, "Which atoms mattered?", explained, one, item, more_fields
            )
        },
    }


def _unlike(contract: Contract, version: int, dependencies: Dependencies) -> float | None:
    return dependencies.store.contracts.unlike(contract.model, version) if dependencies.store else None


def _means(contract: Contract) -> Preprocessing:
    assert contract.preprocessing is not None
    return contract.preprocessing


def _stacked(contract: Contract, made: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    return {
        tensor.name: np.stack([row[tensor.name] for row in made]).astype(tensor.dtype) for tensor in contract.inputs
    }


def _weights(text: str, example: str) -> list[float]:
    if not text:
        return []
    if not _WEIGHTS.fullmatch(text) or len(text) > _MOST_WEIGHTS:
        expected = "a whole number from -100 to 100 for each atom, with commas between them"
        raise bad_value("?weights", expected, shown(text), f"{example}&weights=0,-20,100")
    return [int(weight) / 100 for weight in text.split(",")]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise bad_value(name, "a molecule as SMILES", shown(value), EXAMPLE)
    smiles = compounds.smiles_of(value)
    try:
        molecules.check_text(smiles)
    except molecules.MoleculeError as error:
        raise _problem(error, name, value, EXAMPLE) from error
    return smiles


def _features(
    molecule_pool: MoleculePool, means: Preprocessing, names: list[str], texts: list[str]
) -> list[dict[str, npt.NDArray[Any]]]:
    """The tensors of each molecule. Raises Problem where one is none; says in the log where RDKit is another one."""
    try:
        outcomes = molecule_pool.features(texts, means)
        told = "" if means.descriptors is None else molecule_pool.difference(means.descriptors)
    except molecules.MoleculeError as error:
        raise _problem(error, names[0].partition("[")[0], texts[0] if len(texts) == 1 else texts, EXAMPLE) from error
    if told:
        _log.warning("another_rdkit", detail=told)
    rows = []
    for name, text, outcome in zip(names, texts, outcomes, strict=True):
        if isinstance(outcome, molecules.MoleculeError):
            raise _problem(outcome, name, text, EXAMPLE) from outcome
        rows.append(outcome)
    return rows


def _problem(
    error: molecules.MoleculeError, name: str, given: object, example: object, atoms: int = molecules.MAX_ATOMS
) -> Problem:
    """The problem of what is not a molecule, or one of more than so many `atoms`."""
    expected = f"a molecule of at most {atoms} atoms, in {molecules.MAX_CHARACTERS} characters"
    if isinstance(error, molecules.MoleculeTooLarge):
        return Problem(413, f"{name}: {error}", field=name, expected=expected, given=shown(given), example=example)
    text = f"{shown(given)}: {error}"
    return bad_value(name, "a molecule as SMILES", text, example, position=error.position)

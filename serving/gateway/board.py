"""The task `board`: boards of tic-tac-toe to the best move, the probability of each square, and what to expect.

`POST /api/v1/NAME/explain` asks the model again without each mark of one board, which `clients/inputs/boards.py` takes
away.
"""

from typing import Any

import numpy as np
from flask import Request

from bookserve.clients import outputs
from bookserve.clients.inputs import boards
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import bad_value, shown
from bookserve.serving.gateway.request_parsing import Choice

EXAMPLE = {"board": ["X", "", "O", "", "X", "", "", "", ""], "player": "O"}

_SQUARE = {"enum": ["X", "O", ""]}


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    body = request_parsing.read_json_only(request, dependencies.limits, EXAMPLE)
    request_parsing.known_fields(body, ("board", "player"), EXAMPLE)
    positions = _positions(request_parsing.field(body, "board", EXAMPLE), body.get("player"), dependencies.limits)
    planes = np.stack([boards.planes(board) for board in positions]).astype(contract.inputs[0].dtype)
    prediction = dependencies.models.predict(contract, {contract.inputs[0].name: planes}, choice)
    return outputs.board(contract, prediction, positions)


def explain(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer for one board, and `without`: the answer without each of its marks, for the same side to move."""
    body = request_parsing.read_json_only(request, dependencies.limits, EXAMPLE)
    request_parsing.known_fields(body, ("board", "player"), EXAMPLE)
    positions = _positions(request_parsing.field(body, "board", EXAMPLE), body.get("player"), dependencies.limits)
    if len(positions) > 1:
        raise bad_value("board", "one board", f"a list of {len(positions)}", EXAMPLE)
    without = boards.without_each(positions[0])
    tensor = contract.inputs[0]
    planes = np.stack([boards.planes(positions[0]), *(fewer for _, fewer in without)]).astype(tensor.dtype)
    prediction = dependencies.models.predict(contract, {tensor.name: planes}, choice)
    return outputs.board_without(contract, prediction, positions[0], [square for square, _ in without])


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    flat = schemas.list_of(_SQUARE, boards.SQUARES)
    rows = schemas.list_of(schemas.list_of(_SQUARE, 3), 3)
    board = {"oneOf": [flat, rows]}
    text = "nine squares, three rows of three, or a list of boards"
    found = {"probabilities": schemas.list_of(schemas.PROBABILITY, boards.SQUARES), "value": {"type": "number"}}
    square = {"type": "integer", "minimum": 0, "maximum": 8}
    side = {"enum": list(boards.PLAYERS)}
    place = {"type": "integer", "minimum": 0, "maximum": 2}
    item = schemas.struct({"player": side, "move": square, "row": place, "column": place, **found})
    many = {"type": "array", "minItems": 1, "maxItems": limits.items, "items": board}
    player = {"description": "Whose turn it is; told from the board when left out.", "enum": list(boards.PLAYERS)}
    body = schemas.json_body(
        {"board": {"description": text, "anyOf": [board, many]}}, EXAMPLE, optional={"player": player}
    )
    description = "X begins. Boards that no game comes to, and games that are over, are refused."
    summary = "Which move is best?"
    one = schemas.json_body({"board": {"anyOf": [flat, rows]}}, EXAMPLE, optional={"player": player})
    without = {"type": "array", "items": schemas.struct({"square": square, "mark": side, **found})}
    explained = "The answer for one board, and in `without` the answer without each mark, for the same side to move."
    which = "Which marks mattered?"
    explain = schemas.prediction("explain", contract.model, which, explained, one, item, {"without": without})
    return {
        path: {"post": schemas.prediction("predict", contract.model, summary, description, body, item)},
        f"{path}/explain": {"post": explain},
    }


def _positions(value: object, player: object, limits: Limits) -> list[list[str]]:
    """The boards of a request as nine squares each, all of them possible and with `player` to move."""
    if player is not None and player not in boards.PLAYERS:
        raise bad_value("player", '"X" or "O"', shown(player), EXAMPLE)
    if not isinstance(value, list) or not value:
        raise bad_value("board", "nine squares, three rows of three, or a list of boards", shown(value), EXAMPLE)
    many = isinstance(value[0], list) and (len(value[0]) == boards.SQUARES or _nested(value[0]))
    items = request_parsing.one_or_many(value, "board", many, limits.items, EXAMPLE)
    return [_board(item, name, player) for name, item in items]


def _nested(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], list)


def _board(value: Any, name: str, player: object) -> list[str]:
    if isinstance(value, list) and _nested(value):
        if len(value) != 3:
            raise bad_value(name, "three rows", shown(value), EXAMPLE)
        for index, row in enumerate(value):
            if not isinstance(row, list) or len(row) != 3:
                raise bad_value(f"{name}[{index}]", "a row of three squares", shown(row), EXAMPLE)
        places = [(f"{name}[{y}][{x}]", value[y][x]) for y in range(3) for x in range(3)]
    elif isinstance(value, list) and len(value) == boards.SQUARES:
        places = [(f"{name}[{index}]", square) for index, square in enumerate(value)]
    else:
        raise bad_value(name, "nine squares or three rows of three", shown(value), EXAMPLE)
    for place, square in places:
        if square not in ("X", "O", ""):
            raise bad_value(place, '"X", "O" or ""', shown(square), EXAMPLE)
    board = [square for _, square in places]
    try:
        turn = boards.to_move(board)
    except boards.BoardError as error:
        raise bad_value(name, "a board on which somebody can move", f"{_text(board)}: {error}", EXAMPLE) from error
    if player not in (None, turn):
        text = f"{_text(board)}, on which it is the turn of {turn} (X begins)"
        raise bad_value(name, f"a board on which it is the turn of {player}", text, EXAMPLE)
    return board


def _text(board: list[str]) -> str:
    squares = [square or "." for square in board]
    return "/".join("".join(squares[row : row + 3]) for row in (0, 3, 6))

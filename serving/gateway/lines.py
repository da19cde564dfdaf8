"""Long lists as NDJSON: a JSON body a line in, an answer a line out, whatever the length, in little memory.

Lines that arrive together are asked together, where they are alike. A line that is refused has its problem in its
place, and the others go on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import structlog

from bookserve.serving.gateway.problems import Problem

MEDIA_TYPE = "application/x-ndjson"
_TOGETHER = ("x", "smiles", "text", "board", "pixels", "b64")  # fields whose values may be asked as a list

_log = structlog.get_logger()

Ask = Callable[[bytes], dict[str, Any]]
_Numbered = tuple[int, bytes]


def answers(read: Callable[[], bytes], ask: Ask, most: int, longest: int, request_id: str) -> Iterator[bytes]:
    """The answer to each line, {"line", "model", "version", "predictions"} or {"line", "problem"}, as it is there.

    `read` gives the next bytes, none at the end, or raises Problem. `ask` answers one JSON body, or raises Problem. At
    most `most` lines are asked at once, and a line has at most `longest` bytes.
    """
    number, failed, kept = 0, 0, b""
    try:
        while True:
            piece = read()
            *whole, kept = (kept + piece).split(b"\n")
            if not piece and kept:
                whole.append(kept)
            lines = [(number + place, line) for place, line in enumerate(whole, 1) if line.strip()]
            number += len(whole)
            for start in range(0, len(lines), most):
                for answer in _group(lines[start : start + most], ask, longest, request_id):
                    failed += "problem" in answer
                    yield _line(answer)
            if len(kept) > longest:
                detail = f"a line may have {longest} bytes (--max-json-bytes), this one has more"
                raise Problem(413, detail, expected=f"at most {longest} bytes a line")
            if not piece:
                return
    except Problem as problem:
        failed += 1
        yield _line({"line": number + 1, "problem": problem.document(request_id)})
    finally:
        _log.info("lines", request_id=request_id, lines=number, failed=failed)


def _group(lines: list[_Numbered], ask: Ask, longest: int, request_id: str) -> Iterator[dict[str, Any]]:
    together = _together([line for _, line in lines])
    if together is not None and len(together) <= longest:
        try:
            answer = ask(together)
        except Problem as problem:
            if problem.status >= 500:
                for number, _ in lines:
                    yield {"line": number, "problem": problem.document(request_id)}
                return
            answer = {"predictions": []}
        predictions = answer["predictions"]
        if len(predictions) == len(lines):
            for (number, _), prediction in zip(lines, predictions, strict=True):
                yield {"line": number, **answer, "predictions": [prediction]}
            return
    for number, line in lines:
        try:
            yield {"line": number, **ask(line)}
        except Problem as problem:
            yield {"line": number, "problem": problem.document(request_id)}


def _together(lines: list[bytes]) -> bytes | None:
    """One body with the values of all lines as a list, where each has one and the same field."""
    if len(lines) < 2:
        return None
    try:
        bodies = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return None
    first = bodies[0]
    if not isinstance(first, dict) or len(first) != 1:
        return None
    (field,) = first
    if field not in _TOGETHER or any(not isinstance(body, dict) or [*body] != [field] for body in bodies):
        return None
    return orjson.dumps({field: [body[field] for body in bodies]})


def _line(answer: dict[str, Any]) -> bytes:
    return orjson.dumps(answer) + b"\n"

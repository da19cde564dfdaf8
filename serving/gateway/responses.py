"""The JSON answers of every route."""

import orjson
from flask import Response


def json_response(content: object) -> Response:
    """A 200 with a JSON body."""
    return Response(orjson.dumps(content), content_type="application/json")

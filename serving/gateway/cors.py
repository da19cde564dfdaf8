"""Cross-origin requests (CORS): which pages of other addresses may ask this gateway from a browser."""

import re

from flask import Flask, Response, request

_ORIGIN = re.compile(r"https?://[^/\s,*]+")
_METHODS = "GET, HEAD, POST, OPTIONS"
_HEADERS = "Authorization, Content-Type, If-None-Match, X-API-Key, X-Request-ID"
_EXPOSED = "ETag, Retry-After, WWW-Authenticate, X-Request-ID"
_SECONDS = 600  # that a browser may keep the answer to a preflight
ANY = "*"


def origins(text: str) -> tuple[str, ...]:
    """The origins in "https://a.example,http://b.example:8000", or "*". ValueError for what is none."""
    found = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for origin in found:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin: give one such as https://app.example, or * for any")
    return found


def add(app: Flask, allowed: tuple[str, ...]) -> None:
    """Has the application answer preflights, and name the origins that may read an answer. No cookies are allowed."""

    @app.before_request
    def answer_preflight() -> Response | None:
        asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asked or _named(allowed) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _HEADERS,
            "Access-Control-Max-Age": str(_SECONDS),
        }
        return Response(status=204, headers=headers)

    @app.after_request
    def name_origin(response: Response) -> Response:
        response.vary.add("Origin")
        origin = _named(allowed)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return response


def _named(allowed: tuple[str, ...]) -> str | None:
    """What Access-Control-Allow-Origin says to this request."""
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    return ANY if ANY in allowed else origin if origin in allowed else None

"""What a browser need not load twice, or whole: ETag and 304 for what is marked `no-cache`, and gzip for text."""

import gzip
import hashlib

from flask import Request, Response

FRESH = {"Cache-Control": "no-cache"}  # kept by the browser, and compared with ours each time
_TEXT = ("application/json", "image/svg+xml", "text/css", "text/html", "text/javascript", "text/markdown")
_LEAST_BYTES = 1024  # of what is worth to be compressed


def finish(request: Request, response: Response) -> Response:
    """The answer to a GET as short as the request allows."""
    if request.method not in ("GET", "HEAD") or response.status_code != 200 or response.is_streamed:
        return response
    if response.cache_control.no_cache:
        # Weak: the same content comes compressed and as it is.
        response.set_etag(hashlib.sha256(response.get_data()).hexdigest()[:32], weak=True)
        response.make_conditional(request)
    if response.mimetype in _TEXT:
        response.vary.add("Accept-Encoding")
        data = response.get_data()
        if response.status_code == 200 and len(data) >= _LEAST_BYTES and _takes_gzip(request):
            response.set_data(gzip.compress(data, 6, mtime=0))
            response.headers["Content-Encoding"] = "gzip"
    return response


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "") and bool(request.accept_encodings["gzip"])

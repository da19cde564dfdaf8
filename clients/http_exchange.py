"""One HTTP exchange with a server of ours: a request, and its whole answer, within a deadline.

Under the blocking REST and gateway clients; `async_exchange` is the same for asyncio. Uses no proxy: both servers are
reached directly.
"""

import contextlib
import http.client
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bookserve.clients.errors import BadAnswer, DeadlineExceeded, Unavailable

_CHUNK = 1 << 16  # bytes a read


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `body` is complete, `retry_after` the seconds of that header, 0 without it."""

    status: int
    content_type: str
    body: bytes
    retry_after: float = 0.0


@dataclass(frozen=True)
class Server:
    """A server's address, taken apart from a URL such as "http://127.0.0.1:8501"."""

    url: str
    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def at(cls, url: str) -> "Server":
        """Reads a URL. ValueError when it is no http:// or https:// URL of a host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server: give one such as http://127.0.0.1:8080")
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url!r} has a port that is no number from 0 to 65535") from None
        default = 443 if parts.scheme == "https" else 80
        return cls(url.rstrip("/"), parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        content_type: str = "",
        key: str = "",
        timeout: float,
    ) -> Answer:
        """Sends one request, with an API key where one is given, and reads the whole answer within `timeout` seconds.

        Raises Unavailable when nobody answers, DeadlineExceeded when the answer is late, BadAnswer when it is no HTTP.
        """
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        deadline = time.monotonic() + timeout
        connection = kind(self.host, self.port, timeout=timeout)
        headers = {**headers_of(content_type, key), "Connection": "close"}
        try:
            # A server that refuses a body answers before it has read it, and closes.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self.prefix + path, body=body, headers=headers)
            response = connection.getresponse()
            pieces = []
            while piece := response.read1(_CHUNK):
                pieces.append(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError
            if response.length:
                raise BadAnswer(f"{self.url} broke its answer off")
            seconds = seconds_of(response.headers.get("Retry-After", ""))
            return Answer(response.status, response.headers.get_content_type(), b"".join(pieces), seconds)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.url} gave no answer within {timeout:g} s") from error
        except http.client.HTTPException as error:
            raise BadAnswer(
                f"{self.url} does not answer in HTTP ({type(error).__name__}): is it a gRPC port?"
            ) from error
        except OSError as error:
            raise Unavailable(f"nothing answers at {self.url}: {error.strerror or error}") from error
        finally:
            connection.close()


def headers_of(content_type: str, key: str) -> dict[str, str]:
    """The headers of a request with a body of this type, and of this API key; "" for none."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if content_type:
        headers["Content-Type"] = content_type
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def seconds_of(retry_after: str) -> float:
    """The seconds of a Retry-After header; 0 where it has none, or a date."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0

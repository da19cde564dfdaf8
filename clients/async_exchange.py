"""HTTP exchanges with a server of ours for asyncio, over connections that are kept; under the asyncio clients.

The same answers and errors as `http_exchange`, which the blocking clients use. httpx2, which Pydantic maintains,
continues httpx, whose last release is of December 2024.
"""

import asyncio
import ssl
from types import TracebackType
from typing import Self

from bookserve.clients.errors import BadAnswer, DeadlineExceeded, Unavailable
from bookserve.clients.http_exchange import Answer, Server, headers_of, seconds_of


class AsyncServer:
    """A server such as "http://127.0.0.1:8501". Make it inside a running event loop, and close it in the same.

    ValueError for a URL that is none, ImportError without httpx2. Uses no proxy, as `Server`.
    """

    def __init__(self, url: str) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise ImportError(
                "the asyncio clients of REST and gateway need httpx2: pip install 'bookserve[clients]'"
            ) from error
        self.server = Server.at(url)
        self._httpx = httpx2
        verify = ssl.create_default_context() if self.server.scheme == "https" else False
        # A call has a deadline of its own; as many calls as tasks make are under way.
        self._client = httpx2.AsyncClient(
            trust_env=False, timeout=None, verify=verify, limits=httpx2.Limits(max_keepalive_connections=32)
        )

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        content_type: str = "",
        key: str = "",
        timeout: float,
    ) -> Answer:
        """As `Server.exchange`."""
        url = f"{self.server.url}{path}"
        try:
            async with asyncio.timeout(timeout):
                response = await self._client.request(method, url, content=body, headers=headers_of(content_type, key))
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.server.url} gave no answer within {timeout:g} s") from error
        except (self._httpx.ProtocolError, self._httpx.DecodingError) as error:
            # A kept connection that the server closed in the moment of the request.
            if "disconnected without" in str(error):
                raise Unavailable(f"{self.server.url} closed the connection without an answer") from error
            if "closed connection without sending complete" in str(error):
                raise BadAnswer(f"{self.server.url} broke its answer off") from error
            raise BadAnswer(
                f"{self.server.url} does not answer in HTTP ({type(error).__name__}): is it a gRPC port?"
            ) from error
        except self._httpx.TransportError as error:
            raise Unavailable(f"nothing answers at {self.server.url}: {error}") from error
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        retry_after = seconds_of(response.headers.get("Retry-After", ""))
        return Answer(response.status_code, media_type, response.content, retry_after)

    async def close(self) -> None:
        """Closes the connections that were kept."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

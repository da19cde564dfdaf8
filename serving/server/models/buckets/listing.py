"""What the folders of a bucket are called, asked again and again without waiting for a bucket that does not answer.

One request is under way at a time. Whoever asks meanwhile gets what the last one brought, and after a failure the
bucket is left alone for a while, longer each time.
"""

import asyncio
import logging

from bookserve.serving.wire.bucket import BucketAddress, BucketError, BucketFolder, Object

log = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 20.0  # for the first listing of a bucket
_NEXT_WAIT_SECONDS = 1.0  # for the others, before what is known is answered
_FIRST_PAUSE_SECONDS = 1.0  # after a failure, doubled by each more
_MAX_PAUSE_SECONDS = 60.0

Names = tuple[list[str], list[Object]]  # of folders, and the objects beside them


class Listing:
    """The folders and objects directly below one address. Used on one event loop."""

    def __init__(self, address: BucketAddress) -> None:
        """Raises BucketError where the bucket cannot be asked at all."""
        self.folder = BucketFolder(address)
        self._running: asyncio.Task[Names] | None = None
        self._known: Names | None = None
        self._error: BucketError | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._not_before = 0.0

    async def names(self) -> Names:
        """What is there now, or was a moment ago. Raises BucketError where the last listing failed."""
        loop = asyncio.get_running_loop()
        if self._running is None and loop.time() >= self._not_before:
            self._running = loop.create_task(self.folder.names())
        if self._running is not None:
            wait = _FIRST_WAIT_SECONDS if self._known is None and self._error is None else _NEXT_WAIT_SECONDS
            done, _ = await asyncio.wait({self._running}, timeout=wait)
            if done and self._running is not None:
                self._finish(self._running)
        if self._error is not None:
            raise self._error
        if self._known is None:
            raise BucketError(f"{self.folder.address} has not answered within {_FIRST_WAIT_SECONDS:g} s")
        return self._known

    def _finish(self, task: asyncio.Task[Names]) -> None:
        self._running = None
        try:
            self._known = task.result()
        except BucketError as error:
            self._error = error
            self._not_before = asyncio.get_running_loop().time() + self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)
            return
        if self._error is not None:
            log.info("%s answers again", self.folder.address)
        self._error, self._pause, self._not_before = None, _FIRST_PAUSE_SECONDS, 0.0

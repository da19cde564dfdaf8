"""Pictures that a page has just shown and is going to ask about: they are decoded once.

A browser that cannot show a format, such as HEIC, asks for a preview and then sends the same file for its class.
Decoding a photograph takes longer than both answers.
"""

import hashlib
import threading

from bookserve.clients.inputs import pictures
from bookserve.clients.inputs.pictures import Pixels
from bookserve.export.contracts import Preprocessing

_KEPT = 8  # pictures
_MOST_BYTES = 1 << 20  # of the levels of one that is kept

_Key = tuple[bytes, Preprocessing]


class PreparedPictures:
    """The levels of the last pictures that were previewed. Shared by the gateway's threads."""

    def __init__(self) -> None:
        self._kept: dict[_Key, Pixels] = {}
        self._lock = threading.Lock()

    def preview(self, content: bytes, side: int, means: Preprocessing) -> bytes:
        """A picture as a PNG of at most `side` pixels; its levels are kept. Raises PictureError."""
        png, found = pictures.preview_and_levels(content, side, means)
        if found is not None and found.nbytes <= _MOST_BYTES:
            with self._lock:
                self._kept[_key(content, means)] = found
                while len(self._kept) > _KEPT:
                    del self._kept[next(iter(self._kept))]  # the oldest
        return png

    def levels(self, content: bytes, means: Preprocessing) -> Pixels:
        """As `clients.inputs.pictures.levels`, from what a preview has left, if it has. Raises PictureError."""
        found = None
        if self._kept:
            with self._lock:
                found = self._kept.get(_key(content, means))
        return pictures.levels(content, means) if found is None else found


def _key(content: bytes, means: Preprocessing) -> _Key:
    return hashlib.sha256(content).digest(), means

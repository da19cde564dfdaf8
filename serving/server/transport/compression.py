"""Decompression of requests that never makes more of a body than its limit, whatever the body claims."""

import asyncio
import zlib

_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_MAX_RATIO = 1032  # of deflate
_PIECE = 1 << 20
# Up to this size of what it may become, a body is decompressed at once, on the event loop.
_SMALL = 1 << 20


class CompressionError(ValueError):
    """A body that is no valid stream of its encoding, or ends early, or goes on after its end."""


class TooLarge(ValueError):
    """A body that is larger than its limit after decompression."""


def known(encoding: str) -> bool:
    """Whether bodies of this encoding can be decompressed; "identity" is none."""
    return encoding in _ENCODINGS


async def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its compression. Raises CompressionError, and TooLarge above `limit` bytes.

    A large body is first only measured, piece by piece, so that one that is refused costs a piece of memory.
    """
    if len(body) * _MAX_RATIO <= _SMALL:
        return _all(body, encoding, limit)
    return await asyncio.to_thread(_measured, body, encoding, limit)


def _measured(body: bytes, encoding: str, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_ENCODINGS[encoding])
    size, rest = 0, body
    try:
        while rest and not decompressor.eof:
            size += len(decompressor.decompress(rest, _PIECE))
            if size > limit:
                raise TooLarge
            rest = decompressor.unconsumed_tail
    except zlib.error as error:
        raise CompressionError(str(error)) from error
    return _all(body, encoding, limit)


def _all(body: bytes, encoding: str, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        data = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise CompressionError(str(error)) from error
    if len(data) > limit:
        raise TooLarge
    if not decompressor.eof:
        raise CompressionError("it ends early")
    if decompressor.unused_data:
        raise CompressionError("it goes on after its end")
    return data

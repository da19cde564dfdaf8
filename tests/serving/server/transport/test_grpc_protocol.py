import gzip
import tracemalloc
import zlib

import pytest

from bookserve.serving.server.transport.grpc_protocol import decompressed, seconds


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(OverflowError):
            decompressed(bomb, b"gzip", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_what_does_not_decompress() -> None:
    assert decompressed(zlib.compress(b"abc"), b"deflate", 3) == b"abc"
    with pytest.raises(zlib.error):
        decompressed(gzip.compress(b"abc")[:-1], b"gzip", 100)
    with pytest.raises(ValueError, match="grpc-encoding br is not supported: use gzip, deflate or identity"):
        decompressed(b"", b"br", 100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"1H", 3600.0), (b"2M", 120.0), (b"3S", 3.0), (b"400m", 0.4), (b"5u", 5e-6), (b"6n", 6e-9)],
)
def test_time_outs(text: bytes, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1x", b"-1S", b"123456789S"])
def test_malformed_time_outs_are_passed_over(text: bytes) -> None:
    assert seconds(text) is None

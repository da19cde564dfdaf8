"""The header codec against the `hpack` package's encoder and decoder."""

import hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bookserve.serving.server.transport.hpack import MAX_TABLE_SIZE, Decoder, HeaderListTooLarge, HpackError, encode

headers = st.lists(
    st.tuples(
        st.sampled_from([b":path", b":method", b"te", b"grpc-timeout", b"x-long-name", b"user-agent"])
        | st.binary(min_size=1, max_size=20),
        st.binary(max_size=200) | st.sampled_from([b"POST", b"trailers", b"/a/b"]),
    ),
    max_size=12,
)


@given(st.lists(headers, max_size=8), st.booleans())
def test_decodes_what_the_hpack_package_encodes(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(max_list_size=1 << 20)
    for block in blocks:
        assert decoder.decode(encoder.encode(block, huffman=huffman)) == block


@given(st.lists(st.one_of(headers, st.integers(0, MAX_TABLE_SIZE)), max_size=8))
@example([0, [], 37, 37, [(b":path", b""), (b":path", b"")]])
def test_follows_table_size_updates(steps: list[list[tuple[bytes, bytes]] | int]) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(max_list_size=1 << 20)
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # the package forgets to tell of a change when it is made twice
                encoder.header_table_size = step
        else:
            assert decoder.decode(encoder.encode(step)) == step


@given(headers)
def test_the_hpack_package_decodes_what_we_encode(fields: list[tuple[bytes, bytes]]) -> None:
    fields = [(b":status", b"200"), *fields]
    assert [tuple(field) for field in hpack.Decoder().decode(encode(fields), raw=True)] == fields


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_raise_hpack_error(block: bytes) -> None:
    decoder = Decoder(max_list_size=1000)
    try:
        fields = decoder.decode(block)
    except HpackError:
        return
    assert sum(len(name) + len(value) + 32 for name, value in fields) <= 1000


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"\x80", "index 0"),
        (b"\xff\x80\x80\x80\x80\x80\x01", "too large"),
        (b"\xfe", "outside the table"),
        (b"\x82\x20", "after the first field"),
        (b"\x3f\xff\xff\x03", "above the 4096 allowed"),
        (b"\x00\x0aabc", "within a string"),
        (b"\x00", "before a string"),
        (b"\x00\x81\x00\x00", "Huffman"),
    ],
)
def test_malformed_blocks_are_refused(block: bytes, message: str) -> None:
    with pytest.raises(HpackError, match=message):
        Decoder(max_list_size=1 << 16).decode(block)


def test_a_small_block_cannot_expand_without_bound() -> None:
    decoder = Decoder(max_list_size=8192)
    decoder.decode(hpack.Encoder().encode([(b"x-bomb", b"a" * 3000)]))
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(b"\xbe" * 1000)


def test_a_block_that_comes_again_means_what_the_table_says_then() -> None:
    decoder = Decoder(max_list_size=1 << 20)
    newest = bytes([0x80 | 62])

    def added(value: bytes) -> bytes:
        return b"\x40\x01x" + bytes([len(value)]) + value

    decoder.decode(added(b"one"))
    assert decoder.decode(newest) == decoder.decode(newest) == [(b"x", b"one")]
    decoder.decode(added(b"two"))
    assert decoder.decode(newest) == decoder.decode(newest) == [(b"x", b"two")]
    decoder.decode(b"\x20")  # an empty table
    with pytest.raises(HpackError, match="outside the table"):
        decoder.decode(newest)


def test_a_connection_keeps_few_blocks_decoded() -> None:
    decoder = Decoder(max_list_size=1 << 20)
    for number in range(1000):
        decoder.decode(encode([(b"x", b"%d" % number)]))
        decoder.decode(encode([(b"x", b"a" * 600 + b"%d" % number)]))
    assert len(decoder._repeated) <= 16
    assert max(map(len, decoder._repeated)) <= 512

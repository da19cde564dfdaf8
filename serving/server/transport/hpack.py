"""HPACK (RFC 7541): reads the header blocks of HTTP/2 requests and writes those of the answers.

A gRPC client sends the same dozen headers with every call, so nearly every field is one index into a table, which this
decoder reads in one list access. Huffman strings are left to the `hpack` package, and the short ones kept, as
clients repeat those, too. Answers are written without the dynamic table: literals that are the same bytes on every
connection and can be made once.
"""

from functools import lru_cache

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman

Header = tuple[bytes, bytes]

_MAX_KEPT = 64  # bytes of a string that is kept decoded
_MAX_REPEATED = 16  # blocks that a connection keeps decoded, and the bytes of one
_MAX_REPEATED_SIZE = 512

# RFC 7541, Appendix A.
_STATIC: tuple[Header, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)

# RFC 7541, 4.1: every entry of the dynamic table counts 32 octets more than its name and value.
_ENTRY_OVERHEAD = 32
# The size our SETTINGS leave at the protocol's default, so the peer's encoder may never ask for more.
MAX_TABLE_SIZE = 4096


class HpackError(Exception):
    """A header block that breaks RFC 7541; the connection cannot go on, as both tables may now differ."""


class HeaderListTooLarge(HpackError):
    """A header list above the limit that the server advertises."""


class Decoder:
    """Decodes the header blocks of one connection, in the order in which they came.

    `max_list_size` bounds the size of one decoded header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113,
    6.5.2: name and value octets plus 32 a field).
    """

    __slots__ = ("_dynamic", "_repeated", "_size", "_table_size", "max_list_size")

    def __init__(self, max_list_size: int) -> None:
        self.max_list_size = max_list_size
        self._dynamic: list[Header] = []  # newest first, as the indices count
        self._size = 0
        self._table_size = MAX_TABLE_SIZE
        # Blocks that left the table as it is, with their fields, for as long as it stays so.
        self._repeated: dict[bytes, list[Header]] = {}

    def decode(self, block: bytes) -> list[Header]:
        """The fields of one complete header block, in order; the list may be shared.

        Raises HeaderListTooLarge above `max_list_size` and HpackError for anything that RFC 7541 forbids.
        """
        repeated = self._repeated.get(block)
        if repeated is not None:
            return repeated
        changed = False
        headers: list[Header] = []
        total = 0
        position = 0
        end = len(block)
        while position < end:
            first = block[position]
            if first & 0x80:  # indexed field
                index = first & 0x7F
                position += 1
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                field = self._field(index)
            elif first & 0x40:  # literal, added to the table
                field, position = self._literal(block, position, 0x3F)
                self._add(field)
                changed = True
            elif first & 0x20:  # new table size
                if headers:
                    raise HpackError("table size update after the first field")
                size, position = _prefixed_integer(block, position, 0x1F)
                if size > MAX_TABLE_SIZE:
                    raise HpackError(f"table size {size} is above the {MAX_TABLE_SIZE} allowed")
                self._table_size = size
                self._evict(0)
                changed = True
                continue
            else:  # literal, not added (also "never indexed")
                field, position = self._literal(block, position, 0x0F)
            total += len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if total > self.max_list_size:
                raise HeaderListTooLarge(
                    f"the header list is larger than {self.max_list_size} bytes (--max_header_bytes)"
                )
            headers.append(field)
        if changed or len(self._repeated) >= _MAX_REPEATED:
            self._repeated.clear()
        if not changed and end <= _MAX_REPEATED_SIZE:
            self._repeated[block] = headers
        return headers

    def _field(self, index: int) -> Header:
        if index == 0:
            raise HpackError("index 0")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        try:
            return self._dynamic[index - len(_STATIC) - 1]
        except IndexError:
            raise HpackError(f"index {index} is outside the table") from None

    def _literal(self, block: bytes, position: int, mask: int) -> tuple[Header, int]:
        index, position = _prefixed_integer(block, position, mask)
        if index:
            name = self._field(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), position

    def _add(self, field: Header) -> None:
        size = len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
        self._evict(size)
        if size <= self._table_size:
            self._dynamic.insert(0, field)
            self._size += size

    def _evict(self, room: int) -> None:
        while self._dynamic and self._size + room > self._table_size:
            name, value = self._dynamic.pop()
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def encode(headers: list[Header]) -> bytes:
    """A header block of literals that are not added to any table; the same bytes are right on every connection.

    `:status: 200` is written as its static index.
    """
    block = bytearray()
    for name, value in headers:
        if (name, value) == (b":status", b"200"):
            block.append(0x88)
            continue
        block.append(0x00)
        for text in (name, value):
            block += _length(len(text)) + text
    return bytes(block)


def _length(value: int) -> bytes:
    if value < 0x7F:
        return bytes((value,))
    encoded = bytearray((0x7F,))
    value -= 0x7F
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _prefixed_integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    value = block[position] & mask
    position += 1
    if value == mask:
        return _integer(block, position, mask)
    return value, position


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """The rest of an integer that did not fit its prefix (RFC 7541, 5.1); at most four more octets."""
    for shift in (0, 7, 14, 21):
        if position >= len(block):
            raise HpackError("the block ends within an integer")
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if not octet & 0x80:
            return value, position
    raise HpackError("an integer is too large")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    if position >= len(block):
        raise HpackError("the block ends before a string")
    huffman = block[position] & 0x80
    length, position = _prefixed_integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise HpackError("the block ends within a string")
    text = block[position:end]
    if huffman:
        try:
            text = _decoded(text) if length <= _MAX_KEPT else decode_huffman(text)
        except HPACKDecodingError as error:
            raise HpackError("malformed Huffman string") from error
    return text, end


@lru_cache(512)
def _decoded(text: bytes) -> bytes:
    decoded: bytes = decode_huffman(text)
    return decoded

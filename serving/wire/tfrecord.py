"""TensorFlow's TFRecord files: records behind one another, each with checksums (tsl/lib/io/record_writer.cc)."""

import struct

import google_crc32c

# A record: length, CRC of the length, the bytes, CRC of the bytes.
HEADER = struct.Struct("<QL")
LENGTH = struct.Struct("<Q")
FOOTER = struct.Struct("<L")


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and moved, so that the checksum of data that holds checksums is none of them."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(record: bytes) -> bytes:
    """A record as it stands in a file."""
    length = LENGTH.pack(len(record))
    return b"".join((length, FOOTER.pack(masked_crc(length)), record, FOOTER.pack(masked_crc(record))))

"""A client that sends whatever HTTP/2 frames it is told to, and keeps what comes back."""

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS = 4
MAX_STREAMS, WINDOW, MAX_FRAME = 3, 4, 5  # settings
FULL_WINDOW = 65_535  # of every stream and connection, until changed


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def uint32(value: int) -> bytes:
    return struct.pack(">L", value)


def settings_frame(**values: int) -> bytes:
    """SETTINGS with `window`, `max_frame` or both."""
    identifiers = {"window": WINDOW, "max_frame": MAX_FRAME}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", identifiers[name], values[name]) for name in values))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, uint32(increment))


def grpc_message(data: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BL", compressed, len(data)) + data


def request_headers(path: bytes = b"/t/Echo", **more: str) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    fields += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    return hpack.Encoder().encode(fields)


def request(stream: int, data: bytes, path: bytes = b"/t/Echo") -> bytes:
    """A unary call whose message fits one frame."""
    headers = frame(HEADERS, END_HEADERS, stream, request_headers(path))
    return headers + frame(DATA, END_STREAM, stream, grpc_message(data))


class RawClient:
    """One connection: `frames` holds all that the server has sent so far."""

    def __init__(
        self, port: int, *frames: bytes, settings: bytes = frame(SETTINGS, 0, 0), preface: bytes = PREFACE
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.frames: list[Frame] = []
        self.closed = False
        self._pending = b""
        self._decoder = hpack.Decoder()
        self._fields: dict[int, list[tuple[bytes, bytes]]] = {}
        self._pings = 0
        self.send(preface, settings, *frames)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Fails by its time-out; returns early when the server closes."""
        while not self.closed and not condition():
            try:
                received = self.socket.recv(1 << 20)
            except ConnectionResetError:
                received = b""
            self.closed = not received
            self._pending += received
            start = 0
            while len(self._pending) - start >= 9:
                high, low, kind, flags, stream = struct.unpack_from(">HBBBL", self._pending, start)
                stop = start + 9 + (high << 8 | low)
                if stop > len(self._pending):
                    break
                self._take(Frame(kind, flags, stream, self._pending[start + 9 : stop]))
                start = stop
            self._pending = self._pending[start:]

    def _take(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.kind == HEADERS:
            fields = self._decoder.decode(frame.payload, raw=True)
            self._fields.setdefault(frame.stream, []).extend((bytes(name), bytes(value)) for name, value in fields)

    def read_for(self, seconds: float) -> None:
        """Reads what comes within that time."""
        self.socket.settimeout(seconds)
        try:
            seen = len(self.frames)
            self.read_until(lambda: len(self.frames) > seen)
        except TimeoutError:
            pass
        finally:
            self.socket.settimeout(20)

    def settle(self) -> None:
        """Reads all that the server sends because of what it has been sent so far."""
        self._pings += 1
        payload = struct.pack(">Q", self._pings)
        self.send(frame(PING, 0, 0, payload))
        self.read_until(lambda: any(f.kind == PING and f.payload == payload for f in self.frames))

    def send_in_windows(self, stream: int, parts: list[bytes]) -> None:
        """The last data of a stream, in frames, as fast as the server opens its windows."""
        windows = {0: FULL_WINDOW, stream: self._setting(WINDOW, FULL_WINDOW)}
        seen = 0
        for number, part in enumerate(parts, 1):
            while min(windows.values()) < len(part) and not self.closed:
                self.read_until(lambda seen=seen: len(self.frames) > seen)  # type: ignore[misc]
                for given in self.frames[seen:]:
                    if given.kind == WINDOW_UPDATE and given.stream in windows:
                        windows[given.stream] += struct.unpack(">L", given.payload)[0]
                seen = len(self.frames)
            self.send(frame(DATA, END_STREAM if number == len(parts) else 0, stream, part))
            windows = {number: window - len(part) for number, window in windows.items()}

    def _setting(self, identifier: int, default: int) -> int:
        """What the server has set in its first frame."""
        self.read_until(lambda: any(f.kind == SETTINGS and not f.flags & ACK for f in self.frames))
        first = next(f for f in self.frames if f.kind == SETTINGS and not f.flags & ACK)
        return dict(struct.iter_unpack(">HL", first.payload)).get(identifier, default)

    def read_to_end(self) -> list[Frame]:
        self.read_until(lambda: False)
        return self.frames

    def data(self, stream: int | None = None) -> bytes:
        """The contents of the DATA frames, of one stream or all."""
        return b"".join(f.payload for f in self.frames if f.kind == DATA and stream in (None, f.stream))

    def text(self, stream: int) -> bytes:
        """The headers and trailers of a stream, one a line."""
        return b"\n".join(b": ".join(field) for field in self._fields.get(stream, []))

    def ended(self) -> set[int]:
        """The streams that the server has ended in an orderly way."""
        return {f.stream for f in self.frames if f.kind in (HEADERS, DATA) and f.flags & END_STREAM}

    def resets(self) -> dict[int, int]:
        """Error code by stream."""
        return {f.stream: struct.unpack(">L", f.payload)[0] for f in self.frames if f.kind == RST_STREAM}

    def goaways(self) -> list[tuple[int, bytes]]:
        """Error code and reason."""
        return [(struct.unpack(">L", f.payload[4:8])[0], f.payload[8:]) for f in self.frames if f.kind == GOAWAY]

"""Load on a model server: one request, sent over and over on so many connections, and what came of it.

Used by `bookserve load`, which works wherever the clients do. It costs more CPU time a call than h2load and wrk, which
`make bench` runs where they are installed; so it says how busy this process was. Memory does not grow with the number
of calls: times are counted in buckets 2 % wide.
"""

import http.client
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from bookserve.clients import errors
from bookserve.clients.grpc_client import CHANNEL_OPTIONS, PREDICT
from bookserve.clients.http_exchange import Server

_BUCKETS_A_FACTOR = 50  # buckets while a time grows by e
_LONGEST = 3600.0  # seconds; a longer time counts as this
_PAUSE = 0.05  # seconds after a call that nobody answered
# Each caller has a connection of its own, and a call that fails is counted and not made again.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


class Caller(Protocol):
    """One connection to a server."""

    def call(self) -> None:
        """Sends the request and waits for its answer. Raises PredictError where it is not a good one."""

    def close(self) -> None:
        """Closes the connection."""


class GrpcCaller:
    """Predict over gRPC on a connection of its own; `request` is a serialized PredictRequest."""

    def __init__(self, target: str, request: bytes, timeout: float) -> None:
        self._target, self._request, self._timeout = target, request, timeout
        self._channel = grpc.insecure_channel(target, options=(*CHANNEL_OPTIONS, *_OWN_CONNECTION))
        self._predict = self._channel.unary_unary(PREDICT)

    def call(self) -> None:
        """As `Caller.call`."""
        try:
            self._predict(self._request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise errors.from_grpc(error.code(), error.details() or "", self._target) from error

    def close(self) -> None:
        """As `Caller.close`."""
        self._channel.close()


class RestCaller:
    """POST of a JSON body over REST on a connection that is kept, and opened anew where the server closed it."""

    def __init__(self, server: Server, path: str, body: bytes, timeout: float) -> None:
        kind = http.client.HTTPSConnection if server.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(server.host, server.port, timeout=timeout)
        self._server, self._path, self._body, self._timeout = server, server.prefix + path, body, timeout

    def call(self) -> None:
        """As `Caller.call`."""
        try:
            self._connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            body = response.read()
        except TimeoutError as error:
            self._connection.close()
            raise errors.DeadlineExceeded(f"{self._server.url} gave no answer within {self._timeout:g} s") from error
        except http.client.HTTPException as error:
            self._connection.close()
            raise errors.Unavailable(f"{self._server.url} broke off ({type(error).__name__})") from error
        except OSError as error:
            self._connection.close()
            raise errors.Unavailable(f"nothing answers at {self._server.url}: {error.strerror or error}") from error
        if response.status != 200:
            raise errors.from_http(response.status, _reason(body) or f"the server answered {response.status}")

    def close(self) -> None:
        """As `Caller.close`."""
        self._connection.close()


@dataclass
class Counts:
    """What one connection, or all of them, saw. `times` counts good answers by bucket, `each_second` by second."""

    times: Counter[int] = field(default_factory=Counter)
    each_second: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # by canonical code
    messages: dict[str, str] = field(default_factory=dict)  # code -> the first message of it
    longest: float = 0.0  # seconds

    def add(self, other: "Counts") -> None:
        """Adds what another connection saw."""
        self.times += other.times
        self.each_second += other.each_second
        self.failed += other.failed
        self.messages = {**other.messages, **self.messages}
        self.longest = max(self.longest, other.longest)


@dataclass(frozen=True)
class Load:
    """What a load came to. Times are in seconds; `busy` is the CPU time of this process a second, 1.0 for one core."""

    seconds: float
    counts: Counts
    busy: float

    @property
    def answered(self) -> int:
        """Good answers."""
        return self.counts.times.total()

    @property
    def failed(self) -> int:
        """Calls without a good answer."""
        return self.counts.failed.total()

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float | None:
        """The time within which that share (0 to 1) of the good answers came; None without a good answer."""
        wanted, passed = share * self.answered, 0
        for bucket in sorted(self.counts.times):
            passed += self.counts.times[bucket]
            if passed >= wanted:
                return min(_middle(bucket), self.counts.longest)
        return None

    def each_second(self) -> list[int]:
        """Good answers in each whole second of the load."""
        return [self.counts.each_second[second] for second in range(int(self.seconds))]

    def spread(self, columns: int) -> list[int]:
        """Good answers by time in `columns` ranges, equally wide on a logarithmic scale, from shortest to longest."""
        buckets = sorted(self.counts.times)
        if not buckets:
            return []
        width = max(1, math.ceil((buckets[-1] - buckets[0] + 1) / columns))
        found = [0] * math.ceil((buckets[-1] - buckets[0] + 1) / width)
        for bucket in buckets:
            found[(bucket - buckets[0]) // width] += self.counts.times[bucket]
        return found


def run(connect: Callable[[], Caller], connections: int, seconds: float) -> Load:
    """Calls on `connections` connections at once for `seconds`, one call at a time on each.

    A call that is under way at the end is waited for and counts neither as answered nor as failed.
    """
    counts = [Counts() for _ in range(connections)]
    stop = threading.Event()
    begin = time.perf_counter()
    threads = [
        threading.Thread(target=_ask, args=(connect, count, stop, begin, seconds), name="load") for count in counts
    ]
    busy = time.process_time()
    try:
        for thread in threads:
            thread.start()
        stop.wait(begin + seconds - time.perf_counter())
        busy = (time.process_time() - busy) / seconds
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    total = Counts()
    for count in counts:
        total.add(count)
    return Load(seconds, total, busy)


def _ask(connect: Callable[[], Caller], counts: Counts, stop: threading.Event, begin: float, seconds: float) -> None:
    caller = connect()
    try:
        while not stop.is_set():
            started = time.perf_counter()
            failure = None
            try:
                caller.call()
            except errors.PredictError as error:
                failure = error
            ended = time.perf_counter()
            if ended - begin >= seconds:
                return
            if failure is None:
                counts.times[_bucket(ended - started)] += 1
                counts.each_second[int(ended - begin)] += 1
                counts.longest = max(counts.longest, ended - started)
            else:
                counts.failed[failure.code] += 1
                counts.messages.setdefault(failure.code, str(failure))
                if isinstance(failure, errors.Unavailable):
                    stop.wait(_PAUSE)
    finally:
        caller.close()


def _bucket(seconds: float) -> int:
    return int(math.log(min(max(seconds, 1e-6), _LONGEST)) * _BUCKETS_A_FACTOR)


def _middle(bucket: int) -> float:
    # int() rounds towards zero, so the buckets of times below a second reach to the other side.
    return math.exp((bucket + (0.5 if bucket > 0 else -0.5)) / _BUCKETS_A_FACTOR)


def _reason(body: bytes) -> str:
    """The message of TensorFlow Serving's error body."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return str(content.get("error", "")) if isinstance(content, dict) else ""

"""The generators of load, which cost less than a server: h2load for gRPC and wrk for REST; and what they print.

h2load (Debian: nghttp2-client) knows nothing of gRPC: it takes a call that failed for one that succeeded, because its
HTTP status is 200. Such a call is found by its answer, which has no message. Its percentiles come from its log of
single calls, which costs it some 5 us a call.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from measurements import MeasurementError
from processes import HOST

_WARM_UP_SECONDS = 1
_GRACE_SECONDS = 60.0
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
PACKAGES = {"h2load": "nghttp2-client", "wrk": "wrk"}  # Debian's


@dataclass(frozen=True)
class Load:
    """What a generator saw: calls in all, those of them that failed, good answers a second, and times of calls."""

    calls: int
    failed: int
    rate: float
    p50_ms: float
    p99_ms: float


def missing() -> list[str]:
    """The generators that are not installed."""
    return [tool for tool in PACKAGES if not shutil.which(tool)]


class H2load:
    """gRPC calls with the message in a file, by so many streams of each connection at once."""

    def __init__(self, body: Path, url: str, connections: int, streams: int, answer_bytes: int) -> None:
        """`answer_bytes` is the length of a good answer with its prefix."""
        self._command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-d{body}"]
        self._command += ["-Hcontent-type: application/grpc", "-Hte: trailers", url]
        self._at_once = connections * streams
        self._answer_bytes = answer_bytes
        self._rate = 0.0

    def warm_up(self) -> None:
        """Loads the server for a second, and notes how fast it is."""
        output = _output(*self._command, f"-D{_WARM_UP_SECONDS}", seconds=_WARM_UP_SECONDS)
        self._rate = float(_found(r"([\d.]+) req/s", output))

    def run(self, seconds: int) -> Load:
        """As many calls as take about that long: when their number is given, none is broken off at the end."""
        calls = max(self._at_once, int(self._rate * seconds))
        with tempfile.NamedTemporaryFile("r") as log:
            output = _output(*self._command, f"-n{calls}", f"--log-file={log.name}", seconds=seconds)
            return parse_h2load(output, log.read(), self._answer_bytes)


def parse_h2load(output: str, log: str, answer_bytes: int) -> Load:
    """What h2load printed at its end, and its log of single calls."""
    calls, done, succeeded = (
        int(_found(rf"^requests:.* (\d+) {what}", output)) for what in ("total", "done", "succeeded")
    )
    answered = min(succeeded, int(_found(r"^traffic:.* \((\d+)\) data", output)) // answer_bytes)
    rate = float(_found(r"([\d.]+) req/s", output)) * answered / max(1, done)
    times_ms = [int(line.split("\t")[2]) / 1e3 for line in log.splitlines()]
    if not times_ms:
        raise MeasurementError("no call was answered")
    p50, p99 = np.percentile(times_ms, [50, 99])
    return Load(calls, calls - answered, rate, float(p50), float(p99))


class Wrk:
    """REST requests of a Lua script on so many connections."""

    def __init__(self, script: Path, url: str, connections: int) -> None:
        self._command = ["wrk", "-t1", f"-c{connections}", "--latency", "--timeout=30s", f"-s{script}", url]

    def warm_up(self) -> None:
        """Loads the server for a second."""
        _output(*self._command, f"-d{_WARM_UP_SECONDS}s", seconds=_WARM_UP_SECONDS)

    def run(self, seconds: int) -> Load:
        """Requests for that long."""
        return parse_wrk(_output(*self._command, f"-d{seconds}s", seconds=seconds))


def parse_wrk(output: str) -> Load:
    """What wrk printed."""
    calls = int(_found(r"(\d+) requests in", output))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: (.*)", output)
    unanswered = sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0
    answered = calls - (int(refused[1]) if refused else 0)
    rate = float(_found(r"Requests/sec:\s+(\S+)", output)) * answered / max(1, calls)
    p50, p99 = (milliseconds(_found(rf"^ +{share}% +(\S+)", output)) for share in (50, 99))
    return Load(calls + unanswered, calls - answered + unanswered, rate, p50, p99)


def milliseconds(text: str) -> float:
    """A time as wrk prints it, such as 870.00us."""
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if match is None:
        raise MeasurementError(f"no time: {text}")
    return float(match[1]) * _MILLISECONDS[match[2]]


def url(port: int, path: str) -> str:
    """Of a server on loopback."""
    return f"http://{HOST}:{port}/{path}"


def _output(*command: str, seconds: float) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10 * seconds + _GRACE_SECONDS
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{command[0]} did not end in {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise MeasurementError(f"{command[0]} failed: {error.stderr or error.stdout}") from error


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise MeasurementError(f"something unexpected was printed:\n{text}")
    return match[1]

"""The gateway's settings and limits, each with its default; `bookserve gateway` has a flag for each."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What one request may cost. Past a limit the gateway answers 400, 408, 413 or 503 and does no work."""

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0  # from the first byte of a request's body to its last
    form_parts: int = 64  # multipart parts, files and fields together
    form_field_bytes: int = (
        64 << 10
    )  # the headers of a multipart part, and the text of one that is no file; at least 1 KiB
    items: int = 32  # pictures, molecules, texts, boards a request
    points: int = 4096  # rows of numbers a request, of the tasks regression and tabular
    generated_words: int = 50  # words a request may have generated
    json_bytes: int = 1 << 20  # of a JSON body
    json_depth: int = 8  # nested lists and objects
    concurrent: int = 32  # requests being answered at once; each has a thread
    waiting: int = 128  # requests beyond these; more are refused with 503
    streams: int = 8  # requests of many lines (NDJSON) at once; each keeps a thread


@dataclass(frozen=True)
class GatewayConfig:
    """How one gateway runs."""

    model_server: str = "127.0.0.1:8500"
    model_server_rest: str = ""  # such as "http://127.0.0.1:8501": for the metrics of the last minutes, and to show it
    model_seconds: float = 10.0  # the deadline of a call to the model server
    models_dir: Path | None = None  # the model store: contracts, metrics, report pictures, vocabularies
    models_address: str = ""  # where the store is, where `models_dir` has a copy of its small files
    bind: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()  # names that it is asked by, beside loopback's and `bind`
    api_keys: Path | None = None  # the file of keys, one of which a request to /api/ must have
    cors_origins: tuple[str, ...] = ()  # whose pages may ask from a browser; "*" for any
    limits: Limits = Limits()
    requests_per_minute: int = 0  # predictions of one caller; 0 for any number

"""How long a model server takes from the start of its process to its first answer, with a whole store of models."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkouts import Checkout
from load_generators import url
from measurements import Figures, MeasurementError
from processes import RETRY_SECONDS, START_SECONDS, Server

_SETTLE_SECONDS = 6.0  # after which the processes in which versions were tried have ended
_NOT_YET = (404, 429, 503)  # the model is not there yet, or not ready


@dataclass(frozen=True)
class Question:
    """A prediction that one model of the store answers, over REST."""

    path: str
    body: bytes


def model_names(store: Path) -> list[str]:
    """The models of the store that have a version."""
    return sorted({version.parent.name for version in store.glob("*/[1-9]*")})


def find_question(checkout: Checkout, store: Path, flags: Sequence[str]) -> Question:
    """One row of zeros for the first model that answers it; a start that is not measured finds it."""
    with checkout.start(f"--model_root={store}", *flags) as server:
        _wait_for(server, "readyz", None)
        for name in model_names(store):
            try:
                with urllib.request.urlopen(url(server.rest_port, f"v1/models/{name}/metadata"), timeout=60) as answer:
                    inputs = _inputs(json.load(answer))
                question = Question(f"v1/models/{name}:predict", json.dumps({"inputs": inputs}).encode())
                _wait_for(server, question.path, question.body)
            except (urllib.error.HTTPError, KeyError):
                continue
            return question
    raise MeasurementError(f"no model of {store} answers a row of zeros")


def measure(checkout: Checkout, store: Path, question: Question, flags: Sequence[str]) -> Figures:
    """Seconds to the first answer and until all models are ready, and the MiB resident a little later."""
    began = time.perf_counter()
    with checkout.start(f"--model_root={store}", *flags) as server:
        _wait_for(server, question.path, question.body)
        answered = time.perf_counter()
        _wait_for(server, "readyz", None)
        ready = time.perf_counter()
        time.sleep(_SETTLE_SECONDS)
        return {
            "first answer s": answered - began,
            "all ready s": ready - began,
            "resident MiB": server.resident_mib(),
        }


def _wait_for(server: Server, path: str, body: bytes | None) -> None:
    """Asks until the answer is 200; raises HTTPError for an answer that will not get better."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url(server.rest_port, path), body, timeout=60).close()
            return
        except urllib.error.HTTPError as error:
            if error.code not in _NOT_YET:
                raise
        except OSError:
            pass
        server.check_start(end)
        time.sleep(RETRY_SECONDS)


def _inputs(metadata: dict[str, Any]) -> dict[str, Any]:
    """Zeros for each input of the default signature, 1 where a dimension is free."""
    inputs = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    return {name: _zeros(tensor) for name, tensor in inputs.items()}


def _zeros(tensor: dict[str, Any]) -> Any:
    value: Any = {"DT_STRING": "", "DT_BOOL": False}.get(tensor["dtype"], 0)
    for dimension in reversed(tensor["tensor_shape"].get("dim", [])):
        value = [value] * max(1, int(dimension["size"]))
    return value

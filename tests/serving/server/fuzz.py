"""Requests of every shape, type and value to models of every engine: none may end a process, hang or be INTERNAL.

`python tests/serving/server/fuzz.py --seconds 1800 --store models --out /tmp/fuzz.log` runs for half an hour, also over
the models of a store, and ends with the figures: inputs, deaths, hangs, memory. The same seed asks the same requests.
"""

import argparse
import base64
import faulthandler
import http.client
import json
import random
import struct
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from fuzz_models import write_onnx_models, write_tensorflow_models

from bookserve.serving.wire import open_inference_pb2 as v2
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, numpy_type, to_array, to_proto
from model_servers import Server, server_starter

DEADLINE_SECONDS = 60.0
_FRESH_SECONDS = 10.0  # an idle connection may be closed by the server, as HTTP allows (--rest_idle_seconds)
MEMORY_BYTES = 3 << 30  # --max_memory_bytes of the server
_HUGE = (2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**40, 10**9)
_SMALL = (0, 1, -1, 2, 3, 5)
_MAX_ELEMENTS = 20_000
_MAX_TEXT = 16 << 20  # about that many bytes of JSON; row by row, what has one row is repeated
_DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}
_DOCUMENTED_HTTP = {200, 400, 404, 413, 429, 501}
_PATHS = ("onnxruntime_src", ".cc:", "/tmp/", "site-packages", "{{node")  # none of these may be in an answer
_V2_NAMES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL", "object": "BYTES",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass
class Figures:
    """What happened so far."""

    requests: int = 0
    compared: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)  # of the server
    first_bytes: int = 0
    last_bytes: int = 0
    most_bytes: int = 0

    def __str__(self) -> str:
        answers = ", ".join(f"{name} {count}" for name, count in self.answers.most_common())
        memory = " / ".join(str(nbytes >> 20) for nbytes in (self.first_bytes, self.last_bytes, self.most_bytes))
        return (
            f"{self.requests} inputs, {self.compared} compared with the engine, {len(self.crashes)} deaths,"
            f" {len(self.hangs)} hangs, {len(self.faults)} faults; memory at first / now / at most: {memory} MiB\n"
            f"  {answers}"
        )


@dataclass(frozen=True)
class Model:
    """What a request of a model is made of."""

    name: str
    inputs: dict[str, tuple[np.dtype[Any], tuple[int | None, ...] | None]]
    graph: Path | None  # what ONNX Runtime reads, to compare with


class Requests:
    """Random requests of one model, mostly near those that it takes."""

    def __init__(self, model: Model, chance: random.Random) -> None:
        self._model = model
        self._chance = chance
        self._sizes: dict[str, int] = {}

    def tensors(self) -> dict[str, Array]:
        """The inputs of one request."""
        chance = self._chance
        rows = chance.choice((0, 1, 1, 2, 3, 7))
        other = chance.choice((0, 1, 2, 3, 5))
        inputs = {}
        for name, (dtype, declared) in self._model.inputs.items():
            shape = [
                rows if place == 0 else other if size is None else size for place, size in enumerate(declared or ())
            ]
            shape = [size or 0 for size in shape]
            if declared and declared[0] is not None:
                shape[0] = declared[0]
            if chance.random() < 0.3:
                shape = self._bent(shape)
            if chance.random() < 0.05:
                dtype = np.dtype(chance.choice(("f4", "f8", "i4", "i8", "u1", "?", "O")))
            inputs[name] = self._values(dtype, shape)
        if chance.random() < 0.03:
            inputs.pop(chance.choice(list(inputs)))
        if chance.random() < 0.03:
            inputs[chance.choice(("", "x" * 3000, "no such input", "é"))] = np.zeros(2, np.float32)
        return inputs

    def _bent(self, shape: list[int]) -> list[int]:
        chance, shape = self._chance, list(shape)
        for _ in range(chance.choice((1, 1, 2))):
            kind = chance.randrange(4)
            if kind == 0 and shape:
                shape[chance.randrange(len(shape))] = chance.choice((0, 1, 2, 3, 17))
            elif kind == 1 and shape:
                shape.pop(chance.randrange(len(shape)))
            elif kind == 2:
                shape.insert(chance.randrange(len(shape) + 1), chance.choice((0, 1, 1, 2)))
            elif shape:
                shape[chance.randrange(len(shape))] = chance.choice((100, 1000, 5000))
        return shape[:66]

    def _values(self, dtype: np.dtype[Any], shape: list[int]) -> Array:
        chance = self._chance
        while np.prod(shape, dtype=float) > _MAX_ELEMENTS:
            shape = [min(size, 7) for size in shape] if max(shape) > 7 else shape[:-1]
        count = int(np.prod(shape, dtype=int))
        few = min(count, 64)
        if dtype.kind == "O":
            words = (b"", b"a", b"b", b"the", b"\xff\x00", "é".encode(), b"1e999", b"x" * 100_000)
            drawn: list[Any] = [chance.choice(words[:-1] if count > 4 else words) for _ in range(few)]
        elif dtype.kind == "f":
            special = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, float(np.finfo(dtype).max))
            drawn = [chance.choice(special) if chance.random() < 0.2 else chance.random() for _ in range(few)]
        elif dtype.kind == "b":
            drawn = [chance.random() < 0.5 for _ in range(few)]
        else:
            limits = np.iinfo(dtype)
            pool = [value for value in _SMALL if limits.min <= value]
            if chance.random() < 0.3:
                pool += [value for value in _HUGE if limits.min <= value <= limits.max] + [limits.min, limits.max]
            drawn = [chance.choice(pool) for _ in range(few)]
        array = np.empty(count, dtype)
        if count:
            values = np.empty(few, dtype)
            values[:] = drawn
            array[:] = np.resize(values, count)
        return array.reshape(shape)


class Client:
    """One thread's connections; asks one request a time in one of the protocols' forms."""

    def __init__(self, server: Server, figures: Figures, lock: threading.Lock) -> None:
        self._server = server
        self._figures = figures
        self._lock = lock
        self._channel = grpc.insecure_channel(server.target)
        self._predict = self._channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        self._infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._http: http.client.HTTPConnection | None = None
        self._answered = time.monotonic()  # the last time on that connection
        self.asking: tuple[float, str] | None = None  # since when, and what

    def ask(self, model: Model, inputs: dict[str, Array], chance: random.Random) -> None:
        """Sends the request, counts the answer and notes it where it may not be."""
        form = chance.choice(("typed", "content", "rows", "columns", "v2 json", "v2 binary", "v2 typed", "v2 raw"))
        began = time.monotonic()
        asked = f"{model.name} {form} { ({alias: _shown(array) for alias, array in inputs.items()}) }"
        self.asking = began, asked
        answer: bytes | None = None
        code: Any
        details = ""
        try:
            if form in ("typed", "content", "v2 typed", "v2 raw"):
                code = grpc.StatusCode.OK
                try:
                    if form.startswith("v2"):
                        self._infer(_v2_message(model.name, inputs, form == "v2 raw", chance), timeout=DEADLINE_SECONDS)
                    else:
                        answer = self._predict(
                            _predict_message(model.name, inputs, form == "content", chance), timeout=DEADLINE_SECONDS
                        )
                except grpc.RpcError as error:
                    code, details = error.code(), str(error.details())
                right, name = code in _DOCUMENTED, code.name
            else:
                code, details = self._post(*_rest_request(model.name, inputs, form, chance))
                right, name = code in _DOCUMENTED_HTTP, f"HTTP {code}"
        except (OSError, http.client.HTTPException) as error:
            self._http = None
            idle = began - self._answered
            right, name, details = False, type(error).__name__, f"{error}; the connection was idle for {idle:.1f} s"
        seconds = time.monotonic() - began
        leak = any(word in details for word in _PATHS)
        compared = right and answer is not None and _compare(model, inputs, answer)
        with self._lock:
            figures = self._figures
            figures.requests += 1
            figures.answers[name] += 1
            figures.compared += bool(compared)
            if not right or leak or seconds > DEADLINE_SECONDS / 2 or compared == "differs":
                figures.faults.append(f"{asked}: {name} {details[:300]} {seconds:.1f} s {compared}")
        self.asking = None

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        if self._http is None or time.monotonic() - self._answered > _FRESH_SECONDS:
            self._http = http.client.HTTPConnection("127.0.0.1", self._server.rest_port, timeout=DEADLINE_SECONDS)
        self._http.request("POST", path, body, headers)
        response = self._http.getresponse()
        data = response.read()
        self._answered = time.monotonic()
        return response.status, "" if response.status == 200 else data.decode("utf-8", "replace")

    def close(self) -> None:
        """Ends the connections."""
        self._channel.close()
        if self._http is not None:
            self._http.close()


def _shown(array: Array) -> str:
    """A tensor in a few words."""
    values = np.array2string(array.ravel()[:3], separator=", ", threshold=3, max_line_width=1000) if array.size else ""
    return f"{array.dtype}{list(array.shape)} {values[:60]}"


def _predict_message(model: str, inputs: dict[str, Array], content: bool, chance: random.Random) -> bytes:
    request = messages.PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        proto = to_proto(array, as_content=content)
        if chance.random() < 0.03:  # a shape that the values do not have
            proto.tensor_shape.dim.add().size = chance.choice((*_SMALL, *_HUGE))
        request.inputs[name].CopyFrom(proto)
    return request.SerializeToString()


def _v2_message(model: str, inputs: dict[str, Array], raw: bool, chance: random.Random) -> bytes:
    request = v2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=_V2_NAMES[array.dtype.name], shape=array.shape)
        if chance.random() < 0.03:
            tensor.shape.append(chance.choice((*_SMALL, *_HUGE)))
        if raw or array.dtype == np.float16:
            request.raw_input_contents.append(_raw(array))
        else:
            fields = {"b": "bool", "O": "bytes", "f": "fp32" if array.itemsize == 4 else "fp64"}
            wide = "64" if array.itemsize == 8 else ""
            kind = fields.get(array.dtype.kind) or ("uint" if array.dtype.kind == "u" else "int") + wide
            getattr(tensor.contents, f"{kind}_contents").extend(array.ravel().tolist())
    return request.SerializeToString()


def _raw(array: Array) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel().tolist())


def _rest_request(
    model: str, inputs: dict[str, Array], form: str, chance: random.Random
) -> tuple[str, bytes, dict[str, str]]:
    if form == "rows":
        rows = max([len(array) for array in inputs.values() if array.ndim] or [1])
        each = sum(_text_bytes(array) / (len(array) if array.ndim and len(array) else 1) for array in inputs.values())
        rows = min(rows, max(1, int(_MAX_TEXT / (each + 1))))
        body: Any = [
            {
                name: _jsonable(array[place % len(array)] if array.ndim and len(array) else array)
                for name, array in inputs.items()
            }
            for place in range(rows)
        ]
        return f"/v1/models/{model}:predict", json.dumps({"instances": body}).encode(), {}
    if form == "columns":
        body = {"inputs": {name: _jsonable(array) for name, array in inputs.items()}}
        return f"/v1/models/{model}:predict", json.dumps(body).encode(), {}
    tensors, tail = [], []
    for name, array in inputs.items():
        shape = [*array.shape, *([chance.choice((*_SMALL, *_HUGE))] if chance.random() < 0.03 else [])]
        tensor: dict[str, Any] = {"name": name, "shape": shape, "datatype": _V2_NAMES[array.dtype.name]}
        if form == "v2 binary":
            tail.append(_raw(array))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = [_text(value) for value in array.ravel().tolist()]
        tensors.append(tensor)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": form == "v2 binary"}}).encode()
    headers = {"inference-header-content-length": str(len(head))} if form == "v2 binary" else {}
    return f"/v2/models/{model}/infer", b"".join((head, *tail)), headers


def _text_bytes(array: Array) -> int:
    """About how long it is as JSON."""
    return 24 * array.size + (2 * sum(map(len, array.ravel())) if array.dtype.kind == "O" else 0)


def _jsonable(array: Array) -> Any:
    value = np.asarray(array).tolist()

    def walk(item: Any) -> Any:
        if isinstance(item, list):
            return [walk(one) for one in item]
        return {"b64": base64.b64encode(item).decode()} if isinstance(item, bytes) else item

    return walk(value)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


_sessions: dict[Path, Any] = {}
_comparing = threading.Lock()


def _compare(model: Model, inputs: dict[str, Array], answer: bytes) -> str:
    """ "same" or "differs" from what ONNX Runtime answers here; "" where it is not asked."""
    if model.graph is None or any(not array.size or array.dtype.kind == "O" for array in inputs.values()):
        return ""
    import onnxruntime

    response = messages.PredictResponse.FromString(answer)
    with _comparing:
        if model.graph not in _sessions:
            _sessions[model.graph] = onnxruntime.InferenceSession(str(model.graph), providers=["CPUExecutionProvider"])
        session = _sessions[model.graph]
        names = [node.name for node in session.get_outputs() if node.type != "tensor(string)"]
        expected = session.run(names, inputs)
    for name, array in zip(names, expected, strict=True):
        got = to_array(response.outputs[name])
        if got.shape != array.shape or not np.allclose(got, array, rtol=1e-4, atol=1e-5, equal_nan=True):
            return "differs"
    return "same"


def _models(server: Server, roots: list[Path]) -> list[Model]:
    models = []
    for root in roots:
        for folder in sorted(root.iterdir()):
            if not folder.is_dir():
                continue
            with urllib.request.urlopen(f"{server.url}/v1/models/{folder.name}/metadata", timeout=60) as response:
                signatures = json.load(response)["metadata"]["signature_def"]["signature_def"]
            inputs = {}
            for alias, info in signatures["serving_default"]["inputs"].items():
                shape = info.get("tensor_shape") or {"dim": [], "unknown_rank": False}
                sizes = tuple([None if int(dim["size"]) < 0 else int(dim["size"]) for dim in shape["dim"]])
                number = tensorflow_pb2.DataType.Value(info["dtype"])
                inputs[alias] = (numpy_type(number), None if shape["unknown_rank"] else sizes)
            version = max((one for one in folder.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
            graphs = [version / "model.onnx", version / "assets.extra" / "model.onnx"]
            models.append(Model(folder.name, inputs, next((graph for graph in graphs if graph.is_file()), None)))
    return models


def _resident_bytes(pid: int) -> int:
    """Of a process and its descendants."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        threads = Path(f"/proc/{pid}/task").iterdir()
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return 0
    return own + sum(_resident_bytes(int(child)) for child in children)


def run(server: Server, roots: list[Path], seconds: float, seed: int, threads: int, out: TextIO) -> Figures:
    """Asks for that long, and waits for no answer longer than its deadline; the figures go to `out` every half minute.

    The server may crash, which its supervisor mends: every death is counted.
    """
    figures, lock, end = Figures(), threading.Lock(), time.monotonic() + seconds
    server.may_crash = True
    models = _models(server, roots)
    figures.first_bytes = _resident_bytes(server.process.pid)
    clients = [Client(server, figures, lock) for _ in range(threads)]

    def work(client: Client, chance: random.Random) -> None:
        try:
            while time.monotonic() < end and server.process.poll() is None:
                model = chance.choice(models)
                client.ask(model, Requests(model, chance).tensors(), chance)
        except BaseException as error:
            with lock:
                figures.faults.append(f"the fuzz program failed: {error!r}")
            raise
        finally:
            client.close()

    # Daemons: one that hangs is told of, and does not keep the program.
    workers = [
        threading.Thread(target=work, args=(client, random.Random(f"{seed} {number}")), daemon=True)
        for number, client in enumerate(clients)
    ]
    for worker in workers:
        worker.start()
    told, shown = time.monotonic(), 0
    while any(worker.is_alive() for worker in workers) and time.monotonic() < end + 2 * DEADLINE_SECONDS:
        time.sleep(0.2)
        _look(server, figures)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            figures.crashes = server.crashes
            with lock:
                faults = figures.faults[shown : shown + 20]
                print(time.strftime("%H:%M:%S"), figures, *faults, sep="\n  ", file=out, flush=True)
                shown = len(figures.faults)
    for client in clients:
        if client.asking is not None:
            since, what = client.asking
            figures.hangs.append(f"for {time.monotonic() - since:.0f} s: {what}")
    if figures.hangs:
        faulthandler.dump_traceback(out, all_threads=True)
    _look(server, figures)
    figures.crashes = server.crashes
    status = server.process.poll()
    if status is not None:
        figures.faults.append(f"the server ended with {status}")
    else:
        with urllib.request.urlopen(f"{server.url}/healthz", timeout=30) as response:
            if response.status != 200:
                figures.faults.append(f"/healthz answers {response.status}")
    return figures


def _look(server: Server, figures: Figures) -> None:
    """Notes the memory of the server and its processes."""
    figures.last_bytes = _resident_bytes(server.process.pid)
    figures.most_bytes = max(figures.most_bytes, figures.last_bytes)


def main() -> None:
    """Parses, starts a server, asks, prints; exits with 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--store", type=Path, help="also the models of this store")
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, arguments.out.open("w") as out:
        root = Path(scratch) / "models"
        write_onnx_models(root)
        write_tensorflow_models(root)
        roots = [root]
        if arguments.store:
            for model in sorted(path for path in arguments.store.iterdir() if path.is_dir()):
                (root / f"book_{model.name}").symlink_to(model.absolute())
        with server_starter(Path(scratch)) as start:
            server = start(
                f"--model_root={root}",
                "--prefer_tflite_model=true",
                f"--max_memory_bytes={MEMORY_BYTES}",
                environment={"PYTHONFAULTHANDLER": "1"},
            )
            figures = run(server, roots, arguments.seconds, arguments.seed, arguments.threads, out)
            log = server.log.read_text()
        tensorflow = [line for line in log.splitlines() if "TensorFlow's process" in line and " died of " in line]
        print("the end", figures, *figures.crashes, *figures.hangs, *figures.faults, sep="\n  ", file=out)
        print(f"TensorFlow's processes that died: {len(tensorflow)}", *tensorflow[:5], sep="\n  ", file=out)
        print(*[line for line in log.splitlines() if " E " in line][:20], sep="\n  ", file=out)
        _, fatal, stacks = log.partition("Fatal Python error")
        print(fatal + stacks[:5000], file=out)
        for trace in log.split("Traceback (most recent call last)")[1:4]:
            print(trace[-2000:], file=out)
    sys.exit(bool(figures.faults or figures.hangs or figures.crashes))


if __name__ == "__main__":
    main()

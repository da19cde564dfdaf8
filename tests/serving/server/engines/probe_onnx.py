"""Which operations end ONNX Runtime's process: every test of the onnx package's operations, with sizes and values bent.

`python tests/serving/server/engines/probe_onnx.py` takes about ten minutes; run it for a new version of ONNX Runtime.
Every graph gets the guards of `onnx_guards.py` first (`--bare`: none, which shows what they are for). What still dies
or runs for longer than ten seconds is printed, and makes the exit status 1. A guard that is missing is a line there.
"""

import argparse
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from bookserve.serving.server.engines import onnx_guards
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

SECONDS = 10
BYTES = 6 << 30  # of address space, so that a length of 2**40 is refused
NEWEST_IR = 11
# A trip count of 2**31 is no crash, and a kernel without values no graph that is served.
KNOWN = ("test_loop", "test_range_int32_type_negative_delta_expanded", "test_causal_conv_with_state")

Inputs = list["np.ndarray[Any, np.dtype[Any]] | None"]


def without_sizes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Each dimension 0, alone and together with all of the same size."""
    for place, array in enumerate(inputs):
        for axis in range(0 if array is None else array.ndim):
            shape = [0 if at == axis else size for at, size in enumerate(array.shape)]  # type: ignore[union-attr]
            yield f"input {place} of shape {shape}", with_one(inputs, place, np.empty(shape, array.dtype))  # type: ignore[union-attr]
    for size in {size for array in inputs if array is not None for size in array.shape}:
        yield (
            f"0 for every size {size}",
            [
                None if array is None else np.zeros([0 if one == size else one for one in array.shape], array.dtype)
                for array in inputs
            ],
        )


def with_extremes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Each input full of one value that kernels may not expect; the smallest integers by -1."""
    for place, array in enumerate(inputs):
        if array is None or array.dtype.kind not in "iuf":
            continue
        values: list[float] = [np.nan, np.inf, -np.inf, 0, float(np.finfo(np.float16).max), -1]
        if array.dtype.kind != "f":
            limits = np.iinfo(array.dtype)
            values = [one for one in (0, -1, 1, 7, 2**31, 2**40) if limits.min <= one <= limits.max]
            values += [limits.min, limits.max]
        for value in values:
            yield f"input {place} = {value}", with_one(inputs, place, np.full(array.shape, value, array.dtype))
    integers = [array for array in inputs[:2] if array is not None and array.dtype.kind == "i"]
    if len(integers) > 1:
        least = np.full(integers[0].shape, np.iinfo(integers[0].dtype).min, integers[0].dtype)
        yield "the smallest and -1", [least, np.full_like(integers[1], -1), *inputs[2:]]


def with_one(inputs: Inputs, place: int, array: "np.ndarray[Any, np.dtype[Any]]") -> Inputs:
    """The inputs with another one in that place."""
    return [*inputs[:place], array, *inputs[place + 1 :]]


def loosened(model: onnx.ModelProto, *, bare: bool) -> bytes:
    """The model with free sizes, and guards."""
    model.ir_version = min(model.ir_version, NEWEST_IR)
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            dim.dim_param = f"{info.name}_{axis}"
    for info in model.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    own = ModelProto.FromString(model.SerializeToString())
    if not bare:
        onnx_guards.put(own)
    return own.SerializeToString()


def answer(graph: bytes, names: Sequence[str], variants: Sequence[Inputs], writing: int) -> None:
    """Runs all; a letter for each: whether it was answered or refused. L: the graph does not load."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception:
        os.write(writing, b"L")
        return
    for inputs in variants:
        signal.alarm(SECONDS)
        try:
            session.run(None, {name: array for name, array in zip(names, inputs, strict=False) if array is not None})
        except Exception:
            os.write(writing, b"r")
        else:
            os.write(writing, b"a")


def letters(graph: bytes, names: Sequence[str], variants: Sequence[Inputs]) -> tuple[str, str]:
    """What a child process wrote, and the signal that it died of."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer(graph, names, variants, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return written, signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""


def main() -> None:
    """Probes, prints, and exits with 1 after a death that is not known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bare", action="store_true", help="without the guards")
    bare = parser.parse_args().bare
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    counts, found = Counter[str](), 0
    for case in collect_testcases(None):
        if case.model is None or not case.data_sets:
            continue
        inputs: Inputs = [
            np.asarray(one) if isinstance(one, np.ndarray | np.generic) else None for one in case.data_sets[0][0]
        ]
        bent = [*without_sizes(inputs), *with_extremes(inputs)]
        graph, names = loosened(case.model, bare=bare), [info.name for info in case.model.graph.input]
        while bent:
            written, death = letters(graph, names, [variant for _, variant in bent])
            counts.update(written)
            if written == "L" or not (written or death):
                break
            if death:
                counts[death] += 1
                known = case.name.startswith(KNOWN)
                found += not known
                operations = " ".join(dict.fromkeys(node.op_type for node in case.model.graph.node))
                print(f"{'known: ' if known else ''}{death} {operations} ({case.name}): {bent[len(written)][0]}")  # noqa: T201
            bent = bent[len(written) + bool(death) :]
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}: {dict(counts)}")  # noqa: T201
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

"""The files of an int8 version, and what its manifest says of the quantisation: from a float graph and rows."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import onnx

from bookserve.export import data_file, example_inputs, golden, onnx_metadata, warmup
from bookserve.export.contracts import Contract
from bookserve.export.engines import onnx_graph
from bookserve.export.figures import Figure, Rows
from bookserve.export.manifest import Quantization
from bookserve.export.parity import LOCATION
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.search import Found, Search, Source

EXAMPLE = "assets.extra/example.json"  # inside the version folder: the body of a REST request
LIBRARIES = ("bookserve", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Made:
    """What the manifest of the version gets besides what the float version's says.

    `parity` has each output's largest difference from the float graph, of class numbers the fraction that differs.
    """

    contract: Contract
    quantization: Quantization
    parity: dict[str, float]
    made_with: dict[str, str]


def make(
    folder: Path,
    graph: Path,
    contract: Contract,
    version: int,
    calibration: Rows,
    held_out: Rows,
    figure: Callable[[Rows], Figure],
    demands: Demands,
    say: Callable[[str], None],
) -> Made:
    """Write graph, example and warm-up requests into `folder`, and say what they are worth.

    `graph` is the float graph of version `version`, `figure` gives the figure for its outputs for `held_out`.

    Raises:
        NoGainError: no int8 graph keeps the demands.
        ExportError: the graph cannot be quantised, or refuses the rows.
    """
    target = folder / LOCATION
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bookserve-") as scratch:
        source = Source(graph, data_file.fixed_batch(contract))
        found = Search(source, calibration, held_out, figure, demands, Path(scratch), say).found()
        quantised = onnx.load(found.path)
        onnx_metadata.write(quantised, contract, "int8")
        target.write_bytes(quantised.SerializeToString(deterministic=True))
    first = {name: array[:1] for name, array in held_out.items()}
    answer = onnx_graph(target)(first)
    contract = replace(contract, example=golden.example(contract, first, answer))
    inputs = {name: example_inputs.to_rest(array) for name, array in first.items()}
    body = {"signature_name": contract.signature, "inputs": inputs}
    (folder / EXAMPLE).write_text(json.dumps(body) + "\n", encoding="utf-8")
    warmup.write(folder / warmup.LOCATION, contract, first if source.fixed_batch else held_out)
    sizes = {"float32": graph.stat().st_size, "int8": target.stat().st_size}
    return Made(
        contract,
        _record(found, version, calibration, demands, sizes),
        found.differences,
        installed(LIBRARIES),
    )


def _record(found: Found, version: int, calibration: Rows, demands: Demands, sizes: dict[str, int]) -> Quantization:
    comparison = found.comparison
    return Quantization(
        version=version,
        method=found.recipe.method,
        calibration=found.recipe.calibration,
        calibration_rows=len(next(iter(calibration.values()))),
        calibration_sha256=_sha256(calibration),
        float_nodes=list(found.recipe.float_nodes),
        figure=comparison.figure,
        rows=comparison.rows,
        float32=comparison.float32,
        int8=comparison.int8,
        difference=comparison.difference,
        interval=list(comparison.interval or ()),
        loss=comparison.loss,
        max_loss=demands.max_loss,
        bytes=sizes,
        rates={
            str(batch): {"float32": rate.float32, "int8": rate.int8, "speed_up": rate.speed_up}
            for batch, rate in found.rates.items()
        },
        processor=processor(),
    )


def installed(libraries: Sequence[str]) -> dict[str, str]:
    """Library -> its version here."""
    return {name: installed_version(name) for name in libraries}


def processor() -> str:
    """The processor's name and those of its instructions that matter for int8."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(line.partition(":")[::2] for line in reversed(lines) if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(named.get("flags", "").split())
    known = [flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if flag in flags]
    return f"{named.get('model name', 'unknown')} ({', '.join(known) or 'no AVX2'})"


def _sha256(rows: Rows) -> str:
    """Over names, types, shapes and values of the arrays."""
    whole = hashlib.sha256()
    for name, array in sorted(rows.items()):
        whole.update(f"{name} {array.dtype} {array.shape}\n".encode())
        if array.dtype == object:
            whole.update(json.dumps(example_inputs.to_rest(array)).encode())
        else:
            whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()

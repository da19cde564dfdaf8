"""The child of `bookserve models quantize --precision float16`, or bfloat16: makes the graph and compares it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from bookserve.export import contracts, data_file, engines, example_inputs, golden, onnx_contract, parity, warmup
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.quantization import bfloat16_graph, float16_graph
from bookserve.export.quantization.int8_version import EXAMPLE, LIBRARIES, installed, processor

_ROWS = 256  # that are compared, at most
_FORMS = {"float16": float16_graph, "bfloat16": bfloat16_graph}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Make the files of the version of `job` in its folder; returns what the manifest needs.

    Where the graph does not become smaller it returns "larger", the bytes of both, alone.

    `job` has "folder", "graph", "contract" (None: read from the graph), "model", "version", "precision" and "data"
    (a file with rows; None: they are drawn at random).

    Raises:
        ExportError: the graph has no such form, the data does not fit, or the answers are further off than the form's
            TOLERANCE.
    """
    folder, graph = Path(job["folder"]), Path(job["graph"])
    source = onnx.load(graph, load_external_data=False)
    contract = contracts.from_json(job["contract"]) if job["contract"] else onnx_contract.read(source, job["model"])
    target = folder / parity.LOCATION
    target.parent.mkdir(exist_ok=True)
    precision, form = job["precision"], _FORMS[job["precision"]]
    form.make(graph, target, contract)
    sizes = {"float32": graph.stat().st_size, precision: target.stat().st_size}
    if sizes[precision] >= sizes["float32"]:
        return {"larger": sizes}
    float32_run, half_run = engines.onnx_graph(graph), engines.onnx_graph(target)
    rows, expected = _rows(job["data"], contract, source, float32_run)
    rounded = half_run if precision == "float16" else engines.onnx_graph(bfloat16_graph.on_cpu(target))
    answer = rounded(rows)
    whose = ("the float32 graph", f"the {precision} graph")
    differences = {
        tensor.name: parity.difference(tensor, expected, answer, whose, form.TOLERANCE) for tensor in contract.outputs
    }
    one = golden.first_row(contract, rows)
    described = replace(contract, example=golden.example(contract, one, half_run(one)))
    body = {"signature_name": contract.signature, "inputs": {k: example_inputs.to_rest(v) for k, v in one.items()}}
    (folder / EXAMPLE).write_text(json.dumps(body) + "\n", encoding="utf-8")
    warmup.write(folder / warmup.LOCATION, contract, rows)
    return {
        "contract": contracts.to_json(described),
        "parity": differences,
        "made_with": installed(LIBRARIES),
        "compared": {
            "version": job["version"],
            "tolerance": form.TOLERANCE,
            "rows": len(next(iter(rows.values()))),
            "drawn": job["data"] is None,
            "bytes": sizes,
            "processor": processor(),
        },
    }


def _rows(
    data: str | None, contract: Contract, graph: onnx.ModelProto, run: engines.Run
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows to compare, and what the float32 graph answers to them."""
    if data is not None:
        given, _ = data_file.read(Path(data), contract, None)
        rows = {name: array[: data_file.fixed_batch(contract) or _ROWS] for name, array in given.items()}
        return rows, _ask(run, rows)
    first: ExportError | None = None
    for drawn in example_inputs.draw(contract, onnx_contract.tables(graph)):
        try:
            return drawn, _ask(run, drawn)
        except ExportError as error:
            first = first or error
    raise ExportError(f"{first}; random inputs do not do for this model: give rows with --data")


def _ask(run: engines.Run, rows: dict[str, Any]) -> dict[str, Any]:
    try:
        return run(rows)
    except Exception as error:  # whatever ONNX Runtime raises on inputs that it does not take
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the graph refuses the rows: {lines[0][:300]}") from error

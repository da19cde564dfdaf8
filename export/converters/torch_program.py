"""Programs of `torch.export` (`.pt2`), converted by torch's own ONNX exporter."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bookserve.export import engines
from bookserve.export.converters.source import ONNX, Converted, Rows, Wishes
from bookserve.export.errors import ExportError

FORMAT = "torch.export"
EXTRA = "convert,torch"


def recognises(path: Path) -> bool:
    """A zip archive that is named .pt2."""
    return path.is_file() and path.suffix.lower() == ".pt2" and zipfile.is_zipfile(path)


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`. The archive is read by torch.export, which may load pickled constants."""
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises what its reader meets
        raise ExportError(f"torch does not load {path}: {str(error).strip().splitlines()[0][:300]}") from error
    import onnx

    from bookserve.export import onnx_contract

    target = folder / ONNX
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        made.save(str(target), external_data=False)
    except Exception as error:  # the same for its exporter
        raise ExportError(f"{path} has no ONNX form: {str(error).strip().splitlines()[0][:300]}") from error
    graph = onnx.load(target)
    contract = onnx_contract.read(graph, wishes.model)
    module: Any = program.module()
    inputs, outputs = ([tensor.name for tensor in side] for side in (contract.inputs, contract.outputs))

    def reference(rows: Rows) -> dict[str, Any]:
        with torch.no_grad():
            answers = module(*(torch.from_numpy(rows[name]) for name in inputs))
        flat = list(_leaves(answers))
        return {name: value.numpy() for name, value in zip(outputs, flat, strict=True)}

    return Converted(
        contract=contract,
        reference=reference,
        graphs={ONNX: engines.onnx_graph(target)},
        tables=onnx_contract.table_sizes(graph),
        made_with=("torch", "onnxscript", "onnx", "onnxruntime"),
    )


def _leaves(value: Any) -> Iterator[Any]:
    """The tensors of nested tuples, lists and dictionaries, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value

"""Programs of `torch.export` (`.pt2`), converted by torch's own ONNX exporter; torch's other files are told apart.

A program is code: it is loaded only where the user trusts whoever made it.
"""

import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bookserve.export import engines
from bookserve.export.contracts import Contract
from bookserve.export.converters.source import ONNX, Converted, Rows, Run, Wishes
from bookserve.export.errors import ExportError

if TYPE_CHECKING:
    import onnx

FORMAT = "torch.export"
EXTRA = "convert,torch"
_SUFFIXES = (".pt2", ".pt", ".pth", ".safetensors")
_COMPILED = "/data/aotinductor/"
_OF_TORCH = ("/data.pkl", "/archive_format")
_HOW = (
    "where the model's class is, run torch.export.save(torch.export.export(model.eval(), (example,), "
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), 'model.pt2'), and add that file"
)
_OPERATION = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_VERSION = re.compile(rb'"torch_version": ?"([^"]{1,40})"')
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def recognises(path: Path) -> bool:
    """A file that is named .pt2, .pt, .pth or .safetensors, or a zip archive as torch writes them."""
    if not path.is_file():
        return False
    return path.suffix.lower() in _SUFFIXES or any(name.endswith(_OF_TORCH) for name in _members(path))


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    _check_kind(path)
    if not wishes.trust:
        raise ExportError(
            f"{path} is a program: torch unpickles parts of it and evaluates expressions in it, so loading it can run "
            "whatever code its maker put into it, with your rights, on this machine. If you made it yourself or trust "
            "who did: --trust"
        )
    program = _load(path)
    functional = _functional(path, program)
    inputs = _inputs(path, program)
    outputs = _output_names(path, program, taken=inputs)
    target = folder / ONNX
    _write_graph(path, functional, inputs, outputs, target)
    import onnx

    from bookserve.export import onnx_contract

    graph = onnx.load(target, load_external_data=False)
    contract = onnx_contract.read(graph, wishes.model)
    return Converted(
        contract=contract,
        reference=_reference(program, outputs),
        graphs={ONNX: _run_of(path, target, graph, contract)},
        tables=onnx_contract.tables(graph),
        notes=_notes(contract),
        made_with=("torch", "onnxscript", "onnx", "onnxruntime"),
    )


def _members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return [f"/{name}" for name in archive.namelist()]


def _check_kind(path: Path) -> None:
    """Raises an ExportError where the file is not a program of torch.export; nothing of it is run."""
    try:
        names = _members(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} is damaged: {error}") from error
    if any(_COMPILED in name for name in names):
        raise ExportError(f"{path} holds machine code that AOTInductor compiled, which cannot be converted: {_HOW}")
    if any("/models/" in name or name == "/serialized_exported_program.json" for name in names):
        return
    if path.suffix.lower() == ".safetensors":
        raise ExportError(f"{path} holds weights alone, and not the network that uses them: {_HOW}")
    if any("/code/" in name for name in names):
        raise ExportError(f"{path} is TorchScript, which is not converted: {_HOW}")
    if path.suffix.lower() == ".pt2":
        raise ExportError(f"{path} is no program of torch.export, or it is damaged: {_HOW}")
    raise ExportError(
        f"{path} is a pickle that torch.save wrote: weights, or a model that only its own Python code can run: {_HOW}"
    )


class _Reasons(logging.Handler):
    """Keeps the errors that `torch.export.load` logs before it raises another one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


def _load(path: Path) -> Any:
    import torch

    reasons, log = _Reasons(), logging.getLogger("torch.export")
    log.addHandler(reasons)
    try:
        with path.open("rb") as stream:  # by its path torch takes no file that is named otherwise than .pt2
            return torch.export.load(stream)
    except Exception as error:  # torch raises what its reader meets
        reason = _reason((reasons.errors or [error])[0])
        if "CUDA" in reason:
            reason += ". It was exported on a GPU: export it on the CPU (model.cpu())"
        raise ExportError(f"{path}{_writer(path)} does not load in torch {torch.__version__}: {reason}") from error
    finally:
        log.removeHandler(reasons)


def _writer(path: Path) -> str:
    """Which torch wrote the file, where it says so."""
    try:
        with zipfile.ZipFile(path) as archive:
            programs = [name for name in archive.namelist() if "models/" in name]
            found = _VERSION.search(archive.read(programs[0])) if programs else None
    except (OSError, zipfile.BadZipFile):
        return ""
    return f", which torch {found[1].decode(errors='replace')} wrote," if found else ""


def _functional(path: Path, program: Any) -> Any:
    """The program without operations that write to tensors.

    Raises:
        ExportError: it answers otherwise each time, where a version has no state.
    """
    training = sorted({node.target.name() for node in program.graph.nodes if _trains(node)})
    if training:
        raise ExportError(
            f"{path} was exported in training mode, where {training[0]} answers otherwise: call model.eval() before "
            "torch.export.export"
        )
    import torch

    try:
        functional = program.run_decompositions({torch.ops.aten.adaptive_avg_pool2d.default: _pooled})
    except Exception as error:  # torch raises what it meets
        raise ExportError(f"{path} has no ONNX form: {_reason(error)}") from error
    changed = sorted(functional.graph_signature.buffers_to_mutate.values())
    if changed:
        raise ExportError(
            f"{path} changes its buffers {', '.join(changed[:3])} at each call, which a served model cannot: make this "
            "state an input and an output of the model"
        )
    return functional


def _pooled(values: Any, size: Any) -> Any:
    """Of adaptive average pooling to one place: where channels are last in memory, torch writes it as a view with
    strides, whose ONNX form is an index into all rows.
    """
    return values.mean((-2, -1), keepdim=True) if list(size) == [1, 1] else NotImplemented


def _trains(node: Any) -> bool:
    """Whether an operation such as dropout is switched to training, where that changes what it gives."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    switched = given.get("train") is True or given.get("training") is True
    return switched and 0 not in (given.get("p"), given.get("dropout"))


def _inputs(path: Path, program: Any) -> list[str]:
    """The names of the input tensors, in the order of the ONNX graph's inputs."""
    arguments = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    names = [argument.name for argument in arguments if not hasattr(argument, "value")]
    if not names:
        raise ExportError(f"{path} takes no tensor: a served model answers to its inputs")
    return names


def _output_names(path: Path, program: Any, taken: list[str]) -> list[str]:
    """Names for the output tensors: keys of dictionaries where there are some, or numbers."""
    arguments = [spec.arg for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    names: list[str] = []
    structure = program.call_spec.out_spec.unflatten(range(len(arguments)))
    for (name, _), argument in zip(_leaves(structure), arguments, strict=True):
        if hasattr(argument, "value"):
            raise ExportError(
                f"{path} returns {argument.value} as '{name or 'output'}', which is no tensor: export a module that "
                "returns tensors alone"
            )
        name = name or "output"
        while name in names or name in taken:
            name += "_out"
        names.append(name)
    return names


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tuples, lists and dictionaries in order, each with its name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name or 'output'}_{number}")
    else:
        yield name, value


def _write_graph(path: Path, program: Any, inputs: list[str], outputs: list[str], target: Path) -> None:
    """The ONNX graph of the program, without the source lines and paths that the exporter writes to each node."""
    import torch
    from onnxscript.ir.passes import common

    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    except Exception as error:  # its exporter raises what it meets
        raise ExportError(f"{path} has no ONNX form: {_reason(error)}") from error
    common.ClearMetadataAndDocStringPass()(made.model)
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        value.metadata_props.clear()
    made.save(str(target))  # the weights of more than 1.5 GB beside it


def _reference(program: Any, outputs: list[str]) -> Run:
    import torch

    module = program.module()
    arguments = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]

    def run(rows: Rows) -> dict[str, Any]:
        flat = [
            argument.value if hasattr(argument, "value") else torch.tensor(rows[argument.name])
            for argument in arguments
        ]
        positional, named = program.call_spec.in_spec.unflatten(flat)
        with torch.no_grad():
            answers = _leaves(module(*positional, **named))
        return {name: value.detach().numpy() for name, (_, value) in zip(outputs, answers, strict=True)}

    return run


def _run_of(path: Path, target: Path, graph: "onnx.ModelProto", contract: Contract) -> Run:
    """The graph in ONNX Runtime, which on CPUs does not round to bfloat16 where torch does."""
    import onnx

    found = {tensor.data_type for tensor in graph.graph.initializer}
    sides = {tensor.dtype for tensor in (*contract.inputs, *contract.outputs)}
    if "bfloat16" in sides or onnx.TensorProto.BFLOAT16 in found:
        raise ExportError(
            f"{path} computes in bfloat16, in which it cannot be compared on a CPU: export it in float32 "
            "(model.float()), then 'bookserve models quantize NAME --precision bfloat16' makes it half as large"
        )
    return engines.onnx_graph(target)


def _notes(contract: Contract) -> tuple[str, ...]:
    fixed = [tensor.shape[0] for tensor in contract.inputs if tensor.shape and tensor.shape[0] is not None]
    if not fixed:
        return ()
    return (
        f"it takes {fixed[0]} rows at a time, no more and no fewer: for any number of them give torch.export.export "
        "dynamic_shapes, such as ({0: torch.export.Dim.DYNAMIC},)",
    )


def _reason(error: BaseException) -> str:
    """What was the matter first, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLOURS.sub("", str(error)).strip()
    if missing := _OPERATION.search(text):
        return f"torch's exporter knows none for the operation {missing[1]}"
    return text.splitlines()[0][:300] if text else type(error).__name__

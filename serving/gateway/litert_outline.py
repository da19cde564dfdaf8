"""The outline of a LiteRT file for `graph_outline.py`: a flatbuffer, of which only what is asked for is read.

Its schema comes with ai-edge-litert (the extra `tflite`), which is asked for no more than that: no engine is started.
"""

import importlib.util
import mmap
import struct
from collections import Counter
from typing import Any, BinaryIO

MAX_OPERATIONS = 100_000  # of a file
MAX_TENSORS = 100  # of the graph's inputs, and of its outputs
_MAX_TEXT = 200  # characters of a name
_MAX_CODES = 1_000  # kinds of operations in the file's table; LiteRT has about 210 of its own
_MAX_RANK = 32
_DAMAGED = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)

KNOWN = importlib.util.find_spec("ai_edge_litert") is not None  # whether the schema is there


def outline(file: BinaryIO) -> dict[str, Any]:
    """What `graph_outline.outline` tells, of all subgraphs: `counts` of the operations, `whole`, `inputs`, `outputs`.

    Raises ValueError where the file is no whole LiteRT file.
    """
    from ai_edge_litert import schema_py_generated as schema

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[4:8] != b"TFL3":
            raise ValueError("it is no LiteRT file")
        try:
            return _outline(schema, schema.Model.GetRootAs(content, 0))
        except _DAMAGED as error:
            raise ValueError("the file is damaged") from error


def _outline(schema: Any, model: Any) -> dict[str, Any]:
    if model.OperatorCodesLength() > _MAX_CODES or not model.SubgraphsLength():
        raise ValueError("the file has too many kinds of operations, or no graph")
    kinds = [_kind(schema, model.OperatorCodes(place)) for place in range(model.OperatorCodesLength())]
    counts: Counter[str] = Counter()
    whole = True
    for place in range(min(model.SubgraphsLength(), MAX_OPERATIONS)):
        graph = model.Subgraphs(place)
        length = min(graph.OperatorsLength(), MAX_OPERATIONS - counts.total())
        counts.update(kinds[graph.Operators(number).OpcodeIndex()] for number in range(length))
        whole = whole and length == graph.OperatorsLength()
    main = model.Subgraphs(0)
    types = {number: name.lower() for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
    ends = ((main.InputsLength(), main.Inputs), (main.OutputsLength(), main.Outputs))
    inputs, outputs = (
        [_tensor(types, main.Tensors(at(number))) for number in range(min(length, MAX_TENSORS))] for length, at in ends
    )
    return {"counts": counts, "whole": whole, "inputs": inputs, "outputs": outputs}


def _kind(schema: Any, code: Any) -> str:
    """LiteRT's name of an operation ("CONV_2D"), or that of a custom one."""
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # older files have the second alone
    if number == schema.BuiltinOperator.CUSTOM and code.CustomCode() is not None:
        return str(code.CustomCode()[:_MAX_TEXT].decode("utf-8", "replace"))
    named = (name for name, value in vars(schema.BuiltinOperator).items() if value == number and name[0] != "_")
    return next(named, str(number))


def _tensor(types: dict[int, str], tensor: Any) -> dict[str, Any]:
    """A tensor with `shape`, where null stands for any size, and null altogether for any rank."""
    free = tensor.ShapeSignatureLength() > 0
    rank = tensor.ShapeSignatureLength() if free else tensor.ShapeLength()
    if rank > _MAX_RANK:
        raise ValueError("a tensor has too many dimensions")
    sizes = [tensor.ShapeSignature(axis) if free else tensor.Shape(axis) for axis in range(rank)]
    known = rank > 0 or tensor.HasRank()
    name = (tensor.Name() or b"")[:_MAX_TEXT].decode("utf-8", "replace")
    shape = [None if size < 0 else size for size in sizes] if known else None
    return {"name": name, "dtype": types.get(tensor.Type(), ""), "shape": shape}

"""The operations of a LiteRT file, read from its flatbuffer without running it."""

import struct
from collections.abc import Iterator
from pathlib import Path

from bookserve.export.errors import StoreError
from bookserve.serving.wire import missing_package


def read(path: Path) -> Iterator[str]:
    """The name of each operation, in all subgraphs: LiteRT's own ("CONV_2D"), or that of a custom one.

    Raises:
        StoreError: the file is damaged, or the library that knows its format is missing.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError as error:
        raise StoreError(f"{path} is read with {missing_package.told(error, 'tflite')}") from error
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise StoreError(f"{path} cannot be read: it is no LiteRT file")
    try:
        model = schema.Model.GetRootAs(content, 0)
        codes = [model.OperatorCodes(place) for place in range(model.OperatorCodesLength())]
        for place in range(model.SubgraphsLength()):
            graph = model.Subgraphs(place)
            for number in range(graph.OperatorsLength()):
                code = codes[graph.Operators(number).OpcodeIndex()]
                builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # older files have the second alone
                custom = code.CustomCode() if builtin == schema.BuiltinOperator.CUSTOM else None
                yield names.get(builtin, str(builtin)) if custom is None else custom.decode("utf-8", "replace")
    except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: it is damaged ({error})") from error

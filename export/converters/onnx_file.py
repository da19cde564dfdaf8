"""ONNX files, with their external data: checked, and copied into the version with the data inside where that fits.

The dictionaries in which scikit-learn's converters answer probabilities become tables, as the server makes them.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import column_values, engines
from bookserve.export.converters.source import ONNX, Converted, Wishes
from bookserve.export.errors import ExportError
from bookserve.serving.wire import text_locale, zip_map

FORMAT = "ONNX"
EXTRA = "convert"
_LARGEST = 2_000_000_000  # bytes of a protobuf message; the data of a larger model stays outside


def recognises(path: Path) -> bool:
    """A file whose name ends with .onnx."""
    return path.is_file() and path.suffix.lower() == ".onnx"


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import onnx

    from bookserve.export import onnx_contract

    target = folder / ONNX
    try:
        graph = onnx.load(path, load_external_data=False)
        outside = _outside(graph, path)
        onnx.load_external_data_for_model(graph, str(path.parent))
    except ExportError:
        raise
    except Exception as error:  # protobuf's errors and onnx's own share no base class
        raise ExportError(f"{path} is no ONNX file that can be read: {str(error).splitlines()[0][:300]}") from error
    if not graph.graph.output:
        raise ExportError(f"{path} is no ONNX file that can be read: it has no outputs")
    message: Any = graph  # onnx's own class of the message that the server knows a part of
    classes, other_language = zip_map.replace(message), text_locale.replace(message)
    if outside and graph.ByteSize() > _LARGEST:
        onnx.save(graph, target, save_as_external_data=True, location="model.onnx.data")
    elif outside or classes or other_language:
        onnx.save(graph, target)
    else:
        shutil.copyfile(path, target)
    run = engines.onnx_graph(target)
    return Converted(
        contract=onnx_contract.read(graph, wishes.model),
        reference=run if other_language else _with_tables(engines.onnx_graph(path), classes),  # here it does not load
        graphs={ONNX: run},
        tables=onnx_contract.tables(graph),
        columns=column_values.of(graph),
        made_with=("onnx", "onnxruntime"),
    )


def _with_tables(run: engines.Run, classes: Mapping[str, Sequence[str]]) -> engines.Run:
    """The same with a table, [rows, classes], in the place of a dictionary for each row."""

    def run_to_tables(rows: engines.Rows) -> dict[str, Any]:
        answers = run(rows)
        for name, labels in classes.items():
            dictionaries = [{str(label): value for label, value in one.items()} for one in answers[name]]
            table = [[one[label] for label in labels] for one in dictionaries]
            answers[name] = np.array(table, np.float32).reshape(-1, len(labels))
        return answers

    return run_to_tables


def _outside(graph: "onnx.ModelProto", path: Path) -> list[str]:  # type: ignore[name-defined]  # noqa: F821
    """The files of external data, which must lie beside the graph or below."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    names = []
    for tensor in graph.graph.initializer:
        if uses_external_data(tensor):
            name = ExternalDataInfo(tensor).location
            file = (path.parent / name).resolve()
            if not file.is_relative_to(path.parent.resolve()):
                raise ExportError(f"{path} names the external data {name}, which is outside of its folder")
            if not file.is_file():
                raise ExportError(f"{path} needs the external data {name}, which is not in {path.parent}")
            names.append(name)
    return names

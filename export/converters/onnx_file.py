"""ONNX files, with their external data: checked, and copied into the version with the data inside where that fits."""

import shutil
from pathlib import Path

from bookserve.export import column_values, engines
from bookserve.export.converters.source import ONNX, Converted, Wishes
from bookserve.export.errors import ExportError

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
    if outside and graph.ByteSize() > _LARGEST:
        onnx.save(graph, target, save_as_external_data=True, location="model.onnx.data")
    elif outside:
        onnx.save(graph, target)
    else:
        shutil.copyfile(path, target)
    return Converted(
        contract=onnx_contract.read(graph, wishes.model),
        reference=engines.onnx_graph(path),
        graphs={ONNX: engines.onnx_graph(target)},
        tables=onnx_contract.table_sizes(graph),
        columns=column_values.of(graph),
        made_with=("onnx", "onnxruntime"),
    )


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

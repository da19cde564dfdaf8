"""What an ONNX graph says of itself: who made it, and what of the contract whoever has the file alone needs.

The number of the version is not among it: a run that is exported again gives the same bytes, whatever number is next.
"""

import json
from importlib.metadata import version as installed_version

import onnx

from bookserve.export.contracts import Contract

_PRODUCER = "bookserve"


def write(graph: onnx.ModelProto, contract: Contract, precision: str = "float32") -> None:
    """Set producer, model version (that of the contract) and `metadata_props` of a graph that was made here.

    The properties are "model", "contract" ("digits/1"), "task", "precision", "labels" (a JSON list, where there are
    some) and "converter", the program that made the graph before.
    """
    converter = f"{graph.producer_name} {graph.producer_version.split(' ')[0]}".strip()
    before = {entry.key: entry.value for entry in graph.metadata_props}
    told = {
        "model": contract.model,
        "contract": contract.id,
        "task": contract.task,
        "precision": precision,
        "converter": converter if graph.producer_name != _PRODUCER else before.get("converter", ""),
    }
    if contract.labels:
        told["labels"] = json.dumps(list(contract.labels), ensure_ascii=False)
    graph.producer_name, graph.producer_version = _PRODUCER, installed_version(_PRODUCER)
    graph.model_version = contract.version
    graph.graph.name = contract.model
    onnx.helper.set_model_props(graph, {**before, **{name: value for name, value in told.items() if value}})

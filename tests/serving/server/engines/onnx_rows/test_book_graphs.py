"""The graphs of the book's seven models, with untrained networks: their rows are proved to be independent."""

import importlib
from pathlib import Path

import pytest

from book_contracts import CONTRACTS
from bookserve.export import onnx_graph
from bookserve.export.savedmodel import ServingModule
from bookserve.serving.server.engines.onnx_rows import graph, walk
from bookserve.training.models import MODELS
from bookserve.training.run import ConfiguredModel

_QUICK = ("linear", "logistic", "mnist", "ptb")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "model", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_graphs_of_the_book_are_proved(tmp_path: Path, model: str) -> None:
    module = importlib.import_module(MODELS[model])
    for configuration, profiles in module.CONFIGS.items():
        network, contract = module.serving_model(module.build_model(profiles["smoke"])), CONTRACTS[model]
        if isinstance(module, ConfiguredModel):
            contract = module.contract_of(profiles["smoke"], contract)
        path = tmp_path / f"{configuration}.onnx"
        onnx_graph.convert(ServingModule(network, contract, ()), contract, path)
        assert walk.read(graph.read(path)).doubt == "", configuration

"""One module a model of the book, each with the same skeleton; one of many parts is the `model.py` of a folder.

`CONTRACT` (what a version takes and gives), `Config` and `CONFIGS` (the numbers), `load_data`, `build_model`, `train`,
`evaluate`, `measurement` (what judges a served graph alone, such as an int8 one), and `serving_model`, which wraps the
trained network so that it takes and gives exactly the tensors of the contract.
"""

import importlib
from dataclasses import dataclass

from bookserve.export.contracts import Contract

MODELS: dict[str, str] = {
    "linear": "bookserve.training.models.linear",
    "logistic": "bookserve.training.models.logistic",
    "tox21": "bookserve.training.models.tox21.model",
    "mnist": "bookserve.training.models.mnist",
    "ptb": "bookserve.training.models.ptb.model",
    "cifar10": "bookserve.training.models.cifar10.model",
    "tictactoe": "bookserve.training.models.tictactoe.model",
}
"""Model -> its module, in the order in which `train-all` trains them. Modules are imported only when they run."""

PROFILES: tuple[str, ...] = ("smoke", "default", "full")
"""smoke proves the road in seconds, default is a good model in minutes, full aims for the README's figures."""

STANDARD = "standard"
"""The configuration that every model has and that trains unless another one is named."""


@dataclass(frozen=True)
class KeyMetric:
    """The metric by which a model is judged: `name` is one of the test split, `book` the book's value if it has one."""

    name: str
    book: float | None


def contract(model: str) -> Contract:
    """The contract that runs of `model` are trained for; imports the model's module. KeyError for an unknown model."""
    found: Contract = importlib.import_module(MODELS[model]).CONTRACT
    return found

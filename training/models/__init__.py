"""One module a model of the book, each with the same skeleton; one of many parts is the `model.py` of a folder.

`CONTRACT` (what a version takes and gives), `Config` and `CONFIGS` (the numbers), `load_data`, `build_model`, `train`,
`evaluate`, `measurement` (what judges a served graph alone, such as an int8 one), and `serving_model`, which wraps the
trained network so that it takes and gives exactly the tensors of the contract.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

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

OWN_DATA: dict[str, str] = {
    "linear": "points",
    "logistic": "points",
    "tox21": "molecules",
    "mnist": "pictures",
    "ptb": "text",
    "cifar10": "pictures",
}
"""Model -> the kind of a user's own data that its network learns from; the others learn from no data."""

PROFILES: tuple[str, ...] = ("smoke", "default", "full")
"""smoke proves the road in seconds, default is a good model in minutes, full aims for the README's figures."""

STANDARD = "standard"
"""The configuration that every model has and that trains unless another one is named."""


@dataclass(frozen=True)
class KeyMetric:
    """The metric by which a model is judged: `name` is one of the test split, `book` the book's value if it has one.

    `exact` names the same metric of the test rows that are the data set's own, where the test file at hand is not the
    official one: it is shown first then.
    """

    name: str
    book: float | None
    exact: str = ""


def names_book_data(model: str, data_dir: Path) -> bool:
    """Whether a file of the book's data set lies in a folder, so that the folder is not a user's own data."""
    found: bool = importlib.import_module(MODELS[model]).DATA_SET.named_in(data_dir)
    return found


def contract(model: str) -> Contract:
    """The contract that runs of `model` are trained for; imports the model's module. KeyError for an unknown model."""
    found: Contract = importlib.import_module(MODELS[model]).CONTRACT
    return found

"""One module a model of the book, each with the same skeleton.

`Config` and `CONFIGS` (the numbers), `load_data`, `build_model`, `train`, `evaluate`, and `serving_model`, which wraps
the trained network so that it takes and gives exactly the tensors of the model's contract.
"""

MODELS: dict[str, str] = {
    "linear": "bookserve.training.models.linear",
    "logistic": "bookserve.training.models.logistic",
    "tox21": "bookserve.training.models.tox21",
    "mnist": "bookserve.training.models.mnist",
    "ptb": "bookserve.training.models.ptb",
    "cifar10": "bookserve.training.models.cifar10",
    "tictactoe": "bookserve.training.models.tictactoe",
}
"""Model -> its module, in the order in which `train-all` trains them. Modules are imported only when they run."""

PROFILES: tuple[str, ...] = ("smoke", "default", "full")
"""smoke proves the road in seconds, default is a good model in minutes, full aims for the headline figures."""

STANDARD = "standard"
"""The configuration that every model has and that trains unless another one is named."""

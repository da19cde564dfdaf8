"""How a configuration made for tens of thousands of rows trains on a user's few: smaller steps, and enough of them."""

import dataclasses
import math
from typing import Any, ClassVar, Protocol, TypeVar

LEAST_STEPS = 300  # of a training
MOST_EPOCHS = 100  # that a training is stretched to
LEAST_BATCH = 16  # rows; batch normalisation gets nowhere with fewer
EPOCH_STEPS = 8  # at least, of an epoch


class Trained(Protocol):
    """A `Config` of a network that is trained in batches."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def epochs(self) -> int:
        """Passes over the rows."""

    @property
    def batch(self) -> int:
        """Rows a step."""


C = TypeVar("C", bound=Trained)


def for_rows(config: C, rows: int) -> C:
    """The same configuration for a training of `rows` rows: what has enough of them is left as it is.

    The batch is at most an eighth of the rows, but not below 16 if there are as many, and there are as many epochs as
    300 steps need, at most 100.
    """
    batch = max(1, min(config.batch, max(rows // EPOCH_STEPS, LEAST_BATCH), rows))
    epochs = max(config.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / (rows // batch))))
    return dataclasses.replace(config, batch=batch, epochs=epochs)

"""What an int8 graph must keep to be published."""

from dataclasses import dataclass

METHODS = ("auto", "static", "dynamic")


@dataclass(frozen=True)
class Demands:
    """How an int8 graph is made, and what it must keep.

    `method` is one of METHODS. `max_loss` is a fraction of the float graph's figure, `min_speed_up` the least geometric
    mean over the batches.
    """

    method: str = METHODS[0]
    max_loss: float = 0.002
    min_speed_up: float = 1.1

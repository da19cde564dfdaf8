"""What a model server tells: predictions, signatures, the states of versions. The same over gRPC and REST."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """One answer to a Predict call: `outputs` by name, and the version of the model that answered."""

    model: str
    version: int
    outputs: dict[str, Array]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a signature.

    `dtype` is numpy's name of the type ("object" for strings), or TensorFlow's ("DT_VARIANT") where numpy has none.
    `shape` has None for free dimensions and is None itself when even the rank is free.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of one signature of a model."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version of a model."""

    model: str
    version: int
    signatures: dict[str, Signature]


@dataclass(frozen=True)
class VersionStatus:
    """One version as the model server sees it; `error` is empty unless it failed to load.

    `state` is START, LOADING, AVAILABLE, UNLOADING or END.
    """

    version: int
    state: str
    error: str


def joined(predictions: Sequence[Prediction]) -> Prediction:
    """The rows of predictions of one version below each other."""
    first = predictions[0]
    if len(predictions) == 1:
        return first
    rows = {name: np.concatenate([one.outputs[name] for one in predictions]) for name in first.outputs}
    return Prediction(first.model, first.version, rows)


def columns(answer: Mapping[str, Any]) -> dict[str, Array]:
    """The predictions of a gateway's answer as arrays, one row a prediction: numbers as float64, class names as str.

    {label: number} becomes a row of the numbers in the order of the labels. ValueError where predictions differ in
    shape, as texts with different words do.
    """
    rows = answer["predictions"]
    return {
        name: np.array([list(row[name].values()) if isinstance(row[name], Mapping) else row[name] for row in rows])
        for name in (rows[0] if rows else {})
    }


def shape_text(array: Array) -> str:
    """A short text such as "uint8 [1,28,28]" for messages."""
    return f"{np.dtype(array.dtype).name} [{','.join(str(size) for size in array.shape)}]"

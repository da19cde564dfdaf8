"""Molecules that are none: rows of features in which the fingerprint says everything."""

import numpy as np
import numpy.typing as npt

from bookserve.clients.inputs import molecules
from bookserve.training.datasets.molecule_features import NAMES, Features
from bookserve.training.datasets.tox21 import Split


def features(bits: npt.NDArray[np.uint8], readable: npt.NDArray[np.bool_] | None = None) -> Features:
    """Each bit that is set is counted once; descriptors are small random numbers, and one of them is constant."""
    rows = len(bits)
    counts = np.zeros((rows, 2 * molecules.BITS + molecules.KEYS), np.uint8)
    counts[:, : molecules.BITS] = bits
    values = np.random.default_rng(rows).normal(size=(rows, len(NAMES))).astype(np.float32)
    values[:, 0] = 7.0
    return Features(bits, counts, values, np.ones(rows, bool) if readable is None else readable)


def split(bits: npt.NDArray[np.uint8], results: npt.NDArray[np.float32]) -> Split:
    """The rows of a split."""
    return Split(features(bits).inputs(slice(None)), results)

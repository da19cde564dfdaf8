"""Inputs of the types of a signature: what a caller has as lists becomes the arrays that the model takes."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from bookserve.clients.answers import Array, ModelMetadata, Signature
from bookserve.clients.errors import InvalidArgument
from bookserve.export import example_inputs


def are_arrays(inputs: Mapping[str, Any]) -> TypeGuard[Mapping[str, Array]]:
    """Whether nothing has to be turned into an array."""
    return all(isinstance(value, np.ndarray) for value in inputs.values())


def signature_of(metadata: ModelMetadata, name: str) -> Signature:
    """The signature of that name. Raises InvalidArgument, which lists the names that there are."""
    if name not in metadata.signatures:
        known = ", ".join(sorted(metadata.signatures))
        raise InvalidArgument(f"model {metadata.model!r} has no signature {name!r}; it has: {known}")
    return metadata.signatures[name]


def arrays(metadata: ModelMetadata, signature: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Each value as an array of the type in the signature. Arrays stay as they are: their type was chosen.

    Raises InvalidArgument for an input or a signature that the model does not have, and for a value that does not fit.
    """
    known = signature_of(metadata, signature).inputs
    made: dict[str, Array] = {}
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            made[name] = value
            continue
        if name not in known:
            raise InvalidArgument(f"model {metadata.model!r} has no input {name!r}; it has: {', '.join(sorted(known))}")
        try:
            made[name] = example_inputs.as_array(value, known[name].dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidArgument(
                f"input {name!r} of model {metadata.model!r} takes {known[name].dtype}: {error}"
            ) from error
    return made

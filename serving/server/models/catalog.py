"""What the handlers of requests ask of the models, and the words that tell them what is not there.

`ModelManager` answers it in the process that decides about the models, `WorkerCatalog` in those that answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.types.errors import ServingError, invalid_argument, not_found
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelVersionStatus

Version = TypeVar("Version")


@dataclass(frozen=True)
class VersionSnapshot:
    """One version at one moment. What does not apply to it, or is told in another row, is None."""

    model: str
    version: int
    state: ModelVersionStatus.State | None = None
    in_flight: int | None = None  # requests that have been accepted and not yet answered
    queued: int | None = None  # of these, the ones that wait for a batch


class Catalog(Protocol):
    """The models of the server."""

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The version that a request names: by number, by label, or the latest available one.

        Raises ServingError: INVALID_ARGUMENT without a name or for an unknown label, NOT_FOUND where nothing is loaded.
        """
        ...

    def status(self, name: str, version: int | None = None) -> list[ModelVersionStatus]:
        """The states of all versions of a model, highest first, or of one version.

        Raises ServingError: INVALID_ARGUMENT without a name, NOT_FOUND for an unknown model or version.
        """
        ...

    def overview(self) -> dict[str, tuple[Mapping[str, int], list[ModelVersionStatus]]]:
        """The labels and the versions, highest first, of every configured model, by its name."""
        ...

    def snapshot(self) -> list[VersionSnapshot]:
        """The versions in this process at this moment; of one version there may be several rows, which add up."""
        ...

    @property
    def names(self) -> list[str]:
        """The configured models."""
        ...

    @property
    def removed(self) -> list[str]:
        """The models that were configured and no longer are, as far as they are remembered."""
        ...

    @property
    def ready(self) -> bool:
        """Whether every model serves a version; below --model_root: or has tried all that it has."""
        ...


@dataclass(frozen=True)
class ModelState:
    """What one process tells another of a model; loaded versions are named by keys that both of them know."""

    setting: ModelSetting
    labels: Mapping[str, int]  # as they are now
    latest: int | None
    available: Mapping[int, int]  # version -> key
    versions: bytes  # a GetModelStatusResponse, highest version first


@dataclass(frozen=True)
class State:
    """The same of all models."""

    models: Mapping[str, ModelState]
    removed: Mapping[str, bytes]  # model -> its last GetModelStatusResponse
    ready: bool


def nameless() -> ServingError:
    """The answer to a request that names no model."""
    return invalid_argument("ModelSpec has no name specified.")


def number_of(labels: Mapping[str, int], label: str) -> int:
    """The version that a label stands for. Raises ServingError (INVALID_ARGUMENT) for an unknown one."""
    number = labels.get(label)
    if number is None:
        raise invalid_argument(f"Unrecognized servable version label: {label}")
    return number


def not_served(name: str, version: int | None) -> ServingError:
    """The answer to a request for what is not loaded; None is the latest version."""
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return not_found(f"Servable not found for request: {wanted}")


def statuses(
    name: str, versions: Mapping[int, Version], number: int | None, show: Callable[[Version], ModelVersionStatus]
) -> list[ModelVersionStatus]:
    """The answer of `Catalog.status`, of all `versions` of the model that are known."""
    if not name:
        raise nameless()
    if number is not None:
        if number not in versions:
            raise not_found(f"Could not find version {number} of model {name}")
        return [show(versions[number])]
    if not versions:
        raise not_found(f"Could not find any versions of model {name}")
    return [show(versions[known]) for known in sorted(versions, reverse=True)]

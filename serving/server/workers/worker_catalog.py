"""The models in a worker: loaded and unloaded as the main process says, and found as its manager finds them."""

import asyncio
from collections.abc import Awaitable, Mapping
from pathlib import Path

from bookserve.serving.server.models.catalog import State, VersionSnapshot, nameless, not_served, number_of, statuses
from bookserve.serving.server.models.loader import InProcessLoader
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.wire.tensorflow_serving_pb2 import GetModelStatusResponse, ModelVersionStatus


class WorkerCatalog:
    """All models of the server, in a worker. Loaded versions go by the keys of the main process."""

    def __init__(self, loader: InProcessLoader) -> None:
        self._loader = loader
        self._loop = asyncio.get_running_loop()
        self._loads: dict[int, asyncio.Task[Servable]] = {}
        self._loaded: dict[int, Servable] = {}
        self._state = State({}, {}, ready=False)
        self._versions: dict[str, dict[int, ModelVersionStatus]] = {}  # of every model, highest first

    # As the main process says

    def follow(self, state: State) -> None:
        """From now on requests find what `state` says."""
        packed = {**state.removed, **{name: model.versions for name, model in state.models.items()}}
        self._versions = {
            name: {status.version: status for status in GetModelStatusResponse.FromString(data).model_version_status}
            for name, data in packed.items()
        }
        self._state = state

    def load(self, key: int, name: str, version: int, path: Path) -> Awaitable[None]:
        """Loads a version, which requests then find as soon as the state names it. Raises as Loader.load."""
        self._loads[key] = self._loop.create_task(self._loader.load(name, version, path))
        return self._finish_load(key)

    async def _finish_load(self, key: int) -> None:
        servable = await self._loads[key]
        if key in self._loads:
            self._loaded[key] = servable

    async def unload(self, key: int) -> None:
        """Waits until a version is loaded and until the requests under way for it are answered, then unloads it.

        Does nothing where the version did not load.
        """
        load = self._loads.pop(key)
        self._loaded.pop(key, None)
        try:
            servable = await load
        except Exception:
            return  # told to whoever asked for the load
        await self._loader.unload(servable)

    # Requests

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """See Catalog.find."""
        if not name:
            raise nameless()
        model = self._state.models.get(name)
        if label is not None:
            version = number_of(model.labels if model is not None else {}, label)
        key = None
        if model is not None:
            key = model.latest if version is None else model.available.get(version)
        servable = self._loaded.get(key) if key is not None else None
        if servable is None:
            raise not_served(name, version)
        return servable

    def status(self, name: str, version: int | None = None) -> list[ModelVersionStatus]:
        """See Catalog.status."""
        return statuses(name, self._versions.get(name, {}), version, lambda status: status)

    def overview(self) -> dict[str, tuple[Mapping[str, int], list[ModelVersionStatus]]]:
        """See Catalog.overview."""
        return {
            name: (model.labels, list(self._versions[name].values()))
            for name, model in sorted(self._state.models.items())
        }

    def snapshot(self) -> list[VersionSnapshot]:
        """See Catalog.snapshot."""
        told = [
            VersionSnapshot(name, number, status.state)
            for name in self._state.models
            for number, status in self._versions[name].items()
        ]
        return told + [
            VersionSnapshot(servable.model, servable.version, in_flight=servable.in_flight, queued=servable.queued)
            for servable in self._loaded.values()
        ]

    @property
    def names(self) -> list[str]:
        """See Catalog.names."""
        return sorted(self._state.models)

    @property
    def removed(self) -> list[str]:
        """See Catalog.removed."""
        return sorted(self._state.removed.keys() - self._state.models.keys())

    @property
    def ready(self) -> bool:
        """See Catalog.ready."""
        return self._state.ready

"""The models below one address of a bucket: `--model_root` there, with its `models.config`."""

import asyncio
from dataclasses import replace

from bookserve.serving.server.models import config
from bookserve.serving.server.models.buckets.source import Buckets
from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire.bucket import BucketAddress, BucketError, BucketNotFound, Object

_CONFIG = "models.config"
_MAX_CONFIG_BYTES = 4 << 20


class BucketRoot:
    """Every model there, as `config.discover` finds them in a folder."""

    def __init__(self, buckets: Buckets, address: BucketAddress) -> None:
        self._buckets = buckets
        self._address = address
        self._models: set[str] = set()  # folders that had versions when they came
        self._config: Object | None = None  # as it was read last
        self._configured: dict[str, ModelSetting] = {}

    async def settings(self) -> list[ModelSetting]:
        """The models that are there now, with their entries of the config file if any.

        Raises ServingError (INVALID_ARGUMENT) where the bucket cannot be listed or the config file is malformed.
        """
        try:
            names, objects = await self._buckets.listing(self._address).names()
            await self._read_config(next((item for item in objects if item.name == _CONFIG), None))
            candidates = [name for name in names if not name.startswith(".") and name not in self._models]
            with_versions = await asyncio.gather(*(self._has_versions(name) for name in candidates))
        except BucketError as error:
            raise invalid_argument(f"--model_root={self._address} cannot be listed: {error}") from error
        self._models &= {*names}
        self._models |= {name for name, has in zip(candidates, with_versions, strict=True) if has}
        found = []
        for name in sorted(self._models):
            place = self._address / name
            found.append(replace(self._configured.get(name, ModelSetting(name, place)), base_path=place))
        return found

    async def _has_versions(self, name: str) -> bool:
        try:
            return bool(await self._buckets.versions(self._address / name))
        except BucketNotFound:
            return False

    async def _read_config(self, item: Object | None) -> None:
        """Raises BucketError, ServingError."""
        if item == self._config:
            return
        configured = {}
        if item is not None:
            folder = self._buckets.listing(self._address).folder
            text = await asyncio.to_thread(folder.read, _CONFIG, _MAX_CONFIG_BYTES)
            settings = config.from_text((text or b"").decode("utf-8", "replace"), self._address / _CONFIG)
            configured = {setting.name: setting for setting in settings}
        self._config, self._configured = item, configured

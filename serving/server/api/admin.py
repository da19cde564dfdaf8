"""Changing the served models at run time: who may, what is accepted, and what then happens.

The one core of HandleReloadConfigRequest, `ModelAdminService` and the REST form of it. A request that is refused
changes nothing.
"""

import asyncio
import hmac
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bookserve.serving.server.models import config as model_config
from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.models.manager import ModelManager, unavailable
from bookserve.serving.server.models.version_policy import BasePath
from bookserve.serving.server.transport.grpc_call import GrpcCall
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import ServingError, invalid_argument, not_found
from bookserve.serving.wire import bucket, hosts, tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.bucket import BucketAddress, BucketError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_MAX_PATH = 4096


class Access:
    """Who may change models: whoever knows the token; without a token only this machine."""

    def __init__(self, token_file: str, bind_address: str = "", allowed_hosts: str = "") -> None:
        """Reads the token; an empty name means that there is none. Raises ServingError (INVALID_ARGUMENT).

        Without a token callers must name loopback, `bind_address` or one of the `allowed_hosts` as their Host.
        """
        self._bound = bind_address
        self._hosts = hosts.listed(allowed_hosts)
        self._expected: bytes | None = None
        if token_file:
            try:
                token = Path(token_file).read_bytes().strip()
            except OSError as error:
                raise invalid_argument(f"--admin_token_file={token_file} cannot be read: {error.strerror}") from error
            if not token:
                raise invalid_argument(f"--admin_token_file={token_file} is empty")
            self._expected = b"Bearer " + token

    def check_http(self, exchange: HttpExchange) -> None:
        """Raises ServingError (PERMISSION_DENIED) for a REST request whose caller may not change models."""
        headers = exchange.headers
        browser = "origin" in headers or "sec-fetch-site" in headers
        self.check(exchange.peer, headers.get("host", ""), headers.get("authorization", "").encode(), browser=browser)

    def check_grpc(self, call: GrpcCall) -> None:
        """Raises ServingError (PERMISSION_DENIED) for a gRPC call whose caller may not change models."""
        self.check(call.peer, call.host, call.authorization)

    def check(self, peer: str, host: str, authorization: bytes, *, browser: bool = False) -> None:
        """Raises ServingError (PERMISSION_DENIED) for a caller who may not change models.

        `peer` is the caller's address, "" on a UNIX socket, which no web page reaches; `host` is the server's name as
        the caller wrote it, `authorization` the metadata or header of that name, and `browser` whether a web page sent
        the request: pages of elsewhere reach loopback, too.
        """
        if self._expected is not None:
            if not hmac.compare_digest(authorization, self._expected):
                raise _denied("this needs 'authorization: Bearer TOKEN' with the token of --admin_token_file")
        elif browser:
            raise _denied("a web page may not change models without a token: start with --admin_token_file")
        elif not is_local(peer):
            raise _denied("this is for callers on this machine only: start with --admin_token_file to allow others")
        elif peer and not hosts.is_expected(host, self._bound, self._hosts):
            raise _denied(f"the Host {host[:255]!r} is not expected here: use localhost, or name it in --allowed_hosts")


def is_local(peer: str) -> bool:
    """Whether an address is loopback, or "" for a UNIX socket."""
    if not peer:
        return True
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def default_roots(settings: Iterable[ModelSetting], model_root: str) -> list[BasePath]:
    """Where added models may lie when nobody says: beside those of the start, and below --model_root."""
    roots = {model_config.base_path(model_root)} if model_root else set()
    for setting in settings:
        parent = setting.base_path.parent
        whole = parent == parent.parent  # file system, or bucket: never that
        roots.add(setting.base_path if whole else parent)
    return sorted(roots, key=str)


class Admin(Protocol):
    """Changes the models. What is changed is so for every request that comes after the answer."""

    async def config(self) -> messages.ModelServerConfig:
        """The models as they are configured now."""
        ...

    async def reload(self, config: messages.ModelServerConfig) -> None:
        """Makes these the models; returns when the new ones are available.

        Raises ServingError: as TensorFlow Serving for a config that is refused, PERMISSION_DENIED for a base path
        outside of the roots, UNKNOWN where a new model did not become available (it stays configured).
        """
        ...

    async def add_or_replace(self, model: messages.ModelConfig) -> None:
        """Adds a model, or replaces its settings; returns when it is available. Raises as `reload`."""
        ...

    async def remove(self, name: str) -> None:
        """Stops serving a model. Raises ServingError (NOT_FOUND) when there is none of that name."""
        ...

    async def load(self, name: str) -> None:
        """Serves what the model's folder holds now; returns when that is available.

        A configured model is looked at again, and one that serves nothing is tried again. Of others the settings are
        those that they were removed with, or of their folder inside the roots. Raises as `reload`, and NOT_FOUND when
        there is none.
        """
        ...


async def _at_once() -> None:
    """Where one process answers all requests."""


class ModelAdmin:
    """The `Admin` of a manager, within `roots`, and with request logs within `log_roots`."""

    def __init__(
        self,
        manager: ModelManager[Any],
        roots: Sequence[BasePath],
        log_roots: Iterable[Path] = (),
        until_known: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """`until_known` waits until every process knows what the manager has changed."""
        self._manager = manager
        self._roots = roots
        self._log_roots = list(log_roots)
        self._until_known = until_known

    async def config(self) -> messages.ModelServerConfig:
        """See Admin.config."""
        return model_config.to_message(self._manager.settings)

    async def reload(self, config: messages.ModelServerConfig) -> None:
        """See Admin.reload."""
        if config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported"
            )
        for model in config.model_config_list.config:
            self._check(model)
        settings = model_config.from_message(config, self._manager.names)
        self._manager.check_labels(settings)
        await self._apply(settings)

    async def add_or_replace(self, model: messages.ModelConfig) -> None:
        """See Admin.add_or_replace."""
        self._check(model)
        (setting,) = model_config.from_message(
            messages.ModelServerConfig(model_config_list=messages.ModelConfigList(config=[model])), self._manager.names
        )
        self._manager.check_labels([setting])
        others = {other.name: other for other in self._manager.settings}
        await self._apply(list((others | {setting.name: setting}).values()))

    async def remove(self, name: str) -> None:
        """See Admin.remove."""
        settings = self._manager.settings
        left = [setting for setting in settings if setting.name != name]
        if len(left) == len(settings):
            raise not_found(f"no model '{name[:255]}' is configured")
        await self._manager.apply(left)
        await self._until_known()

    async def load(self, name: str) -> None:
        """See Admin.load."""
        _check_name(name)
        settings = self._manager.settings
        if all(setting.name != name for setting in settings):
            setting = self._manager.removed_setting(name)
            if setting is None:
                setting = await asyncio.to_thread(self._find, name)
            self._check(*model_config.to_message([setting]).model_config_list.config)
            settings = [other for other in self._manager.settings if other.name != name] + [setting]
        elif self._manager.has_given_up(name):
            await self._manager.apply([setting for setting in settings if setting.name != name])
        await self._apply(settings, name)

    def _find(self, name: str) -> ModelSetting:
        for root in self._folders:
            setting = model_config.find(root, name)
            if setting is not None:
                return setting
        raise not_found(
            f"there is no folder '{name}' with version folders in --allowed_model_roots={self._shown_roots()}"
        )

    @property
    def _folders(self) -> list[Path]:
        """The roots on this machine."""
        return [root for root in self._roots if isinstance(root, Path)]

    def _shown_roots(self) -> str:
        return ",".join(map(str, self._roots))

    async def _apply(self, settings: list[ModelSetting], *names: str) -> None:
        """Makes these the models; waits for those that are new, and for `names`."""
        new = await self._manager.apply(settings)
        failures = await self._manager.until_tried(dict.fromkeys((*new, *names)))
        await self._until_known()
        if failures:
            raise ServingError(
                tensorflow_error_pb2.UNKNOWN,
                f"{len(failures)} model(s) did not become available: {unavailable(failures)}",
            )

    def _check(self, model: messages.ModelConfig) -> None:
        _check_name(model.name)
        path = model.base_path
        shown = f"base_path {path[:255]!r} of model {model.name} is not accepted"
        if bucket.is_address(path) or path.lower().startswith("file:"):
            inside = self._is_inside_address(path, shown)
        else:
            inside = self._is_inside_folder(path, shown, model.name)
        if not inside:
            raise ServingError(
                tensorflow_error_pb2.PERMISSION_DENIED,
                f"{shown}: it is not inside of --allowed_model_roots={self._shown_roots()}",
            )
        if model.HasField("logging_config"):
            model_config.check_prefix(model.logging_config.log_collector_config.filename_prefix, self._log_roots)

    def _is_inside_address(self, path: str, shown: str) -> bool:
        try:
            address = bucket.parse(path)
        except BucketError as error:
            raise invalid_argument(f"{shown}: only folders and buckets are read, no URLs of other kinds") from error
        return any(address.is_relative_to(root) for root in self._roots if isinstance(root, BucketAddress))

    def _is_inside_folder(self, path: str, shown: str, name: str) -> bool:
        if not path.startswith("/"):
            raise invalid_argument(
                f"Expected model {name} to have an absolute path or URI; got base_path()={path[:255]}"
            )
        if "\0" in path or len(path) > _MAX_PATH:
            raise invalid_argument(f"{shown}: it holds NUL or has more than {_MAX_PATH} characters")
        if ".." in Path(path).parts:
            raise invalid_argument(f"{shown}: '..' is not allowed in it")
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(root)) for root in self._folders)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid_argument(
            f"model name {name[:255]!r} is not accepted: up to 255 letters, digits, '_', '-' and '.',"
            " the first a letter or digit"
        )


def _denied(message: str) -> ServingError:
    return ServingError(tensorflow_error_pb2.PERMISSION_DENIED, message)

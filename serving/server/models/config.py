"""Which models to serve: from flags, or from a text ModelServerConfig file as TensorFlow Serving reads it."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bookserve.serving.server.models.version_policy import All, BasePath, Latest, Policy, Specific, versions_on_disk
from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import bucket
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.bucket import BucketError

log = logging.getLogger(__name__)

# How a request log is written.
JSON_LINES = "jsonl"
TFRECORD = "tfrecord"
FORMATS = (JSON_LINES, TFRECORD)


@dataclass(frozen=True)
class RequestLogSetting:
    """Which requests of a model to log, and where."""

    prefix: str  # of the files: a path
    rate: float = 1.0  # the share of the requests that is logged, 0 to 1
    format: str = JSON_LINES  # one of FORMATS

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise invalid_argument(f"the sampling rate of a request log must be between 0 and 1, it is {self.rate:g}")
        if not self.prefix or not Path(self.prefix).name or "\0" in self.prefix:
            raise invalid_argument(f"'{self.prefix}' is no prefix for the files of a request log: give a path")


def check_type(name: str) -> None:
    """Raises ServingError (INVALID_ARGUMENT) for a log_collector_config.type that cannot be written."""
    if name not in ("", *FORMATS):
        raise invalid_argument(f"log_collector_config.type '{name}' is not supported: use {' or '.join(FORMATS)}")


def check_prefix(prefix: str, roots: Iterable[Path]) -> None:
    """For a prefix that comes over the network: its files must be below one of `roots`, links followed.

    Raises ServingError (INVALID_ARGUMENT) where they are not.
    """
    path = Path(prefix)
    if path.is_absolute() and "\0" not in prefix and ".." not in path.parts:
        folder = Path(os.path.realpath(path.parent))
        if any(folder.is_relative_to(os.path.realpath(root)) for root in roots):
            return
    raise invalid_argument(f"a request log may not be written to '{prefix}': it is outside the allowed folders")


@dataclass(frozen=True)
class ModelSetting:
    """One model to serve: where its version folders are, which of them to load, and their labels."""

    name: str
    base_path: BasePath
    policy: Policy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=dict)
    request_log: RequestLogSetting | None = None


def read_config_file(path: Path) -> list[ModelSetting]:
    """The models of a text ModelServerConfig.

    Raises ServingError (INVALID_ARGUMENT) that names the file and the line when it cannot be read or parsed, and with
    TensorFlow Serving's words for each rule that it breaks.
    """
    return from_message(text_protos.read(path, messages.ModelServerConfig()))


def from_text(text: str, path: object) -> list[ModelSetting]:
    """The same of a file's text; `path` is for messages. Raises as `read_config_file`."""
    return from_message(text_protos.parse(text, path, messages.ModelServerConfig()))


def copied_from(config: Path, settings: Iterable[ModelSetting]) -> dict[str, Path]:
    """Model -> its base path, where the config file has a folder of that model beside it and names another.

    So it is with a copied model store, whose config file still names the original.
    """
    root, copied = config.absolute().parent, {}
    for setting in settings:
        beside, base_path = root / setting.name, setting.base_path
        if isinstance(base_path, Path) and beside.is_dir() and beside.resolve() != base_path.resolve():
            copied[setting.name] = base_path
    return copied


def base_path(text: str) -> BasePath:
    """The base path in a flag or a config file: the address of a bucket, or a folder, here made absolute.

    Raises ServingError (INVALID_ARGUMENT) for an address that is not a bucket's.
    """
    if not bucket.is_address(text):
        return Path(text).absolute()
    try:
        return bucket.parse(text)
    except BucketError as error:
        raise invalid_argument(str(error)) from error


def discover(root: Path) -> list[ModelSetting]:
    """Every model under a root: each folder that holds version folders, with its entry of `root/models.config` if any.

    Hidden folders are none, nor are those whose names are no UTF-8, which no request could name, nor those that may not
    be read, such as a volume's `lost+found`. Base paths are the folders found, whatever the config file says, so that a
    store may be moved or mounted elsewhere.
    Raises ServingError (INVALID_ARGUMENT) when the root cannot be listed or the config file is malformed.
    """
    configured = _configured(root)
    try:
        named = [entry for entry in root.iterdir() if not entry.name.startswith(".") and _is_utf8(entry.name)]
        folders = sorted(entry for entry in named if entry.is_dir() and _has_versions(entry))
    except OSError as error:
        raise invalid_argument(f"--model_root={root} cannot be listed: {error.strerror}") from error
    return [
        replace(configured.get(folder.name, ModelSetting(folder.name, folder)), base_path=folder) for folder in folders
    ]


_unreadable: set[Path] = set()  # folders that the log has


def _has_versions(folder: Path) -> bool:
    try:
        return bool(versions_on_disk(folder))
    except OSError as error:
        if folder not in _unreadable:
            _unreadable.add(folder)
            log.warning("%s is passed over: it cannot be listed: %s", folder, error.strerror)
        return False


def _is_utf8(name: str) -> bool:
    """Whether the name of a file is text; Python tells other bytes as halves of surrogates."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def find(root: Path, name: str) -> ModelSetting | None:
    """The one of that name that `discover` would find. Raises ServingError as there, but not for a missing root."""
    folder = root / name
    try:
        if not versions_on_disk(folder):
            return None
    except OSError:
        return None
    return replace(_configured(root).get(name, ModelSetting(name, folder)), base_path=folder)


def _configured(root: Path) -> dict[str, ModelSetting]:
    config = root / "models.config"
    return {setting.name: setting for setting in read_config_file(config)} if config.is_file() else {}


def merged(
    current: Iterable[ModelSetting], before: Iterable[ModelSetting], now: Iterable[ModelSetting]
) -> list[ModelSetting]:
    """`current` with what changed between `before` and `now`: what came, changed or went there does so here."""
    result = {setting.name: setting for setting in current}
    old = {setting.name: setting for setting in before}
    new = {setting.name: setting for setting in now}
    for name in old.keys() - new.keys():
        if result.get(name) == old[name]:
            del result[name]
    return list((result | {name: setting for name, setting in new.items() if setting != old.get(name)}).values())


def from_message(config: messages.ModelServerConfig, configured: Collection[str] = ()) -> list[ModelSetting]:
    """The models of a ModelServerConfig message; those `configured` now may not become another platform's.

    Raises ServingError (INVALID_ARGUMENT) for each rule that it breaks.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("custom_model_config is not supported: use model_config_list")
    settings: dict[str, ModelSetting] = {}
    for model in config.model_config_list.config:
        if model.name in settings:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        settings[model.name] = _setting(model, model.name in configured)
    return list(settings.values())


def _setting(model: messages.ModelConfig, is_configured: bool) -> ModelSetting:
    if not model.name:
        raise invalid_argument("a model of the config has no name")
    if not model.base_path.startswith("/") and not bucket.is_address(model.base_path):
        raise invalid_argument(
            f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        )
    platform, model_type = model.model_platform, model.model_type
    if platform and model_type:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform,"
            f" model name is {model.name}"
        )
    if not platform and not model_type:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform,"
            f" model name is {model.name}"
        )
    if platform not in ("", "tensorflow") or model_type == messages.OTHER:
        platform = platform or "OTHER"
        if is_configured:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was tensorflow"
                f" and new platform requested is {platform}"
            )
        raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")
    policy = model.model_version_policy
    chosen: Policy = Latest()
    match policy.WhichOneof("policy_choice"):
        case "latest":
            chosen = Latest(policy.latest.num_versions or 1)
        case "all":
            chosen = All()
        case "specific":
            chosen = Specific(frozenset(policy.specific.versions))
    return ModelSetting(model.name, base_path(model.base_path), chosen, dict(model.version_labels), _request_log(model))


def _request_log(model: messages.ModelConfig) -> RequestLogSetting | None:
    if not model.HasField("logging_config"):
        return None
    config = model.logging_config
    if config.HasField("custom_logging_config"):
        raise invalid_argument(f"custom_logging_config of model {model.name} is not supported")
    check_type(config.log_collector_config.type)
    rate = config.sampling_config.sampling_rate if config.HasField("sampling_config") else 1.0
    collector = config.log_collector_config
    return RequestLogSetting(collector.filename_prefix, rate, collector.type or JSON_LINES)


def to_message(settings: Iterable[ModelSetting]) -> messages.ModelServerConfig:
    """The ModelServerConfig that `from_message` reads these settings from."""
    config = messages.ModelServerConfig()
    config.model_config_list.SetInParent()
    for setting in settings:
        model = config.model_config_list.config.add(
            name=setting.name,
            base_path=str(setting.base_path),
            model_platform="tensorflow",
            version_labels=dict(setting.labels),
        )
        if setting.request_log is not None:
            model.logging_config.log_collector_config.type = setting.request_log.format
            model.logging_config.log_collector_config.filename_prefix = setting.request_log.prefix
            model.logging_config.sampling_config.sampling_rate = setting.request_log.rate
        policy = model.model_version_policy
        match setting.policy:
            case Latest(count):
                policy.latest.num_versions = count
            case All():
                policy.all.SetInParent()
            case Specific(versions):
                policy.specific.versions.extend(sorted(versions))
                policy.specific.SetInParent()
    return config

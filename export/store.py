"""The model store: immutable numbered versions on disk, as TensorFlow Serving and our own server read them.

    <root>/models.config                  text ModelServerConfig, rewritten with every publish and change of labels
    <root>/<model>/<version>/             a positive integer, never written to again
    <root>/<model>/labels.json            the labels and the rollback that models.config tells the servers of, if any
    <root>/.server-<id>.json              a model server that serves the store: where it is asked
    <root>/<model>/.publishing-<id>/      a version being written; its lock file tells whether by a living process

A version appears in one rename, after everything in it is on disk. Nothing here imports TensorFlow.

Which versions the servers load: the newest. With labels also the labelled ones and the one before the newest, because
TensorFlow Serving moves a label only to a version that it has loaded. After a rollback no version above its target, as
both servers answer with the highest that is loaded; the next publish ends the rollback.

A label that moves to a version that is not loaded takes two steps: `models.config` first names both versions, and once
the servers have loaded the second, the label moves. TensorFlow Serving refuses both at once.
"""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bookserve.export import manifest
from bookserve.export.durable import fsync, fsync_tree, replace_file
from bookserve.export.errors import ConfigError, StoreError
from bookserve.export.manifest import Manifest

CONFIG = "models.config"
LABELS = "labels.json"
_STAGING = ".publishing-"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
UntilLoaded = Callable[[list[int]], None]  # waits for these versions; raises StoreError where they do not come
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Release:
    """What a model's users get: `labels` names versions; `rolled_back_to` is served instead of the newest, if set."""

    labels: Mapping[str, int] = field(default_factory=dict)
    rolled_back_to: int | None = None


class ModelStore:
    """The versions below one root folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def models(self) -> list[str]:
        """The names of the models that have at least one version, sorted."""
        if not self.root.is_dir():
            return []
        names = (path.name for path in self.root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
        return sorted(name for name in names if self.versions(name))

    def versions(self, model: str) -> list[int]:
        """The published versions of a model, ascending; empty when there is no such model."""
        folder = self.root / model
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())

    def path(self, model: str, version: int | None = None) -> Path:
        """The folder of a version, by default the newest one.

        Raises:
            StoreError: no such model or version; the message lists those that there are.
        """
        versions = self.versions(model)
        if not versions:
            known = ", ".join(self.models()) or "none"
            raise StoreError(f"{self.root} holds no model '{model}' (models: {known})")
        if version is None:
            version = versions[-1]
        if version not in versions:
            raise StoreError(f"{model} has no version {version} (versions: {', '.join(map(str, versions))})")
        return self.root / model / str(version)

    def manifest(self, model: str, version: int | None = None) -> Manifest:
        """The manifest of a version, by default the newest one.

        Raises:
            StoreError: no such version, or its manifest is missing or damaged.
        """
        return manifest.read(self.path(model, version))

    @contextmanager
    def staging(self, model: str) -> Iterator[Path]:
        """A folder to write the next version of `model` into; gone at the end unless `publish` took it.

        Also removes what killed publishers have left behind. Raises StoreError for a name that no folder or URL could
        carry.
        """
        if not _NAME.fullmatch(model):
            raise StoreError(f"'{model}' is no model name: letters, digits, '_', '-' and '.' only, the first no sign")
        parent = self.root / model
        parent.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers(parent)
        lock_path, lock = _take_new_lock(parent)
        folder = lock_path.with_suffix("")
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
            os.close(lock)

    def publish(self, model: str, staged: Path, describe: Callable[[int], Manifest]) -> Manifest:
        """Make the staged folder the next version of `model`; `describe` gives the manifest for a version number.

        Two publishers at once get two versions: who finds the number taken at the rename takes the next one. Labels
        stay where they are; a rollback ends, so the new version is served.

        Raises:
            StoreError: a model's labels cannot be read; nothing is published.
            ConfigError: the version is published, and `models.config` could not be written.
        """
        self.config_text()
        while True:
            version = self._next_version(model)
            described = describe(version)
            (staged / manifest.LOCATION).write_text(described.to_json(), encoding="utf-8")
            fsync_tree(staged)
            try:
                staged.rename(self.root / model / str(version))
            except OSError:
                if (self.root / model / str(version)).exists():
                    continue
                raise
            fsync(self.root / model)
            try:
                with self._locked():
                    release = self.release(model)
                    if release.rolled_back_to is not None:
                        self._write_release(model, replace(release, rolled_back_to=None))
                    self._write_config()
            except (OSError, StoreError) as error:
                reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                raise ConfigError(
                    f"{model} version {version} is published in {self.root / model / str(version)}, but"
                    f" {self.root / CONFIG} could not be written ({reason}): servers that read it may not serve the"
                    " version. When that is mended, 'bookserve models config' writes the file anew"
                ) from error
            return described

    def release(self, model: str) -> Release:
        """The labels and the rollback of a model, as far as their versions still exist.

        Raises:
            StoreError: they cannot be read.
        """
        path = self.root / model / LABELS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels, pinned = dict(content["labels"]), content["rolled_back_to"]
            if not all(isinstance(version, int) for version in (*labels.values(), pinned or 0)):
                raise ValueError("a version is no number")
        except FileNotFoundError:
            return Release()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}): fix it, or delete it and set the labels again"
            ) from error
        versions = self.versions(model)
        return Release(
            labels={label: version for label, version in sorted(labels.items()) if version in versions},
            rolled_back_to=pinned if pinned in versions else None,
        )

    def moved_from(self) -> dict[str, str]:
        """Model -> the base path that `models.config` names for it, where that is not its folder in this store."""
        from google.protobuf import text_format

        from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

        try:
            config = text_format.Parse((self.root / CONFIG).read_text("utf-8"), ModelServerConfig())
        except (OSError, ValueError, text_format.ParseError):
            return {}
        return {
            entry.name: entry.base_path
            for entry in config.model_config_list.config
            if Path(entry.base_path).resolve() != (self.root / entry.name).resolve()
        }

    def default_version(self, model: str) -> int:
        """The version that answers who names neither version nor label: the newest, or the one rolled back to.

        Raises:
            StoreError: no such model.
        """
        return self.release(model).rolled_back_to or int(self.path(model).name)

    def label(self, model: str, label: str, version: int, until_loaded: UntilLoaded | None = None) -> None:
        """Have `label` name this version from now on, whatever it named before.

        `until_loaded` waits until the servers have loaded versions, which `models.config` names by then.

        Raises:
            StoreError: no such version, no name for a label, a version above the one that is rolled back to, one that
                was not loaded, or a store that cannot be written to. Nothing is changed.
        """
        if not _LABEL.fullmatch(label):
            raise StoreError(f"'{label}' is no label: a letter, then up to 62 letters, digits, '_' and '-'")
        self.path(model, version)
        with self._locked():
            release = self.release(model)
            if release.rolled_back_to is not None and version > release.rolled_back_to:
                raise StoreError(
                    f"{model} is rolled back to version {release.rolled_back_to}: a label on version {version} would "
                    f"make that the default again. 'bookserve models rollback {model} --to {self.versions(model)[-1]}' "
                    "ends the rollback."
                )
            self._change(model, replace(release, labels={**release.labels, label: version}), until_loaded)

    def unlabel(self, model: str, label: str) -> None:
        """Forget a label.

        Raises:
            StoreError: no such model or label; the message lists those that there are.
        """
        self.path(model)
        with self._locked():
            release = self.release(model)
            if label not in release.labels:
                raise StoreError(f"{model} has no label '{label}' (labels: {', '.join(release.labels) or 'none'})")
            labels = {name: version for name, version in release.labels.items() if name != label}
            self._change(model, replace(release, labels=labels), None)

    def roll_back(
        self, model: str, version: int | None = None, until_loaded: UntilLoaded | None = None
    ) -> tuple[int, list[str]]:
        """Serve `version` by default, or else the one before that served now; the newest version ends a rollback.

        Labels on versions above the target would keep them loaded, and so the default: they move to the target too.
        Returns the version served from now on and the labels moved. `until_loaded` is as for `label`.

        Raises:
            StoreError: no such version, none before the one served now, one that was not loaded, or a store that
                cannot be written to. Nothing is changed.
        """
        self.path(model, version)
        with self._locked():
            release, versions = self.release(model), self.versions(model)
            if version is None:
                current = self.default_version(model)
                earlier = [number for number in versions if number < current]
                if not earlier:
                    raise StoreError(f"{model} has no version before {current}, the one that is served")
                version = earlier[-1]
            moved = [label for label, named in release.labels.items() if named > version]
            pinned = None if version == versions[-1] else version
            labels = {label: min(named, version) for label, named in release.labels.items()}
            self._change(model, Release(labels, pinned), until_loaded)
        return version, moved

    def write_config(self) -> None:
        """Write `models.config` anew, as after a copy of the store to another place.

        Raises:
            StoreError: a model's labels cannot be read, or the store cannot be written to.
        """
        with self._locked():
            self._write_config()

    def _change(self, model: str, release: Release, until_loaded: UntilLoaded | None) -> None:
        versions, before = self.versions(model), self.release(model)
        newest = versions[-1:]
        old, new = (_loaded(one, versions) or newest for one in (before, release))
        if until_loaded is not None:
            self._write_config({model: sorted({*old, *new})})
            try:
                until_loaded(new)
            except BaseException:
                self._write_config()
                raise
        self._write_release(model, release)
        try:
            self._write_config()
        except OSError:
            self._write_release(model, before)
            raise

    def config_text(self, loading: Mapping[str, list[int]] | None = None) -> str:
        """The store as TensorFlow Serving's ModelServerConfig in protobuf's text form, base paths absolute.

        `loading` has the versions of models for which that is not what their labels and rollback want.

        Raises:
            StoreError: a model's labels cannot be read, or the root's path is not UTF-8.
        """
        from google.protobuf import text_format

        from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

        config = ModelServerConfig()
        config.model_config_list.SetInParent()
        for model in self.models():
            release = self.release(model)
            try:
                entry = config.model_config_list.config.add(
                    name=model, base_path=str(self.root / model), model_platform="tensorflow"
                )
            except UnicodeEncodeError as error:
                raise StoreError(f"{self.root} is not a path in UTF-8, which protobuf's texts are") from error
            loaded = (loading or {}).get(model) or _loaded(release, self.versions(model))
            if loaded:
                entry.model_version_policy.specific.versions.extend(loaded)
            entry.version_labels.update(release.labels)
        return text_format.MessageToString(config, as_utf8=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of labels and `models.config` at a time; the last one sees every version published before."""
        try:
            lock = os.open(self.root / f".{CONFIG}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise StoreError(f"cannot write to {self.root}: {error.strerror or error}") from error

    def _write_config(self, loading: Mapping[str, list[int]] | None = None) -> None:
        replace_file(self.root / CONFIG, self.config_text(loading))

    def _write_release(self, model: str, release: Release) -> None:
        replace_file(self.root / model / LABELS, json.dumps(asdict(release), indent=2, sort_keys=True) + "\n")

    def _next_version(self, model: str) -> int:
        """One more than the highest number that anything in the model's folder bears, a version or not."""
        names = [path.name for path in (self.root / model).iterdir()]
        return max((int(name) for name in names if _VERSION.fullmatch(name)), default=0) + 1

    def _remove_leftovers(self, parent: Path) -> None:
        for lock_path in parent.glob(f"{_STAGING}*{_LOCK}"):
            try:
                lock = os.open(lock_path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its publisher lives
            else:
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
            finally:
                os.close(lock)


def _take_new_lock(parent: Path) -> tuple[Path, int]:
    """A lock file of our own, locked for as long as the descriptor is open."""
    while True:
        path = parent / f"{_STAGING}{uuid.uuid4().hex}{_LOCK}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)  # another publisher took the new file for a leftover


def _loaded(release: Release, versions: list[int]) -> list[int]:
    """The versions to name in the version policy, ascending; empty where the servers' own policy, the newest, is meant.

    See the module's docstring. Without labels and rollback nothing is named, so that a server finds a new version by
    itself, without a look at `models.config`.
    """
    if not release.labels and release.rolled_back_to is None:
        return []
    newest = versions[-2:] if release.rolled_back_to is None else [release.rolled_back_to]
    return sorted({*release.labels.values(), *newest})

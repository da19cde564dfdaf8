"""The model store: immutable numbered versions on disk, as TensorFlow Serving and our own server read them.

    <root>/models.config                  what the servers load and which labels they answer to (models_config.py)
    <root>/<model>/<version>/             a positive integer, never written to again
    <root>/.server-<id>.json              a model server that serves the store: where it is asked
    <root>/<model>/.publishing-<id>/      a version being written (staging.py)

A version appears in one rename, after everything in it is on disk, and leaves in one. Labels and rollbacks change in
one rename of `models.config`. Where that names what the servers load, it names a new version before it appears. Only a
model's first version is named after it: whoever publishes it and is killed in between leaves a version of which
`models.config` does not tell; 'bookserve models list' says so, and the next change of the store mends it. Nothing here
imports TensorFlow.

A label that moves to a version that is not loaded takes two steps: `models.config` first names both versions, and once
the servers have loaded the second, the label moves. TensorFlow Serving refuses both at once.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from bookserve.export import manifest, models_config
from bookserve.export import staging as folders
from bookserve.export.durable import fsync, fsync_tree, replace_file
from bookserve.export.errors import ConfigError, StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.models_config import LABELS, Entry, Release

CONFIG = "models.config"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED = "models"  # of a model, as /api/v1/models is taken
_VERSION = re.compile(r"[1-9][0-9]*")
UntilLoaded = Callable[[list[int]], None]  # waits for these versions; raises StoreError where they do not come
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


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
        """A folder to write the next version of `model` into; gone at the end unless `publish` took it, and with it the
        model's folder where there is no version.

        Also removes what killed publishers have left behind. Raises StoreError for a name that no folder or URL could
        carry.
        """
        if not _NAME.fullmatch(model):
            raise StoreError(
                f"'{model}' cannot be the name of a model: use letters, digits, '_', '-' and '.', and begin with a"
                " letter or digit"
            )
        if model == _RESERVED:
            raise StoreError(f"a model cannot be called '{model}': the gateway lists all models at that address")
        parent = self.root / model
        try:
            with folders.staging(parent) as folder:
                fsync(self.root)
                yield folder
        finally:
            with suppress(OSError):  # there are versions, or another publisher is at work
                parent.rmdir()

    def publish(
        self, model: str, staged: Path, describe: Callable[[int], Manifest], number: int | None = None
    ) -> Manifest:
        """Make the staged folder the next version of `model`; `describe` gives the manifest for a version number.

        With `number` it becomes that version, or nothing where the number is taken. Two publishers at once get two
        versions: who finds the number taken at the rename takes the next one. Labels stay where they are; a rollback
        ends where the version is the newest, so that it is served.

        Raises:
            StoreError: the labels cannot be read, `number` is taken, or the store cannot be written to; nothing is
                published.
            ConfigError: the version is published, and `models.config` could not be written.
        """
        described: list[Manifest] = []

        def write(version: int) -> None:
            described.append(describe(version))
            (staged / manifest.LOCATION).write_text(described[-1].to_json(), encoding="utf-8")

        self._appear(model, staged, number, write)
        return described[-1]

    def take_in(self, model: str, staged: Path, number: int) -> None:
        """Make the staged folder, which has its manifest, that version of `model`. Raises as `publish` does."""
        self._appear(model, staged, number, lambda _: None)

    def _appear(self, model: str, staged: Path, number: int | None, write: Callable[[int], None]) -> None:
        fsync_tree(staged)
        with self._locked():
            before = self.release(model)
            while True:
                version = number or self._next_version(model)
                write(version)
                fsync(staged / manifest.LOCATION)
                fsync((staged / manifest.LOCATION).parent)
                versions = self.versions(model)
                newest = not versions or version > versions[-1]
                after = replace(before, rolled_back_to=None) if newest else before
                named = models_config.loaded(before, versions)
                if named and newest:  # the servers load only what is named, and so this at once when it is there
                    self._write_config({model: before}, {model: [*named, version]})
                try:
                    staged.rename(self.root / model / str(version))
                    break
                except OSError:
                    self._write_config({model: before})
                    if not (self.root / model / str(version)).exists():
                        raise
                    if number is not None:
                        raise StoreError(f"{model} has a version {number} already") from None
            fsync(self.root / model)
            try:
                self._write_config({model: after})
            except (OSError, StoreError) as error:
                reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                raise ConfigError(
                    f"{model} version {version} is published in {self.root / model / str(version)}, but"
                    f" {self.root / CONFIG} could not be written ({reason}): servers that read it may not serve the"
                    " version. When that is mended, 'bookserve models config' writes the file anew"
                ) from error

    def release(self, model: str) -> Release:
        """The labels and the rollback of a model, as far as their versions still exist.

        Raises:
            StoreError: they cannot be read.
        """
        return self._release(model, self._entries())

    def _entries(self) -> dict[str, Entry]:
        return models_config.read(self.root / CONFIG)

    def _release(self, model: str, entries: Mapping[str, Entry]) -> Release:
        old = self.root / model / LABELS
        release = models_config.read_labels(old) if old.exists() else Release()
        versions = self.versions(model)
        if not old.exists() and model in entries:
            release = entries[model].release
            if release.rolled_back_to and max(entries[model].loaded(versions), default=0) > release.rolled_back_to:
                release = replace(release, rolled_back_to=None)  # a publish has ended it
        return Release(
            labels={label: version for label, version in release.labels.items() if version in versions},
            rolled_back_to=release.rolled_back_to if release.rolled_back_to in versions else None,
        )

    def held(self, model: str) -> dict[int, str]:
        """Version -> why it may not be removed: it is served by default, has a label, or is to be loaded.

        Raises:
            StoreError: the labels cannot be read.
        """
        versions, entries = self.versions(model), self._entries()
        release = self._release(model, entries)
        entry = entries.get(model, Entry("", release))
        held = dict.fromkeys([*models_config.loaded(release, versions), *entry.loaded(versions)], f"{CONFIG} loads it")
        held |= {version: f"it is '{label}'" for label, version in release.labels.items()}
        held |= dict.fromkeys(versions[-1:], "it is the newest")
        return held if release.rolled_back_to is None else {**held, release.rolled_back_to: "it is served by default"}

    def remove(self, model: str, version: int) -> str:
        """Delete a version, unless it is held; returns why it is, or "".

        It is gone in one rename; the files are deleted after it.

        Raises:
            StoreError: no such version, or the store cannot be written to. The version is there, or gone.
        """
        folder = self.path(model, version)
        with self._locked():
            held = self.held(model).get(version, "")
            if not held:
                folders.take_away(folder)
                fsync(folder.parent)
        folders.remove_leftovers(folder.parent)
        return held

    def moved_from(self) -> dict[str, str]:
        """Model -> the base path that `models.config` names for it, where that is neither its folder in this store nor
        in the root that `write_config` was told of.
        """
        try:
            entries, root = self._entries(), self.told_root()
        except StoreError:
            return {}
        return {
            model: entry.base_path
            for model, entry in entries.items()
            if entry.base_path != f"{root}/{model}" and Path(entry.base_path).resolve() != (self.root / model).resolve()
        }

    def told_root(self) -> str | None:
        """What base paths in `models.config` begin with, where that is not this store's folder: see `write_config`.

        Raises:
            StoreError: the file cannot be read.
        """
        return models_config.root(self.root / CONFIG)

    def is_told(self) -> bool:
        """Whether `models.config` is as it would be written now; not where a writer was killed before it wrote that.

        Raises:
            StoreError: the labels cannot be read.
        """
        path = self.root / CONFIG
        return not path.exists() or path.read_text(encoding="utf-8") == self.config_text()

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

    def write_config(self, root: str | None = None) -> None:
        """Write `models.config` anew, as after a copy of the store to another place.

        `root` is where servers have the store, such as /models in a container; later changes keep it. None is here.

        Raises:
            StoreError: a model's labels cannot be read, the store cannot be written to, or `root` is no absolute path.
        """
        elsewhere = None if root is None else models_config.check_root(root)
        with self._locked():
            replace_file(self.root / CONFIG, self._text(None if elsewhere == str(self.root) else elsewhere))

    def _change(self, model: str, release: Release, until_loaded: UntilLoaded | None) -> None:
        versions, before = self.versions(model), self.release(model)
        newest = versions[-1:]
        old, new = (models_config.loaded(one, versions) or newest for one in (before, release))
        if until_loaded is not None:
            self._write_config({model: before}, {model: sorted({*old, *new})})
            try:
                until_loaded(new)
            except BaseException:
                self._write_config({model: before})
                raise
        self._write_config({model: release})

    def config_text(
        self, changed: Mapping[str, Release] | None = None, loading: Mapping[str, list[int]] | None = None
    ) -> str:
        """The store as TensorFlow Serving's ModelServerConfig in protobuf's text form, base paths absolute.

        `changed` has releases that are new; `loading` has the versions of models for which that is not what their
        labels and rollback want.

        Raises:
            StoreError: the labels cannot be read, or the root's path is not UTF-8.
        """
        return self._text(self.told_root(), changed, loading)

    def _text(
        self,
        root: str | None,
        changed: Mapping[str, Release] | None = None,
        loading: Mapping[str, list[int]] | None = None,
    ) -> str:
        entries, models = self._entries(), []
        for model in self.models():
            release = (changed or {}).get(model) or self._release(model, entries)
            named = (loading or {}).get(model) or models_config.loaded(release, self.versions(model))
            models.append((model, release, named))
        return models_config.text(self.root, root, models)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of labels and `models.config` at a time; the last one sees every version published before."""
        try:
            lock = os.open(self.root / f".{CONFIG}{folders.LOCK}", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self.root.glob(f".{CONFIG}-*"):
                    left.unlink()  # by a writer that was killed
                self._take_over_labels()
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise StoreError(f"cannot write to {self.root}: {error.strerror or error}") from error

    def _take_over_labels(self) -> None:
        """Move what the `labels.json` of an older store say to `models.config`, where it says the same already."""
        old = [self.root / model / LABELS for model in self.models() if (self.root / model / LABELS).exists()]
        if old:
            self._write_config()
            for path in old:
                path.unlink()

    def _write_config(
        self, changed: Mapping[str, Release] | None = None, loading: Mapping[str, list[int]] | None = None
    ) -> None:
        """Does nothing where the file is so already."""
        path, text = self.root / CONFIG, self.config_text(changed, loading)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_file(path, text)

    def _next_version(self, model: str) -> int:
        """One more than the highest number that anything in the model's folder bears, a version or not."""
        names = [path.name for path in (self.root / model).iterdir()]
        return max((int(name) for name in names if _VERSION.fullmatch(name)), default=0) + 1

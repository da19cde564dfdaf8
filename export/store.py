"""The model store: immutable numbered versions on disk, as TensorFlow Serving and our own server read them.

    <root>/models.config                  text ModelServerConfig, rewritten with every publish
    <root>/<model>/<version>/             a positive integer, never written to again
    <root>/<model>/.publishing-<id>/      a version being written; its lock file tells whether by a living process

A version appears in one rename, after everything in it is on disk. Nothing here imports TensorFlow.
"""

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bookserve.export import manifest
from bookserve.export.errors import StoreError
from bookserve.export.manifest import Manifest

CONFIG = "models.config"
_STAGING = ".publishing-"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[1-9][0-9]*")


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

        Two publishers at once get two versions: who finds the number taken at the rename takes the next one.
        """
        while True:
            version = self._next_version(model)
            described = describe(version)
            (staged / manifest.LOCATION).write_text(described.to_json(), encoding="utf-8")
            _fsync_tree(staged)
            try:
                staged.rename(self.root / model / str(version))
            except OSError:
                if (self.root / model / str(version)).exists():
                    continue
                raise
            _fsync(self.root / model)
            self.write_config()
            return described

    def write_config(self) -> Path:
        """Rewrite `models.config` for all models of the store, in one rename.

        Whoever writes looks again afterwards: so the last writer's file lists every model, whoever published meanwhile.
        """
        target = self.root / CONFIG
        while True:
            text = self.config_text()
            handle, temporary = tempfile.mkstemp(prefix=f".{CONFIG}-", dir=self.root)
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(text)
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
            Path(temporary).replace(target)
            _fsync(self.root)
            if self.config_text() == text:
                return target

    def config_text(self) -> str:
        """The store as TensorFlow Serving's ModelServerConfig in protobuf's text form, base paths absolute."""
        lines = ["model_config_list {"]
        for model in self.models():
            lines += [
                "  config {",
                f"    name: {_quoted(model)}",
                f"    base_path: {_quoted(str(self.root / model))}",
                '    model_platform: "tensorflow"',
                "  }",
            ]
        return "\n".join([*lines, "}", ""])

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


def _quoted(text: str) -> str:
    """A string literal of protobuf's text form: everything but plain ASCII as octal bytes."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\")}
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What is checked of a version folder before any of it is loaded, and after that.

A version is a tree of plain files and nothing else: no link leads out of it, and where it brings a manifest
(`assets.extra/manifest.json` with `"files": {path: sha256}`) the files are those that the manifest tells of. Only what
this server reads is hashed: with an ONNX graph that leaves out `variables/` and the report, which may be large.

What loads a version opens its files again. So afterwards nothing in the folder may have changed since before it was
checked: not a file's content, and not which file or folder bears a name.
"""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bookserve.serving.server.types.errors import ServingError, failed_precondition
from bookserve.serving.wire import version_signature
from bookserve.serving.wire.version_folder import CARD, MANIFEST, MAX_MANIFEST_BYTES, may_lie_beside

log = logging.getLogger(__name__)

_GRAPHS = ("assets.extra/model.onnx", "model.onnx")
_NOT_READ = ("variables/", "assets.extra/report/")  # where there is an ONNX graph


# Path -> what changes when the file or folder there changes, or another takes its place.
Seen = dict[str, tuple[int, ...]]


def check(version_path: Path) -> Seen:
    """Answers what was seen, for `check_unchanged`.

    Raises ServingError (FAILED_PRECONDITION), with the reason, for a folder that must not be loaded.
    """
    try:
        real = version_path.resolve(strict=True)
        seen = _see(real)
        _check(version_path, real)
    except (OSError, RuntimeError) as error:  # before Python 3.13 pathlib raises the latter for links in a circle
        raise _refused(version_path, f"it cannot be read: {error}") from error
    return seen


def check_signature(version_path: Path, public_key: Path, model: str, version: int) -> None:
    """For a version that is served as that version of a model.

    Raises ServingError (FAILED_PRECONDITION) where it was not signed so with the private key of `public_key`.
    """
    try:
        version_signature.verify(version_path.resolve(), public_key, version, (model, version_path.parent.name))
    except version_signature.SignatureError as error:
        raise _refused(version_path, str(error)) from error


def check_unchanged(version_path: Path, seen: Seen) -> None:
    """For a version that has been loaded since `check`.

    Raises ServingError (FAILED_PRECONDITION), with the first of them, where files have changed meanwhile.
    """
    try:
        now = _see(version_path.resolve(strict=True))
    except OSError as error:
        raise _refused(version_path, f"it cannot be read any more: {error}") from error
    changed = sorted(path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path))
    if changed:
        raise _refused(version_path, f"{changed[0]} has changed while it was loaded")


def _see(root: Path) -> Seen:
    seen: Seen = {}
    for folder, folders, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):  # noqa: PTH118 - as os.walk
            status = os.lstat(path)
            # Whoever may write to a file can set its time of change, but not that of its status.
            seen[path] = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return seen


def _check(version_path: Path, real: Path) -> None:
    if not real.is_relative_to(version_path.parent.resolve()):
        raise _refused(version_path, f"it is a link to {real}, outside of its model's folder: copy the version there")
    files = dict(_files(real, real))
    graph = next((name for name in _GRAPHS if name in files), None)
    verified = _verify(real, files, graph is not None)
    if graph is None:
        return
    # ONNX Runtime reads weights from any file beside the graph that the graph names. It refuses links and paths that
    # lead out of the folder; a hard link it cannot tell from a file of the version's own.
    folder = graph.removesuffix("model.onnx")
    for name, status in files.items():
        if name.startswith(folder) and name != graph and status.st_nlink > 1 and name not in verified:
            raise _refused(
                version_path, f"{name} has {status.st_nlink} hard links, so it may be a file of elsewhere: copy it"
            )


def _files(root: Path, folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Name inside `root` and status of every file below `folder`; links to inside stand for what they point to."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = path.resolve()
                if not target.is_relative_to(root):
                    raise _refused(root, f"{name} is a link to {target}, outside of the version: copy the file")
                if not target.is_file():
                    continue  # to a folder that is walked where it lies, or to nothing
                status = target.stat()
            if stat.S_ISDIR(status.st_mode):
                yield from _files(root, path)
            elif stat.S_ISREG(status.st_mode):
                yield name, status
            else:
                raise _refused(root, f"{name} is neither a file nor a folder")


def _verify(root: Path, files: dict[str, os.stat_result], has_graph: bool) -> set[str]:
    """Compares the folder with its manifest, if any; returns the names of the files whose content is known good."""
    if MANIFEST not in files:
        if CARD in files or any(root.parent.glob(f"[1-9]*/{MANIFEST}")):
            log.warning("%s has lost its manifest (%s): its files are loaded unchecked", root, MANIFEST)
        return set()
    listed = listed_files(root)
    if listed is None:
        return set()
    absent = sorted(listed.keys() - files.keys())
    if absent:
        raise _refused(root, f"{absent[0]} is in its manifest but not in the folder")
    verified = set()
    for name in files:
        if name == MANIFEST or (has_graph and name.startswith(_NOT_READ)):
            continue
        if name not in listed and may_lie_beside(name):
            continue
        if name not in listed:
            raise _refused(root, f"{name} is not in its manifest")
        with (root / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != listed[name]:
            raise _refused(root, f"{name} is not the file that its manifest tells of (SHA-256 {digest})")
        verified.add(name)
    return verified


def listed_files(root: Path) -> dict[str, Any] | None:
    """Path -> SHA-256 of the manifest of a version; None for one of another kind, which tells of no files.

    Raises ServingError (FAILED_PRECONDITION) where it is too large or cannot be read as JSON, OSError where it is not
    there.
    """
    path = root / MANIFEST
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise _refused(root, f"its manifest has {size} bytes, more than {MAX_MANIFEST_BYTES}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(root, f"its manifest cannot be read: {error}") from error
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, dict) else None


def _refused(version_path: Path, reason: str) -> ServingError:
    return failed_precondition(f"{version_path} is refused: {reason}")

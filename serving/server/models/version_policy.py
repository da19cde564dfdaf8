"""Which versions of a model there are, and which of them its policy wants served."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from bookserve.serving.wire.bucket import BucketAddress
from bookserve.serving.wire.version_folder import GRAPHS

log = logging.getLogger(__name__)

_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = 100  # of a folder's name, leading zeros included; Python refuses to read thousands

BasePath = Path | BucketAddress  # where the version folders of a model are


@dataclass(frozen=True)
class Latest:
    """Serve the highest `count` versions."""

    count: int = 1


@dataclass(frozen=True)
class All:
    """Serve every version."""


@dataclass(frozen=True)
class Specific:
    """Serve these versions."""

    versions: frozenset[int]


Policy = Latest | All | Specific


def versions_on_disk(base_path: Path) -> dict[int, Path]:
    """The version folders below `base_path` by number; a folder whose name is no number of 63 bits is none (`7.tmp`).

    Raises OSError when the folder cannot be listed.
    """
    with os.scandir(base_path) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return {number: base_path / name for number, name in numbered(base_path, names).items()}


def numbered(base_path: BasePath, names: Iterable[str]) -> dict[int, str]:
    """Which of the folders below a base path is which version. The log tells once of those that are none."""
    versions: dict[int, str] = {}
    told: dict[str, tuple[int, str]] = {}
    for name in sorted(names):
        path = base_path / name
        number = int(name) if name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS else -1
        if not 0 <= number <= _MAX_VERSION:
            told[name] = logging.INFO, f"{path} is no version: its name is no whole number of 63 bits"
            continue
        if number in versions:
            text = f"{base_path / versions[number]} and {path} are the same version: the second is used"
            told[name] = logging.WARNING, text
        versions[number] = name
    _tell(base_path, told)
    return versions


_told: dict[BasePath, Set[str]] = {}  # of a base path, the folders that the log has


def _tell(base_path: BasePath, told: Mapping[str, tuple[int, str]]) -> None:
    """Logs what is new since the last listing: folders are listed every second."""
    before = _told.get(base_path, frozenset())
    if told.keys() == before:
        return
    for name in sorted(told.keys() - before):
        log.log(*told[name])
    _told[base_path] = frozenset(told)


def find(policy: Policy, base_path: Path) -> dict[int, Path]:
    """The version folders that the policy may choose from; without a listing where it names all that it wants.

    Raises OSError when the folder cannot be listed.
    """
    if isinstance(policy, Specific) and policy.versions:
        named = {number: base_path / str(number) for number in policy.versions}
        if all(path.is_dir() for path in named.values()):
            return named
    return versions_on_disk(base_path)


def wanted(policy: Policy, available: Collection[int]) -> set[int]:
    """The versions that the policy wants served, out of those on disk."""
    match policy:
        case Latest(count):
            return set(sorted(available)[-count:])
        case All():
            return set(available)
        case Specific(versions):
            return set(versions & set(available))


def missing(policy: Policy, available: Collection[int]) -> set[int]:
    """The versions that the policy names and that are not on disk."""
    return set(policy.versions - set(available)) if isinstance(policy, Specific) else set()


def why_none(base_path: BasePath) -> str:
    """What to do about a base path that has no versions; "" where nothing there says it, or may be read."""
    if isinstance(base_path, BucketAddress):
        return ""
    try:
        return _what_is_there(base_path)
    except OSError:
        return ""


def _what_is_there(base_path: Path) -> str:
    name = base_path.name
    if base_path.is_file():
        return (
            f" {base_path} is a file, and a base path is the folder of a model's versions:"
            f" `bookserve models add NAME {base_path}` makes a version of it, or give the folder above the version's."
        )
    if any((base_path / file).is_file() for file in GRAPHS):
        if name.isascii() and name.isdigit():
            return f" {base_path} is a version itself: give the folder above it, {base_path.parent}."
        return f" {base_path} holds a model itself: move its files to {base_path / '1'}."
    return ""

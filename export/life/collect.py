"""`bookserve models gc`: old versions leave the store, but none that anybody is served or has named."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bookserve.export.served import Servers
from bookserve.export.store import ModelStore


@dataclass(frozen=True)
class Plan:
    """What goes of one model, version -> bytes, and what stays though it is older than those kept, version -> why."""

    model: str
    gone: dict[int, int]
    kept: dict[int, str]


def plan(store: ModelStore, model: str, keep: int, servers: Servers) -> Plan:
    """The newest `keep` versions stay, those of `ModelStore.held`, and those that a server has.

    Raises:
        StoreError: no such model, its labels cannot be read, or a server does not answer.
    """
    versions = store.versions(model) or [int(store.path(model).name)]
    why = {**servers.loaded(model), **store.held(model)}
    old = versions[:-keep]
    gone = {version: _size(store.path(model, version)) for version in old if version not in why}
    return Plan(model, gone, {version: why[version] for version in old if version in why})


def carry_out(store: ModelStore, made: Plan, say: Callable[[str], None]) -> int:
    """Remove what goes; returns the bytes freed. A version that got a label meanwhile stays, and is told of.

    Raises:
        StoreError: the store cannot be written to; what `say` told of is gone, whole, and the rest is there.
    """
    freed = 0
    for version, size in made.gone.items():
        held = store.remove(made.model, version)
        if held:
            say(f"{made.model} version {version} stays: {held}")
        else:
            say(f"{made.model} version {version} is removed, {size} bytes")
            freed += size
    return freed


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())

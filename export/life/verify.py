"""`bookserve models verify`: whether a version is what was published, and still answers as it did."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bookserve.export import confined, contracts, manifest
from bookserve.export.errors import ConfinedError, StoreError
from bookserve.export.life.engine_trial import ENGINES
from bookserve.export.manifest import Manifest
from bookserve.serving.wire import version_folder, version_signature
from bookserve.serving.wire.version_signature import SignatureError

_TRIAL = "bookserve.export.life.engine_trial:run"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: `what` such as "files", `told` in words; not `good` where the version fails by it."""

    what: str
    told: str
    good: bool = True


def verify(folder: Path, limits: confined.Limits, public_key: Path | None = None) -> Iterator[Finding]:
    """Everything that is checked of the version in `folder`, one finding at a time: files, signature, engines."""
    try:
        found = manifest.read(folder) if (folder / manifest.LOCATION).exists() else None
    except StoreError as error:
        yield Finding("manifest", str(error), good=False)
        return
    yield from _without_manifest(folder) if found is None else _files(folder, found)
    if public_key is not None:
        yield _signature(folder, public_key)
    elif (folder / version_folder.SIGNATURE).exists():
        yield Finding("signature", "there is one, which --key checks")
    graphs = [name for name in ENGINES if (folder / name).is_file()]
    if not graphs:
        yield Finding("graphs", f"there is none of {', '.join(ENGINES)}", good=False)
    for name in graphs:
        yield _engine(folder, name, found, limits)


def _without_manifest(folder: Path) -> Iterator[Finding]:
    others = sorted(path.parent.parent.name for path in folder.parent.glob(f"[1-9]*/{manifest.LOCATION}"))
    if others or (folder / version_folder.CARD).exists():
        why = f"other versions have one ({', '.join(others)})" if others else "a card is there"
        yield Finding("manifest", f"it is gone: {why}", good=False)
    else:
        yield Finding("manifest", "there is none, as for a version made by hand: its files are not checked")


def _files(folder: Path, found: Manifest) -> Iterator[Finding]:
    if (found.version, found.model) != (int(folder.name), folder.parent.name):
        told = f"it is that of {found.model} version {found.version}: the folder was copied or renamed by hand"
        yield Finding("manifest", told, good=False)
    links = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())
    if links:
        yield Finding("files", f"links, which no version has: {', '.join(links)}", good=False)
    actual = manifest.digests(folder)
    missing = sorted(found.files.keys() - actual.keys())
    changed = sorted(name for name in found.files.keys() & actual.keys() if found.files[name] != actual[name])
    extra = sorted(actual.keys() - found.files.keys())
    beside = [name for name in extra if version_folder.may_lie_beside(name)]
    foreign = [name for name in extra if name not in beside]
    for what, names in (("missing", missing), ("changed", changed), ("not in the manifest", foreign)):
        if names:
            yield Finding("files", f"{what}: {', '.join(names)}", good=False)
    by_hand = [name for name in beside if name != version_folder.SIGNATURE]
    if by_hand:
        yield Finding("files", f"put there by hand, unchecked: {', '.join(by_hand)}")
    if not (missing or changed or foreign or links):
        yield Finding("files", f"{len(found.files)}, all as published")


def _signature(folder: Path, public_key: Path) -> Finding:
    try:
        version_signature.verify(folder, public_key, int(folder.name), [folder.parent.name])
    except SignatureError as error:
        return Finding("signature", str(error), good=False)
    return Finding("signature", f"made with the private key of {public_key}")


def _engine(folder: Path, name: str, found: Manifest | None, limits: confined.Limits) -> Finding:
    engine, extra = ENGINES[name]
    job = {
        "folder": str(folder),
        "file": name,
        "contract": None if found is None else contracts.to_json(found.contract),
        "parity": {} if found is None else dict(found.parity),
    }
    try:
        told = confined.call(_TRIAL, job, limits)
    except ConfinedError as error:
        return Finding(name, f"{engine}: {error}", good=False)
    if "missing" in told:
        return Finding(name, f"not tried: {engine} is not installed: pip install 'bookserve[{extra}]'")
    if told["differences"] is None:
        return Finding(name, f"{engine} loads it; the manifest has no example to ask")
    worst = max(told["differences"].values(), default=0.0)
    return Finding(name, f"{engine} answers the example as in the manifest, within {worst:.1g}")


def to_json(findings: list[Finding]) -> list[dict[str, object]]:
    """The findings as JSON."""
    return [dataclasses.asdict(finding) for finding in findings]

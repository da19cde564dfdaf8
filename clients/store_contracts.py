"""The contracts in a model store, as the gateway and `bookserve predict` read them: in the manifests of its versions.

Reads only. A name reaches the file system only after it matched a strict pattern, and no link is followed.
"""

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.export.contracts import Contract, ContractError, from_json

MANIFEST = "assets.extra/manifest.json"  # inside the version folder
MAX_MANIFEST_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_VERSION = re.compile(r"[1-9][0-9]{0,18}")


def is_name(text: str) -> bool:
    """Whether a model may have this name."""
    return _NAME.fullmatch(text) is not None


class StoreContracts:
    """The contracts below one store's folder. Shared by threads: versions are never rewritten, so each is read once."""

    def __init__(self, root: Path, name: str = "") -> None:
        """`name` is what users call the store, by default its folder."""
        self.root = root
        self.name = name or str(root)
        self._read: dict[tuple[str, int], Contract] = {}
        self._unlike: dict[tuple[str, int], float | None] = {}
        self._lock = threading.Lock()

    def models(self) -> list[str]:
        """The names of the models that have a version, sorted."""
        return sorted(name for name in _names(self.root) if is_name(name) and self.versions(name))

    def versions(self, model: str) -> list[int]:
        """The numbers of a model's versions, the newest first."""
        names = _names(self.root / model) if is_name(model) else []
        return sorted((int(name) for name in names if _VERSION.fullmatch(name)), reverse=True)

    def of_version(self, model: str, version: int) -> Contract | None:
        """The contract in the manifest of a version; None where there is none, or only its name.

        Its model is the one that the version lies below, by which servers know it: who copies a folder leaves the
        manifest as it is.
        """
        key = (model, version)
        with self._lock:
            found = self._read.get(key)
        if found is None:
            found = _contract(self.manifest(model, version), model)
            if found is not None:
                with self._lock:
                    self._read[key] = found
        return found

    def of_model(self, model: str, version: int | None = None) -> Contract | None:
        """The contract of a version, or of the newest one that has one."""
        wanted = [] if version is None else [version]
        for number in (*wanted, *self.versions(model)):
            found = self.of_version(model, number)
            if found is not None:
                return found
        return None

    def differ(self, model: str) -> bool:
        """Whether the versions of a model have different contracts."""
        found = [self.of_version(model, version) for version in self.versions(model)]
        return any(contract != found[0] for contract in found)

    def unlike(self, model: str, version: int) -> float | None:
        """The similarity to the nearest training row below which a row is unlike those, as the version's figures on its
        test rows have it; None where they do not tell.
        """
        key = (model, version)
        with self._lock:
            if key in self._unlike:
                return self._unlike[key]
        manifest = self.manifest(model, version)
        found = _unlike(manifest)
        if manifest is not None:
            with self._lock:
                self._unlike[key] = found
        return found

    def manifest(self, model: str, version: int) -> dict[str, Any] | None:
        """What the manifest of a version says, or None where there is none that can be read."""
        path = self.root / model / str(version) / MANIFEST
        try:
            if not is_name(model) or path.is_symlink() or path.stat().st_size > MAX_MANIFEST_BYTES:
                return None
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing in one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _unlike(manifest: dict[str, Any] | None) -> float | None:
    metrics = (manifest or {}).get("metrics")
    served = metrics.get("served") if isinstance(metrics, dict) else None
    found = served.get("unlike") if isinstance(served, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _contract(manifest: dict[str, Any] | None, model: str) -> Contract | None:
    """The contract of a manifest, for `model`, without its example, which two versions of one contract do not share."""
    if manifest is None:
        return None
    told = manifest.get("contract")
    if isinstance(told, dict):
        told = {name: value for name, value in told.items() if name != "example"}
    try:
        contract = from_json(told)
    except ContractError:
        return None
    return replace(contract, model=model) if contract.whole else None

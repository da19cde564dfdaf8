"""What the gateway tells of the model store: contracts, the manifests' figures, the report's images. Reads only.

A name from a request reaches the file system only after it matched a strict pattern, and no link is followed.
"""

import re
from pathlib import Path
from typing import Any

from bookserve.clients.inputs import words
from bookserve.clients.store_contracts import StoreContracts

_VOCABULARIES = 8  # kept at once; versions are never rewritten
_FIELDS = ("created", "contract", "data", "profile", "metrics", "parity")  # of a manifest, what is shown
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.png")


class Store:
    """One model store's folder."""

    def __init__(self, root: Path) -> None:
        self.contracts = StoreContracts(root)
        self._root = root
        self._vocabularies: dict[tuple[str, int, str], words.Vocabulary] = {}

    def manifest(self, model: str, version: int) -> dict[str, Any] | None:
        """What the manifest of a version says, or None when there is none that can be read."""
        content = self.contracts.manifest(model, version)
        return None if content is None else {name: content[name] for name in _FIELDS if name in content}

    def report_images(self, model: str, version: int) -> list[str]:
        """The file names of the report's images, sorted."""
        folder = self._assets(model, version) / "report"
        try:
            names = [path.name for path in folder.iterdir() if _IMAGE.fullmatch(path.name) and not path.is_symlink()]
        except OSError:
            return []
        return sorted(names)

    def report_image(self, model: str, version: int, name: str) -> bytes | None:
        """An image of the report, or None when there is none of that name."""
        if name not in self.report_images(model, version):
            return None
        return (self._assets(model, version) / "report" / name).read_bytes()

    def vocabulary(self, model: str, version: int, asset: str) -> words.Vocabulary:
        """The words in an asset of a version. VocabularyError when it has none that can be read."""
        key = (model, version, asset)
        vocabulary = self._vocabularies.get(key)
        if vocabulary is None:
            if Path(asset).name != asset:
                raise words.VocabularyError(f"'{asset}' is no file name")
            vocabulary = words.read_vocabulary(self._root / model / str(version) / "assets" / asset)
            if len(self._vocabularies) >= _VOCABULARIES:
                self._vocabularies.clear()
            self._vocabularies[key] = vocabulary
        return vocabulary

    def _assets(self, model: str, version: int) -> Path:
        return self._root / model / str(version) / "assets.extra"

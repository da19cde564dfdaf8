"""What the gateway tells of the model store: the manifests' figures and the report's images. Reads only.

A name from a request reaches the file system only after it matched a strict pattern, and no link is followed.
"""

import re
from pathlib import Path
from typing import Any

import orjson

from bookserve.clients.inputs import words

MAX_MANIFEST_BYTES = 4 << 20
_VOCABULARIES = 8  # kept at once; versions are never rewritten
_FIELDS = ("created", "contract", "data", "profile", "metrics", "parity")  # of a manifest, what is shown
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.png")


class Store:
    """One model store's folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._vocabularies: dict[tuple[str, int], words.Vocabulary] = {}

    def manifest(self, model: str, version: int) -> dict[str, Any] | None:
        """What the manifest of a version says, or None when there is none that can be read."""
        path = self._assets(model, version) / "manifest.json"
        try:
            if path.is_symlink() or path.stat().st_size > MAX_MANIFEST_BYTES:
                return None
            content = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return {name: content[name] for name in _FIELDS if name in content} if isinstance(content, dict) else None

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

    def vocabulary(self, model: str, version: int) -> words.Vocabulary:
        """The words of a version of the language model. VocabularyError when it has none that can be read."""
        vocabulary = self._vocabularies.get((model, version))
        if vocabulary is None:
            vocabulary = words.read_vocabulary(self._root / model / str(version) / "assets" / "vocabulary.txt")
            if len(self._vocabularies) >= _VOCABULARIES:
                self._vocabularies.clear()
            self._vocabularies[model, version] = vocabulary
        return vocabulary

    def _assets(self, model: str, version: int) -> Path:
        return self._root / model / str(version) / "assets.extra"

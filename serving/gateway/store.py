"""What the gateway tells of the model store: contracts, figures, labels, the report's images and card. Reads only.

A name from a request reaches the file system only after it matched a strict pattern, and no link is followed.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from PIL import Image

from bookserve.clients.inputs import words
from bookserve.clients.store_contracts import StoreContracts
from bookserve.serving.gateway import graph_outline
from bookserve.serving.wire import pictures
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

_VOCABULARIES = 8  # kept at once; versions are never rewritten
_MANIFESTS = 64  # the same
_GRAPHS = 16  # the same
_SMALL_IMAGES = 64  # the same
_SMALL_WIDTH, _SMALL_HEIGHT, _SMALL_SIDE = 480, 256, 2560  # pixels: what it covers, and its longest side
_SMALL_COLOURS = 64
_FIELDS = (  # of a manifest, what is shown
    *("created", "contract", "configuration", "data", "metrics", "parity", "precision", "profile", "quantization"),
    "source",
)
_CARD = "card.md"
_EVALUATION = "evaluation.json"
_TOLD = ("figure", "value", "rows", "interval", "classes", "doubt", "unlike")
_MAX_EVALUATION_BYTES = 4 << 20
_MAX_CARD_BYTES = 1 << 20
_MAX_EXAMPLE_CHARACTERS = 50_000
_MAX_CONFIG_BYTES = 4 << 20
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.png")


class Store:
    """One model store's folder."""

    def __init__(self, root: Path, name: str = "") -> None:
        """`name` is what users call the store, by default its folder."""
        self.contracts = StoreContracts(root, name)
        self._root = root
        self._vocabularies: dict[tuple[str, int, str], words.Vocabulary] = {}
        self._manifests: dict[tuple[str, int], dict[str, Any]] = {}
        self._graphs: dict[tuple[str, int], dict[str, Any]] = {}
        self._small: dict[tuple[str, int, str], bytes] = {}

    def manifest(self, model: str, version: int) -> dict[str, Any] | None:
        """What the manifest of a version says, but for its example, or None when there is none that can be read."""
        key = (model, version)
        kept = self._manifests.get(key)
        if kept is not None:
            return kept
        content = self.contracts.manifest(model, version)
        if content is None:
            return None
        shown = {name: content[name] for name in _FIELDS if name in content}
        if isinstance(shown.get("contract"), dict):
            shown["contract"] = {name: value for name, value in shown["contract"].items() if name != "example"}
        if len(self._manifests) >= _MANIFESTS:
            self._manifests.clear()
        self._manifests[key] = shown
        return shown

    def example(self, model: str, version: int) -> dict[str, Any] | None:
        """The inputs of the example in a version's manifest, in the REST form; None where it has none or a long one."""
        content = self.contracts.manifest(model, version) or {}
        contract = content.get("contract")
        example = contract.get("example") if isinstance(contract, dict) else None
        inputs = example.get("inputs") if isinstance(example, dict) else None
        if not isinstance(inputs, dict) or len(json.dumps(inputs)) > _MAX_EXAMPLE_CHARACTERS:
            return None
        return inputs

    def evaluation(self, model: str, version: int) -> dict[str, Any] | None:
        """How the graph of a version did on its test rows: `figure`, `value`, `rows`, and where the report has them the
        95 % `interval`, each of `classes`, `doubt`, `unlike`, and the `calibration` without its bins; None where it has
        no evaluation.
        """
        path = self._assets(model, version) / "report" / _EVALUATION
        try:
            if path.is_symlink() or path.stat().st_size > _MAX_EVALUATION_BYTES:
                return None
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or not {"figure", "value", "rows"} <= content.keys():
            return None
        told = {name: content[name] for name in _TOLD if name in content}
        honest = content.get("calibration")
        if isinstance(honest, dict):
            told["calibration"] = {name: honest[name] for name in ("ece", "brier") if name in honest}
        return told

    def labels(self, model: str) -> dict[str, int]:
        """Label -> version, as the store's models.config has them for the servers."""
        path = self._root / "models.config"
        try:
            if path.is_symlink() or path.stat().st_size > _MAX_CONFIG_BYTES:
                return {}
            config = text_format.Parse(path.read_text(encoding="utf-8"), ModelServerConfig())
        except (OSError, ValueError, text_format.ParseError):
            return {}
        entries = (entry for entry in config.model_config_list.config if entry.name == model)
        return {label: number for entry in entries for label, number in sorted(entry.version_labels.items())}

    def has_card(self, model: str, version: int) -> bool:
        """Whether a version has a model card."""
        path = self._assets(model, version) / "report" / _CARD
        return path.is_file() and not path.is_symlink()

    def card(self, model: str, version: int) -> str | None:
        """The model card of a version, in Markdown; None where it has none that can be read."""
        path = self._assets(model, version) / "report" / _CARD
        try:
            if not self.has_card(model, version) or path.stat().st_size > _MAX_CARD_BYTES:
                return None
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def has_graph(self, model: str, version: int) -> bool:
        """Whether a version has a graph of which there is an outline."""
        return graph_outline.find(self._root / model / str(version)) is not None

    def graph(self, model: str, version: int) -> dict[str, Any] | None:
        """The outline of a version's graph, as `graph_outline.outline` tells it."""
        key = (model, version)
        kept = self._graphs.get(key)
        if kept is None:
            kept = graph_outline.outline(self._root / model / str(version))
            if kept is None:
                return None
            if len(self._graphs) >= _GRAPHS:
                self._graphs.clear()
            self._graphs[key] = kept
        return kept

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

    def small_report_image(self, model: str, version: int, name: str) -> bytes | None:
        """The same as a PNG of few colours, at most 480 pixels wide, for a list; None also where it is no picture."""
        key = (model, version, name)
        kept = self._small.get(key)
        if kept is None:
            content = self.report_image(model, version, name)
            try:
                kept = None if content is None else _small(content)
            except pictures.PictureError:
                return None
            if kept is None:
                return None
            if len(self._small) >= _SMALL_IMAGES:
                self._small.clear()
            self._small[key] = kept
        return kept

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


def _small(content: bytes) -> bytes:
    """A PNG scaled down; few colours do for plots, and are a third of the bytes.

    The list shows the middle of a wide one, so that is as high as the others.
    """
    image = Image.open(io.BytesIO(pictures.preview(content, _SMALL_WIDTH)))
    if image.height < _SMALL_HEIGHT:
        side = min(_SMALL_SIDE, _SMALL_WIDTH * _SMALL_HEIGHT // image.height)
        image = Image.open(io.BytesIO(pictures.preview(content, side)))
    png = io.BytesIO()
    image.convert("RGB").quantize(_SMALL_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        png, "PNG", optimize=True
    )
    return png.getvalue()

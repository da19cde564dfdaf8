"""What a version's manifest says that the server acts on, apart from its files (integrity.py)."""

import json
from contextlib import suppress
from pathlib import Path

from bookserve.serving.wire.version_folder import MANIFEST


def rows_independent(version_path: Path) -> bool | None:
    """Whether whoever packaged the version says that its rows are independent; None where the manifest is silent."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((version_path / MANIFEST).read_bytes())
        if isinstance(content, dict) and isinstance(declared := content.get("rows_independent"), bool):
            return declared
    return None

"""Which signatures of a version have independent rows, so that rows of several requests may run as one batch unasked.

Only those where the graph proves it (engines/onnx_rows), or where whoever packaged the version says so. Nothing is run
to find out: a model whose rows look independent for some values may still mix them for others.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.wire.tensors import TensorSpec

log = logging.getLogger(__name__)

_FIXED = "its inputs and outputs do not all have a free first dimension"
_HOW_TO_DECLARE = (
    'if its rows are independent, write "rows_independent": true into assets.extra/manifest.json, or batch by'
    " parameters with --enable_batching (and batching_params.pbtxt)"
)


def shared(engine: Engine, version_path: Path, unasked: bool, declared: bool | None) -> set[str]:
    """The signatures of a loaded version whose requests share runs without --enable_batching.

    `unasked` is whether any may; `declared` what the version's manifest says, None where it is silent.
    """
    if not unasked or declared is False:
        why = "--unasked_batching is false" if not unasked else "its manifest says that its rows depend on each other"
        log.info("%s: every request runs alone: %s", version_path, why)
        return set()
    names = set()
    for name, signature in sorted(engine.signatures.items()):
        if not _has_free_rows([*signature.required.values(), *signature.outputs.values()]):
            log.info("%s: signature %s: every request runs alone: %s", version_path, name, _FIXED)
        elif declared or name not in engine.doubts:
            names.add(name)
        else:
            doubt = engine.doubts[name]
            log.info("%s: signature %s: every request runs alone: %s; %s", version_path, name, doubt, _HOW_TO_DECLARE)
    return names


def _has_free_rows(specs: Sequence[TensorSpec]) -> bool:
    return all(spec.shape is not None and spec.shape[:1] == (None,) for spec in specs)

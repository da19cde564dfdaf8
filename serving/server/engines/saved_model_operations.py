"""Which operations a SavedModel may use: the sections of `saved_model_operations.txt`, and attributes that decide.

The file sorts every operation of TensorFlow's registry. Its derived sections follow from the registry
(`generate_operations.py`); the others were reviewed, and their titles give the verdict and the reason. An operation
that stands nowhere, such as one of a newer TensorFlow, is refused.
"""

import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from bookserve.serving.wire.tensorflow_pb2 import NodeDef

FILE = Path(__file__).with_name("saved_model_operations.txt")
DERIVED = "allowed: keeps no state and names nothing outside of the graph (derived)"
DERIVED_CHANGING = "allowed, changes state: a variable or table of TensorFlow 1, by reference (derived)"
_ALLOWED, _CHANGES_STATE, _REFUSED = "allowed", "allowed, changes state", "refused"
_UNKNOWN = "is not known to be safe"
_WIDTH = 120

_HEADER = """\
# Every operation of TensorFlow {version}, sorted by what a SavedModel may do with it. The derived sections are
# written by generate_operations.py (make operations); add operations to the others by hand.
"""


def read(text: str) -> dict[str, frozenset[str]]:
    """Title -> names of the operations, of each section."""
    found: dict[str, set[str]] = {}
    names: set[str] = set()
    for line in text.splitlines():
        if line.startswith("["):
            names = found.setdefault(line.strip("[]"), set())
        elif not line.startswith("#"):
            names.update(line.split())
    return {title: frozenset(names) for title, names in found.items()}


def write(version: str, sections: Mapping[str, frozenset[str]]) -> str:
    """The text of the file."""
    parts = [_HEADER.format(version=version)]
    for title, names in sections.items():
        body = textwrap.fill(" ".join(sorted(names)), _WIDTH, break_long_words=False, break_on_hyphens=False)
        parts.append(f"\n[{title}]\n{body}\n")
    return "".join(parts)


@cache
def _verdicts() -> dict[str, tuple[str, str]]:
    """Operation -> verdict and reason."""
    return {
        name: (verdict, reason)
        for title, names in read(FILE.read_text()).items()
        for verdict, _, reason in [title.partition(": ")]
        for name in names
    }


def is_known(operation: str) -> bool:
    """Whether TensorFlow, or TensorFlow Text, has an operation of that name."""
    return operation in _verdicts()


def why_refused(node: NodeDef) -> str | None:
    """Why a SavedModel may not run this node, such as "reads or writes files"; None where it may."""
    verdict, reason = _verdicts().get(node.op, (_REFUSED, _UNKNOWN))
    if verdict == _REFUSED:
        return reason
    condition = _CONDITIONS.get(node.op)
    return condition(node) if condition is not None else None


def changes_state(node: NodeDef) -> bool:
    """Whether running an allowed node may change what later runs answer."""
    return _verdicts().get(node.op, (_CHANGES_STATE, ""))[0] == _CHANGES_STATE


def _prints_to_a_stream(node: NodeDef) -> str | None:
    stream = node.attr["output_stream"].s if "output_stream" in node.attr else b"stderr"
    streams = (b"stdout", b"stderr", b"log(info)", b"log(warning)", b"log(error)")
    return None if stream in streams else f"prints to {_shown(stream)}, which is no stream"


def _describes_messages_itself(node: NodeDef) -> str | None:
    source = node.attr["descriptor_source"].s if "descriptor_source" in node.attr else b""
    if source in (b"", b"local://") or source.startswith(b"bytes://"):
        return None
    return f"reads a file: its descriptor_source is {_shown(source)}"


def _has_no_vocabulary_file(node: NodeDef) -> str | None:
    file = node.attr["vocab_file"].s if "vocab_file" in node.attr else b""
    return None if not file else f"reads a file: its vocab_file is {_shown(file)}"


def _calls_nothing_outside(node: NodeDef) -> str | None:
    """A program of StableHLO, in MLIR's binary form, whose strings stand there as they are."""
    module = node.attr["module"].s if "module" in node.attr else b""
    if not module.startswith(b"ML\xefR"):
        return "has a program that is not in MLIR's binary form, so what it calls cannot be told"
    return "has a program that calls code outside of it (custom_call)" if b"custom_call" in module else None


# The attribute that decides about an allowed operation.
_CONDITIONS: Mapping[str, Callable[[NodeDef], str | None]] = {
    "PrintV2": _prints_to_a_stream,
    "DecodeProtoV2": _describes_messages_itself,
    "EncodeProto": _describes_messages_itself,
    "FixedUnigramCandidateSampler": _has_no_vocabulary_file,
    "XlaCallModule": _calls_nothing_outside,
}


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("utf-8", "backslashreplace"))

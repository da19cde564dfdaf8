"""StringNormalizer of ONNX, with which text models of scikit-learn begin: the language that it compares words in.

ONNX Runtime takes a language from the system, by default American English, and refuses the graph where the system does
not have it, as in slim container images. `C.UTF-8` is everywhere and has the same upper and lower case as English.
"""

import ctypes
import sys
from functools import cache

from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

_ALIKE = "C.UTF-8"
_DEFAULT = "en_US.UTF-8"  # ONNX Runtime's, of a node that names none
_STRING = 3  # AttributeProto.AttributeType
_LETTERS = 1 << 0  # LC_CTYPE_MASK of glibc and musl


def replace(model: ModelProto) -> bool:
    """Names another language in the place of an English that the system lacks; whether the model has changed."""
    changed = False
    for node in model.graph.node:
        if node.op_type != "StringNormalizer" or node.domain not in ("", "ai.onnx"):
            continue
        named = next((entry for entry in node.attribute if entry.name == "locale"), None)
        wanted = _DEFAULT if named is None else named.s.decode("utf-8", "replace")
        if wanted.startswith("en") and not _has(wanted) and _has(_ALIKE):
            named = named or node.attribute.add(name="locale", type=_STRING)
            named.s = _ALIKE.encode()
            changed = True
    return changed


@cache
def _has(locale: str) -> bool:
    """Whether the C library knows a locale; where that cannot be asked, as if it did."""
    if not sys.platform.startswith("linux"):
        return True
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.freelocale.argtypes = (ctypes.c_void_p,)
    found = library.newlocale(_LETTERS, locale.encode(), None)
    if found:
        library.freelocale(found)
    return bool(found)

"""Regenerates the derived part of `saved_model_operations.txt` from TensorFlow's registry: `make operations`.

An operation is derived as safe when it keeps no state and nothing of it names a file, an address, a graph, a descriptor
or a library: no text attribute but those whose meaning is known below, and no input or attribute that is called like
one of these. All others stand in the reviewed sections of the file, by hand; one that stands nowhere is an error here
and in the tests. Needs TensorFlow (extra `dev`).
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

from bookserve.serving.server.engines import saved_model_operations

# Text attributes that say how to compute or what to call a thing. A new name has to be looked at.
_HARMLESS_WORDS = """
    activation_mode bad_indices_policy batching_queue compression_type container data_format dct_method debug_name
    dense_keys deterministic dimension_numbers dst_format encoding equation field_delim fill fill_mode frame_name
    input_encoding input_order interpolation kernel_type left_pad message metadata na_value noise padding placeholder
    precision_config rewrite right_pad row_partition_types separator set_operation shared_name sparse_keys ragged_keys
    src_format template var_name context_dense_keys context_sparse_keys feature_list_dense_keys
    feature_list_dense_missing_assumed_empty feature_list_sparse_keys display_name description labels xmp_metadata
"""
_HARMLESS_TEXT = frozenset(_HARMLESS_WORDS.split())
_NAMES_SOMETHING = re.compile(
    r"file|path|directory|\bdir|_dir|address|graph|descriptor|librar|url|uri|host|serialized|module|device|target"
    r"|protocol|prefix|pattern|config|server|worker|snapshot|token"
)


def is_derived(operation: Any) -> bool:
    """Whether an OpDef of the registry is safe by the rule above."""
    if operation.is_stateful or operation.name.startswith("_"):
        return False
    texts = [
        attribute.name
        for attribute in operation.attr
        if attribute.type in ("string", "list(string)") and not attribute.HasField("allowed_values")
    ]
    names = [argument.name for argument in operation.input_arg] + [attribute.name for attribute in operation.attr]
    return _HARMLESS_TEXT.issuperset(texts) and not any(_NAMES_SOMETHING.search(name.lower()) for name in names)


def registry() -> dict[str, Any]:
    """Name -> OpDef of every operation of the TensorFlow that is installed."""
    from tensorflow.core.framework.op_def_pb2 import OpList
    from tensorflow.python.client import pywrap_tf_session

    data = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return {operation.name: operation for operation in OpList.FromString(data).op}


def sections(operations: Mapping[str, Any], reviewed: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """All sections of the file: what follows from the registry, then what was reviewed.

    Raises ValueError for operations that the rule does not derive and nobody has sorted in.
    """
    by_hand = frozenset().union(*reviewed.values())
    derived = {name for name, operation in operations.items() if is_derived(operation)} - by_hand
    unsorted = sorted(operations.keys() - derived - by_hand)
    if unsorted:
        raise ValueError(f"sort into a section of {saved_model_operations.FILE.name}: {' '.join(unsorted)}")
    changing = {name for name in derived if any(argument.is_ref for argument in operations[name].input_arg)}
    return {
        saved_model_operations.DERIVED: frozenset(derived - changing),
        saved_model_operations.DERIVED_CHANGING: frozenset(changing),
        **reviewed,
    }


def text(version: str, operations: Mapping[str, Any]) -> str:
    """The whole file, with its reviewed sections as they are."""
    known = saved_model_operations.read(saved_model_operations.FILE.read_text())
    derived = (saved_model_operations.DERIVED, saved_model_operations.DERIVED_CHANGING)
    reviewed = {title: names for title, names in known.items() if title not in derived}
    return saved_model_operations.write(version, sections(operations, reviewed))


if __name__ == "__main__":
    import tensorflow as tf

    try:
        saved_model_operations.FILE.write_text(text(tf.__version__, registry()))
    except ValueError as error:
        sys.exit(str(error))

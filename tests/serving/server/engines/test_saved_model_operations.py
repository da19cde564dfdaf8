"""The list of operations that a SavedModel may use sorts all of TensorFlow, and follows from its registry."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework.op_def_pb2 import OpList

from bookserve.serving.server.engines import generate_operations as generator
from bookserve.serving.server.engines import saved_model_operations as operations
from bookserve.serving.wire.tensorflow_pb2 import NodeDef


@pytest.fixture(scope="module")
def registry() -> Mapping[str, Any]:
    """That of a process of its own: libraries such as LiteRT's converter add operations to the one that loads them."""
    code = (
        "import sys; from bookserve.serving.wire import lean_keras; lean_keras.expect();"
        "from bookserve.serving.server.engines import generate_operations as generator;"
        "from tensorflow.core.framework.op_def_pb2 import OpList;"
        "sys.stdout.buffer.write(OpList(op=generator.registry().values()).SerializeToString())"
    )
    data = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    return {operation.name: operation for operation in OpList.FromString(data).op}


def test_every_operation_of_tensorflow_is_sorted_in_once(registry: Mapping[str, Any]) -> None:
    sections = operations.read(operations.FILE.read_text())
    names = [name for section in sections.values() for name in section]
    assert len(names) == len(set(names))
    assert sorted(registry.keys() - set(names)) == [], "sort them into a section of saved_model_operations.txt"
    assert all(title.split(":")[0] in ("allowed", "allowed, changes state", "refused") for title in sections)


def test_the_derived_sections_follow_from_the_registry(registry: Mapping[str, Any]) -> None:
    assert generator.text(tf.__version__, registry) == operations.FILE.read_text(), "make operations"


def test_a_new_operation_has_to_be_sorted_in(registry: Mapping[str, Any]) -> None:
    new = type(registry["ReadFile"])(name="ReadAnything", is_stateful=True)
    with pytest.raises(ValueError, match=r"sort into a section .*: ReadAnything"):
        generator.text("next", {**registry, "ReadAnything": new})


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("DatasetFromGraph", {}, "a graph that is hidden in a value"),
        ("RecordInput", {}, "reads or writes files"),
        ("DumpTensor", {}, "reads or writes files"),
        ("Abort", {}, "ends or halts the process"),
        ("CalibrationStatisticsSaver", {}, "reads or writes files"),
        ("Skipgram", {}, "reads or writes files"),
        ("DebugNumericSummary", {}, "reaches other machines"),
        ("XlaCustomCallV2", {}, "runs code that is not in the graph"),
        ("OfSomebody", {}, "is not known to be safe"),
        ("DecodeProtoV2", {"descriptor_source": b"/etc/passwd"}, "its descriptor_source is '/etc/passwd'"),
        ("DecodeProtoV2", {"descriptor_source": b"local://"}, None),
        ("EncodeProto", {"descriptor_source": b"bytes://\x0a"}, None),
        ("FixedUnigramCandidateSampler", {"vocab_file": b"/etc/passwd"}, "its vocab_file is '/etc/passwd'"),
        ("FixedUnigramCandidateSampler", {}, None),
        ("PrintV2", {"output_stream": b"file:///tmp/x"}, "prints to 'file:///tmp/x'"),
        ("PrintV2", {"output_stream": b"log(info)"}, None),
        ("XlaCallModule", {"module": b"ML\xefR..custom_call_v1"}, "custom_call"),
        ("XlaCallModule", {"module": b'"stablehlo.\\63ustom_call"()'}, "not in MLIR's binary form"),
        ("XlaCallModule", {"module": b"ML\xefR..add_v1"}, None),
        ("MatMul", {}, None),
        ("DecodeJpeg", {}, None),
        ("ParseExampleV2", {}, None),
        ("RaggedTensorToTensor", {}, None),
    ],
)
def test_the_verdict_is_that_of_the_operation_and_its_attribute(
    name: str, attributes: Mapping[str, bytes], reason: str | None
) -> None:
    node = NodeDef(name="n", op=name)
    for key, value in attributes.items():
        node.attr[key].s = value
    verdict = operations.why_refused(node)
    assert verdict == reason or (reason is not None and verdict is not None and reason in verdict)


def test_it_is_known_what_changes_state() -> None:
    reading = ("ReadVariableOp", "MatMul", "LookupTableFindV2", "StatefulPartitionedCall", "TensorArrayV3")
    changing = (
        "AssignAddVariableOp",
        "AssignAdd",
        "QueueDequeueV2",
        "RandomUniform",
        "LookupTableInsertV2",
        "OfSomebody",
    )
    assert not any(operations.changes_state(NodeDef(op=name)) for name in reading)
    assert all(operations.changes_state(NodeDef(op=name)) for name in changing)

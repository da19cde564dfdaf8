"""Every rule of the table has a graph that it refuses, and the engine shows that most of these do mix rows."""

import numpy as np
import onnx
import onnxruntime
import pytest

import row_counter_examples
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.server.engines.onnx_rows.table import GRAPHS_INSIDE, RULES
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

RULED = sorted(
    (domain, op) for domain, rules in RULES.items() for op in (*rules, *(GRAPHS_INSIDE if not domain else ()))
)
# Refused, but of these values and numbers of rows the results are the same; or the engine does not take the graph.
NOT_SHOWN = frozenset(
    [
        "Acos",
        "Asin",
        "Atanh",
        "Sign",
        "Equal",
        "Xor",
        "BitwiseXor",
        "IsInf",
        "IsNaN",
        "Mod",
        "Squeeze",
        "StringSplit",
        "Imputer",
        "Scaler",
        "NhwcMaxPool",
        "QLinearSigmoid",
        "LinearClassifier",
        "SVMClassifier",
        "SVMRegressor",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
        "ZipMap",
        "DynamicQuantizeLSTM",
        "EmbedLayerNormalization",
        "FusedGemm",
    ]
)


def example(domain: str, op: str) -> bytes:
    data: bytes = onnx.parser.parse_model(row_counter_examples.text(domain, op)).SerializeToString()
    return data


@pytest.mark.parametrize(("domain", "op"), RULED)
def test_every_rule_refuses_a_graph_that_mixes_by_it(domain: str, op: str) -> None:
    assert op in row_counter_examples.EXAMPLES[domain], f"{op} has no counter-example"
    doubt = walk.refusal(ModelProto.FromString(example(domain, op)))
    assert doubt, row_counter_examples.text(domain, op)
    assert "not one that is understood" not in doubt


@pytest.mark.parametrize(("domain", "op"), [entry for entry in RULED if entry[1] not in NOT_SHOWN])
def test_the_refused_graphs_answer_otherwise_together_and_apart(domain: str, op: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(example(domain, op), options)
    x = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    for _ in range(10):  # what is drawn at random may be the same by chance
        together = session.run(None, {"x": x})[0]
        try:
            apart = np.concatenate([session.run(None, {"x": x[rows]})[0] for rows in (slice(0, 2), slice(2, 4))])
        except Exception:
            return  # alone it is not even answered
        if apart.shape != together.shape or not np.allclose(apart, together, equal_nan=True):
            return
    raise AssertionError(f"{op} gave the same together and apart:\n{together}")

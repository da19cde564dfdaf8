"""Which signatures share runs unasked: by the graph, the manifest and the flag."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.models import manifest

_HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
# Each is right for most random rows: a trial would not have shown it.
MIXED_ABOVE_A_LIMIT = """g (float[n] x) => (float[n] y) {
    largest = ReduceMax<keepdims=1>(x) limit = Constant<value_float=1000.0>() over = Sub(largest, limit)
    above = Relu(over) y = Add(x, above) }"""
SCALED = "g (float[n, 3] x) => (float[n, 3] y) { two = Constant<value_float=2.0>() y = Mul(x, two) }"
FIXED = "g (float[2, 3] x) => (float[2, 3] y) { y = Abs(x) }"


def load(base: Path, text: str) -> Engine:
    folder = base / "1"
    folder.mkdir()
    onnx.save(onnx.parser.parse_model(f"{_HEAD} {text}"), folder / "model.onnx")
    return choose.load(folder, EngineOptions())


def test_a_signature_shares_runs_where_its_graph_proves_it(tmp_path: Path) -> None:
    engine = load(tmp_path, SCALED)
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=None) == {"serving_default"}
    assert row_independence.shared(engine, tmp_path, unasked=False, declared=None) == set()
    assert row_independence.shared(engine, tmp_path, unasked=False, declared=True) == set()
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=False) == set()


def test_rows_that_mix_for_some_values_alone_are_refused_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(tmp_path, MIXED_ABOVE_A_LIMIT)
    with caplog.at_level(logging.INFO):
        assert row_independence.shared(engine, tmp_path, unasked=True, declared=None) == set()
    assert "ReduceMax (largest): it reduces axis 0, where the rows are" in caplog.text
    assert "rows_independent" in caplog.text
    assert "--enable_batching" in caplog.text


def test_fixed_rows_never_share(tmp_path: Path) -> None:
    engine = load(tmp_path, FIXED)
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=True) == set()


@pytest.mark.parametrize(("said", "understood"), [(True, True), (False, False), ("yes", None), (None, None)])
def test_the_manifest_may_declare(tmp_path: Path, said: object, understood: bool | None) -> None:
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "manifest.json").write_text(json.dumps({"rows_independent": said}))
    assert manifest.rows_independent(tmp_path) is understood


def test_a_manifest_that_is_none_declares_nothing(tmp_path: Path) -> None:
    assert manifest.rows_independent(tmp_path) is None
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "manifest.json").write_text("[1")
    assert manifest.rows_independent(tmp_path) is None


def test_a_graph_with_a_loop_is_not_run_on_the_event_loop(tmp_path: Path) -> None:
    text = """g (float[n, 3] x) => (float[n, 3] y) {
        k = Constant<value=int64 {3}>() t = Constant<value=bool {1}>()
        y = Loop(k, t, x) <body = b (int64 i, bool c, float[m, 3] s) => (bool d, float[m, 3] r)
            { d = Identity(c) r = Add(s, s) }> }"""
    engine = load(tmp_path, text)
    assert not engine.computes_alone
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=None) == {"serving_default"}
    x = np.array([[1, -2, 0.5]], np.float32)
    assert engine.run(engine.signatures["serving_default"], {"x": x}, ["y"])[0].tolist() == [[8, -16, 4]]

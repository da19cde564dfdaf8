"""What the walk proves and refuses: graphs as PyTorch, tf2onnx, Keras and skl2onnx write them."""

import onnx
import pytest

from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

_DIMENSIONS = "all = Shape(x) k0 = Constant<value=int64 {0}>() k1 = Constant<value=int64 {1}>() n = Gather(all, k0)"
_N = f"{_DIMENSIONS} s = Gather(all, k1) a = Constant<value_ints=[0]>() nn = Unsqueeze(n, a) ss = Unsqueeze(s, a)"
_LSTM = """w = Constant<value=float[1,4,1] {1, 1, 1, 1}>() r = Constant<value=float[1,4,1] {1, 1, 1, 1}>()"""


def refusal(body: str, opset: int = 18, inputs: str = "float[n, t, 4] x", functions: str = "") -> str:
    domains = f'["" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1, "own" : 1]'
    text = f"<ir_version: 10, opset_import: {domains}> g ({inputs}) => (y) {{ {body} }} {functions}"
    return walk.refusal(ModelProto.FromString(onnx.parser.parse_model(text).SerializeToString()))


PROVED = {
    "attention of PyTorch": f"""{_N} two = Constant<value_ints=[2]>() half = Constant<value_ints=[2]>()
        s4 = Concat<axis=0>(nn, ss, two, half) q4 = Reshape(x, s4) q = Transpose<perm=[0, 2, 1, 3]>(q4)
        kt = Transpose<perm=[0, 2, 3, 1]>(q4) scores = MatMul(q, kt) p = Softmax<axis=-1>(scores) c = MatMul(p, q)
        back = Transpose<perm=[0, 2, 1, 3]>(c) four = Constant<value_ints=[4]>() s3 = Concat<axis=0>(nn, ss, four)
        y = Reshape(back, s3)""",
    "heads folded into the rows and back": f"""{_N} two = Constant<value_ints=[2]>()
        s4 = Concat<axis=0>(nn, ss, two, two)
        q4 = Reshape(x, s4) q = Transpose<perm=[0, 2, 1, 3]>(q4) n2 = Mul(nn, two) s3 = Concat<axis=0>(n2, ss, two)
        f = Reshape(q, s3) e = Softmax<axis=1>(f) s5 = Concat<axis=0>(nn, two, ss, two) y = Reshape(e, s5)""",
    "positions of a table, as many as there are steps": f"""{_N} two = Constant<value_ints=[2]>()
        table = Constant<value=float[1,3,4] {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}>() i1 = Constant<value_ints=[1]>()
        some = Slice(table, a, ss, i1) p = Add(x, some) t = Transpose<perm=[1, 0, 2]>(p)
        s4 = Concat<axis=0>(ss, nn, two, two) u = Reshape(t, s4) y = Transpose<perm=[1, 0, 2, 3]>(u)""",
    "steps folded into the rows, as tf2onnx does it": f"""f = Constant<value_ints=[-1, 4]>() flat = Reshape(x, f)
        w = Constant<value=float[4,2] {{1, 2, 3, 4, 5, 6, 7, 8}}>() m = MatMul(flat, w) {_N}
        two = Constant<value_ints=[2]>() s3 = Concat<axis=0>(nn, ss, two) y = Reshape(m, s3)""",
    "a shape that is compared with -1": f"""{_N} four = Constant<value_ints=[4]>() s3 = Concat<axis=0>(nn, ss, four)
        l = Shape(s3) ones = ConstantOfShape<value=int64[1] {{1}}>(l) m = Constant<value=int64 {{-1}}>()
        minus = Mul(ones, m) same = Equal(s3, minus) target = Where(same, ones, s3) y = Expand(x, target)""",
    "an LSTM with zeros of the batch": f"""{_N} one = Constant<value_ints=[1]>() st = Concat<axis=0>(one, nn, one)
        h = ConstantOfShape(st) t = Transpose<perm=[1, 0, 2]>(x) i4 = Constant<value_ints=[2]>()
        v = ReduceMax<keepdims=1>(t, i4) {_LSTM} u, l = LSTM<hidden_size=1>(v, w, r, , , h, h)
        f = Transpose<perm=[2, 0, 1, 3]>(u) y = Flatten<axis=1>(f)""",
    "the branch that shapes decide": """b = Shape(x) c = Size(b) three = Constant<value=int64 {3}>() d = Equal(c, three)
        y = If(d) <then_branch = t () => (p) { p = Abs(x) }, else_branch = f () => (q) { q = Transpose(x) }>""",
    "a scan of each row": """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a)
        all = Constant<value=float[2,4] {1, 2, 3, 4, 5, 6, 7, 8}>()
        w, y = Scan<num_scan_inputs=1, body = b (float[2, 4] s, float[4] r) => (float[2, 4] n, float[2] o)
            { n = Identity(s) d = Sub(s, r) ax = Constant<value_ints=[1]>() o = ReduceSumSquare<keepdims=0>(d, ax) }
        >(all, m)""",
    "a scan of the steps, as PyTorch turns them": """t = Transpose<perm=[1, 0, 2]>(x) i0 = Constant<value_ints=[0]>()
        start = ReduceMax<keepdims=0>(t, i0)
        last, all = Scan<num_scan_inputs=1, body = b (float[M, 4] s, float[M, 4] r) => (float[M, 4] n, float[M, 4] o)
            { n = Add(s, r) o = Softmax<axis=1>(n) }>(start, t)
        y = Transpose<perm=[1, 0, 2]>(all)""",
    "a scan of the features, behind the rows": """i2 = Constant<value_ints=[2]>() start = ReduceMax<keepdims=0>(x, i2)
        last, all = Scan<num_scan_inputs=1, scan_input_axes=[2],
            body = b (float[M, T] s, float[M, T] r) => (float[M, T] n, float[M, T] o)
            { n = Mul(s, r) o = Neg(n) }>(start, x) y = Transpose<perm=[1, 2, 0]>(all)""",
    "a spectrum of the steps": """i = Constant<value_ints=[2]>() d = DFT<axis=1>(x)
        y = ReduceL2<keepdims=0>(d, i)""",
    "spectra of frames of steps": """i1 = Constant<value=int64 {1}>() four = Constant<value=int64 {4}>()
        i = Constant<value_ints=[2]>() m = ReduceMax<keepdims=0>(x, i) f = STFT(m, i1, , four)
        three = Constant<value_ints=[3]>() y = ReduceL2<keepdims=0>(f, three)""",
    "a function of its own": "y = own.twice(x)",
    "a linear classifier of skl2onnx": """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a)
        l, p = ai.onnx.ml.LinearClassifier<classlabels_ints=[4, 7], intercepts=[0.5, -0.5],
            coefficients=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], post_transform="SOFTMAX">(m)
        n = ai.onnx.ml.Normalizer<norm="L1">(p) y = ai.onnx.ml.ZipMap<classlabels_int64s=[4, 7]>(n)""",
    "the classes of skl2onnx, picked by ArgMax": """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a)
        best = ArgMax<axis=1>(m) names = Constant<value=int64[4] {3, 1, 4, 5}>()
        c = ai.onnx.ml.ArrayFeatureExtractor(names, best) s = Constant<value_ints=[-1]>() y = Reshape(c, s)""",
    "the labels of each row's neighbours": """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a)
        k = Constant<value_ints=[2]>() best, places = TopK(m, k) names = Constant<value=int64[4] {3, 1, 4, 5}>()
        c = ai.onnx.ml.ArrayFeatureExtractor(names, places) s = Constant<value_ints=[-1, 2]>() y = Reshape(c, s)""",
}
_TWICE = '<domain: "own", opset_import: ["" : 18]> twice (p) => (q) { q = Add(p, p) }'


def test_positions_for_the_steps_of_another_input_prove_nothing() -> None:
    body = PROVED["positions of a table, as many as there are steps"].replace("(x, some)", "(z, some)")
    assert refusal(body, inputs="float[n, t, 4] x, float[n, u, 4] z").startswith("Reshape")


@pytest.mark.parametrize("name", PROVED)
def test_independent_rows_are_proved(name: str) -> None:
    assert refusal(PROVED[name], functions=_TWICE if "own." in PROVED[name] else "") == ""


REFUSED = {
    "an operation of a domain that is not known": ("y = own.thing(x)", "not in the table"),
    "rows joined by a function": ("y = own.most(x)", "where the rows are"),
    "softmax of old, which flattens": ("t = Transpose(x) y = Softmax<axis=0>(t)", "works across"),
    "constants for a fixed number of rows": (
        "c = Constant<value=float[5,1,1] {1, 2, 3, 4, 5}>() y = Add(x, c)",
        "places of its own on the axis of the rows",
    ),
    "pairs of rows": (
        "a = Constant<value_ints=[1]>() b = Constant<value_ints=[0]>() p = Unsqueeze(x, a) q = Unsqueeze(x, b)"
        " y = Sub(p, q)",
        "on different axes",
    ),
    "rows torn apart": (
        "t = Transpose(x) s = Constant<value_ints=[-1, 4]>() y = Reshape(t, s)",
        "keep the rows together",
    ),
    "a literal number of rows": ("s = Constant<value_ints=[8, 4]>() y = Reshape(x, s)", "keep the rows together"),
    "steps handed out as rows": ("s = Constant<value_ints=[-1, 4]>() y = Reshape(x, s)", "one place for each row"),
    "the mean over the number of rows": (
        f"{_DIMENSIONS} f = Cast<to=1>(n) y = Div(x, f)",
        "computes with the number of rows",
    ),
    "a branch by a value": (
        """m = ReduceMax<keepdims=0>(x) z = Constant<value_float=0.0>() b = Greater(m, z)
        y = If(b) <then_branch = t () => (p) { p = Abs(x) }, else_branch = f () => (q) { q = Neg(x) }>""",
        "where the rows are",
    ),
    "state carried from row to row": (
        """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a) z = Constant<value=float[4] {0, 0, 0, 0}>()
        w, y = Scan<num_scan_inputs=1, body = b (float[4] s, float[4] r) => (float[4] n, float[4] o)
            { n = Add(s, r) o = Identity(n) }>(z, m)""",
        "carries values from row to row",
    ),
    "values of other rows picked by an index of each row": (
        """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a) t = Transpose(m) best = ArgMax<axis=1>(m)
        c = ai.onnx.ml.ArrayFeatureExtractor(t, best) y = Transpose(c)""",
        "from all rows",
    ),
    "picked classes that were turned before": (
        """i = ArgMax<axis=2, keepdims=0>(x) t = Transpose(i) names = Constant<value=int64[4] {3, 1, 4, 5}>()
        c = ai.onnx.ml.ArrayFeatureExtractor(names, t) s = Constant<value_ints=[-1]>() y = Reshape(c, s)""",
        "on axis 0",
    ),
    "two labels for each row in one line": (
        """a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(x, a) k = Constant<value_ints=[2]>()
        best, places = TopK(m, k) names = Constant<value=int64[4] {3, 1, 4, 5}>()
        c = ai.onnx.ml.ArrayFeatureExtractor(names, places) z = Constant<value_ints=[0]>() y = Squeeze(c, z)""",
        "one place for each row",
    ),
    "a scale over all rows": (
        "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)",
        "values of all rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_doubtful_graphs_are_refused_and_the_reason_names_the_operation(name: str) -> None:
    body, reason = REFUSED[name]
    functions = (
        '<domain: "own", opset_import: ["" : 18]> most (p) => (q)'
        " { a = Constant<value_ints=[0]>() m = ReduceMax(p, a) q = Sub(p, m) }"
    )
    doubt = refusal(body, 11 if "of old" in name else 18, functions=functions if "own.most" in body else "")
    assert reason in doubt


def test_inputs_need_a_free_first_dimension() -> None:
    assert "the input 'k' has no free first dimension" in refusal("y = Mul(x, k)", inputs="float[n, 3] x, float k")
    assert refusal("y = Mul(x, k)", inputs="float[n, 3] x, float[n, 3] k") == ""


def test_what_is_no_graph_is_refused() -> None:
    assert "no outputs" in walk.refusal(ModelProto())

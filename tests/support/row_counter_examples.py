"""For every rule of the table a graph that mixes rows by that operation, or uses their number, and has to be refused.

Graphs are in ONNX's text form. `count` is the number of rows as int64 [1], `number` the same as float32 [1].
"""

_COUNT = "z = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>() count = Slice(all, z, e, z)"
COUNTED = f"all = Shape(x) {_COUNT} number = Cast<to=1>(count)"
OPSETS = {
    "Attention": 23,
    "DFT": 20,
    "GroupNormalization": 21,
    "RMSNormalization": 23,
    "Swish": 24,
    "Upsample": 9,
    "StringSplit": 20,
}

_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity
    LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan
    Tanh ThresholdedRelu Clip"""
_BINARY = "Add Div Max Mean Min Mul PRelu Pow Sub Sum"
_COMPARED = "Equal Greater GreaterOrEqual Less LessOrEqual"
_LOGICAL = "And Or Xor"
_BITS = "BitwiseAnd BitwiseOr BitwiseXor"
_REDUCING = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare"""

_TURNED = "t = Transpose(x)"  # [4, rows]: a table whose lines are features
_LINE = "t = Transpose(x) a = Constant<value_ints=[0]>() line = Unsqueeze(t, a)"  # [1, 4, rows]: rows as places
_BACK = "u = Squeeze(v, a) y = Transpose(u)"
_FIELD = "a = Constant<value_ints=[0, 1]>() field = Unsqueeze(x, a)"  # [1, 1, rows, 4]
_STEPS = "a = Constant<value_ints=[1]>() steps = Unsqueeze(x, a)"  # [rows, 1, 4]: rows as steps of time
_BYTES = "q, scale, zero = DynamicQuantizeLinear(x)"
_ONE = "one = Constant<value=float {1}>() none = Constant<value=uint8 {0}>()"
_UINT = "b = Cast<to=2>(x) bt = Transpose(b)"

STANDARD: dict[str, str] = {
    **{op: f"{COUNTED} v = {op}(number) y = Mul(x, v)" for op in _UNARY.split()},
    **{op: f"{COUNTED} c = Constant<value_float=2.5>() v = {op}(number, c) y = Mul(x, v)" for op in _BINARY.split()},
    **{
        op: f"{COUNTED} c = Constant<value_float=3.0>() b = {op}(number, c) v = Cast<to=1>(b) y = Mul(x, v)"
        for op in _COMPARED.split()
    },
    **{
        op: f"{COUNTED} c = Constant<value_float=3.0>() b = Less(number, c) d = {op}(b, b) v = Cast<to=1>(d)"
        " y = Mul(x, v)"
        for op in _LOGICAL.split()
    },
    **{op: f"{COUNTED} b = {op}(count, count) v = Cast<to=1>(b) y = Mul(x, v)" for op in _BITS.split()},
    **{op: f"a = Constant<value_ints=[0]>() v = {op}(x, a) y = Add(x, v)" for op in _REDUCING.split()},
    "BitShift": f'{COUNTED} u = Cast<to=13>(count) b = BitShift<direction="LEFT">(u, u)'
    " v = Cast<to=1>(b) y = Mul(x, v)",
    "BitwiseNot": f"{COUNTED} b = BitwiseNot(count) v = Cast<to=1>(b) y = Mul(x, v)",
    "Cast": f"{COUNTED} y = Mul(x, number)",
    "CastLike": f"{COUNTED} v = CastLike(count, x) y = Mul(x, v)",
    "Gelu": f"{COUNTED} v = Gelu(number) y = Mul(x, v)",
    "IsInf": f"{COUNTED} b = IsInf(number) v = Cast<to=1>(b) y = Mul(x, v)",
    "IsNaN": f"{COUNTED} b = IsNaN(number) v = Cast<to=1>(b) y = Mul(x, v)",
    "Mod": f"{COUNTED} c = Constant<value_ints=[2]>() b = Mod(count, c) v = Cast<to=1>(b) y = Mul(x, v)",
    "Not": f"{COUNTED} c = Constant<value_float=3.0>() b = Less(number, c) d = Not(b) v = Cast<to=1>(d) y = Mul(x, v)",
    "Where": f"{COUNTED} c = Constant<value_float=3.0>() b = Less(number, c) v = Where(b, number, c) y = Mul(x, v)",
    "Dropout": "r = Constant<value=float {0.5}>() t = Constant<value=bool {1}>() y = Dropout(x, r, t)",
    "QuantizeLinear": f"{COUNTED} s = Constant<value=float {{1}}>() b = QuantizeLinear(number, s) v = Cast<to=1>(b)"
    " y = Mul(x, v)",
    "DequantizeLinear": f"{COUNTED} b = Cast<to=2>(number) s = Constant<value=float {{1}}>() v = DequantizeLinear(b, s)"
    " y = Mul(x, v)",
    "RegexFullMatch": f'{COUNTED} w = Cast<to=8>(count) b = RegexFullMatch<pattern="4">(w) v = Cast<to=1>(b)'
    " y = Mul(x, v)",
    "StringConcat": f"{COUNTED} w = Cast<to=8>(count) b = StringConcat(w, w) v = Cast<to=1>(b) y = Mul(x, v)",
    "Concat": "y = Concat<axis=0>(x, x)",
    "Constant": "y = Constant<value=float[1,4] {1, 2, 3, 4}>()",
    "ConstantOfShape": f"{COUNTED} cc = Concat<axis=0>(count, count) o = ConstantOfShape<value=float[1] {{1}}>(cc)"
    " y = MatMul(o, x)",
    "Expand": f"{COUNTED} cc = Concat<axis=0>(count, count) k = Constant<value=float {{1}}>() o = Expand(k, cc)"
    " y = MatMul(o, x)",
    "Flatten": "y = Flatten<axis=0>(x)",
    "Range": f"{COUNTED} n = Squeeze(count) k = Constant<value=int64 {{0}}>() s = Constant<value=int64 {{1}}>()"
    " r = Range(k, n, s) f = Cast<to=1>(r) c = Unsqueeze(f, e) y = Add(x, c)",
    "Reshape": f"{_TURNED} s = Constant<value_ints=[-1, 4]>() y = Reshape(t, s)",
    "Shape": f"{COUNTED} y = Mul(x, number)",
    "Size": "s = Size(x) v = Cast<to=1>(s) y = Mul(x, v)",
    "Split": "p, r = Split<axis=0, num_outputs=2>(x) a = Constant<value_ints=[0]>() v = ReduceMax(p, a) y = Add(x, v)",
    "Squeeze": "a = Constant<value_ints=[1]>() w = Unsqueeze(x, a) y = Squeeze(w)",
    "Tile": "r = Constant<value_ints=[2, 1]>() y = Tile(x, r)",
    "Transpose": "y = Transpose(x)",
    "Unsqueeze": "a = Constant<value_ints=[0]>() y = Unsqueeze(x, a)",
    "DFT": "a = Constant<value_ints=[2]>() u = Unsqueeze(x, a) z = Constant<value=int64 {0}>() v = DFT(u, , z)"
    " y = ReduceL2<keepdims=0>(v, a)",
    "STFT": "t = Transpose(x) a = Constant<value_ints=[2]>() u = Unsqueeze(t, a) i = Constant<value=int64 {1}>()"
    " l = Constant<value=int64 {2}>() v = STFT(u, i, , l) y = Transpose<perm=[1, 0, 2, 3]>(v)",
    "CumSum": "a = Constant<value=int64 {0}>() y = CumSum(x, a)",
    "Gather": "i = Constant<value_ints=[0]>() v = Gather(x, i) y = Add(x, v)",
    "GatherElements": "k = Constant<value=float {0}>() f = Mul(x, k) i = Cast<to=7>(f)"
    " y = GatherElements<axis=0>(x, i)",
    "GatherND": "k = Constant<value=float {0}>() a = Constant<value_ints=[1]>() m = ReduceMax(x, a) f = Mul(m, k)"
    " i = Cast<to=7>(f) y = GatherND(x, i)",
    "OneHot": f"{COUNTED} i = Cast<to=7>(x) p = Constant<value=float[2] {{0, 1}}>() o = OneHot(i, count, p)"
    " a = Constant<value_ints=[2]>() y = ReduceSum<keepdims=0>(o, a)",
    "Pad": "p = Constant<value_ints=[1, 0, 0, 0]>() y = Pad(x, p)",
    "ReverseSequence": "n = Constant<value_ints=[2, 2, 2, 2]>() y = ReverseSequence<time_axis=0, batch_axis=1>(x, n)",
    "ScatterElements": "k = Constant<value=float {0}>() f = Mul(x, k) i = Cast<to=7>(f)"
    " y = ScatterElements<axis=0>(x, i, x)",
    "ScatterND": "i = Constant<value=int64[1,1] {0}>() u = Constant<value=float[1,4] {9, 9, 9, 9}>()"
    " y = ScatterND(x, i, u)",
    "Slice": f"{_COUNT.replace('Slice(all', 'Slice(x')} y = Add(x, count)",
    "TopK": "k = Constant<value_ints=[1]>() v, i = TopK<axis=0>(x, k) y = Add(x, v)",
    "Trilu": "y = Trilu(x)",
    "ArgMax": "i = ArgMax<axis=0>(x) v = Cast<to=1>(i) y = Add(x, v)",
    "ArgMin": "i = ArgMin<axis=0>(x) v = Cast<to=1>(i) y = Add(x, v)",
    "BatchNormalization": "s = Constant<value=float[4] {1, 1, 1, 1}>() b = Constant<value=float[4] {0, 0, 0, 0}>()"
    " y, m, v = BatchNormalization<training_mode=1>(x, s, b, b, s)",
    "GroupNormalization": f"{COUNTED} {_LINE} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    " w = Transpose<perm=[0, 2, 1]>(line) g = GroupNormalization<num_groups=1>(w, s, s)"
    " y = Squeeze(g, a)",
    "InstanceNormalization": f"s = Constant<value=float[4] {{1, 1, 1, 1}}>() {_LINE}"
    f" v = InstanceNormalization(line, s, s) {_BACK}",
    "LRN": "a = Constant<value_ints=[0, 3]>() w = Unsqueeze(x, a) v = LRN<size=3, alpha=0.5>(w) y = Squeeze(v, a)",
    "LayerNormalization": f"{COUNTED} {_TURNED} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    " v = LayerNormalization(t, s) y = Transpose(v)",
    "SimplifiedLayerNormalization": f"{COUNTED} {_TURNED} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    " v = SimplifiedLayerNormalization(t, s) y = Transpose(v)",
    "RMSNormalization": f"{COUNTED} {_TURNED} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    " v = RMSNormalization(t, s) y = Transpose(v)",
    "LpNormalization": "y = LpNormalization<axis=0>(x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization<axes=[0, 1]>(x)",
    "Softmax": "y = Softmax<axis=0>(x)",
    "LogSoftmax": "y = LogSoftmax<axis=0>(x)",
    "Hardmax": "y = Hardmax<axis=0>(x)",
    "Attention": "a = Constant<value_ints=[0]>() s = Unsqueeze(x, a)"
    " v = Attention<q_num_heads=1, kv_num_heads=1>(s, s, s) y = Squeeze(v, a)",
    "Einsum": 'y = Einsum<equation="ij,kj,kl->il">(x, x, x)',
    "Gemm": "g = Gemm<transB=1>(x, x) y = MatMul(g, x)",
    "MatMul": f"{_TURNED} g = MatMul(x, t) y = MatMul(g, x)",
    "MatMulInteger": f"{_UINT} g = MatMulInteger(b, bt) f = Cast<to=1>(g) y = MatMul(f, x)",
    "QLinearMatMul": f"{_UINT} {_ONE} g = QLinearMatMul(b, one, none, bt, one, none, one, none) f = Cast<to=1>(g)"
    " y = MatMul(f, x)",
    "AveragePool": f"{_LINE} v = AveragePool<kernel_shape=[3], pads=[1, 1]>(line) {_BACK}",
    "MaxPool": f"{_LINE} v = MaxPool<kernel_shape=[3], pads=[1, 1]>(line) {_BACK}",
    "LpPool": f"{_LINE} v = LpPool<kernel_shape=[3], pads=[1, 1]>(line) {_BACK}",
    "Conv": f"{_FIELD} w = Constant<value=float[1,1,3,1] {{1, 2, 3}}>() v = Conv<pads=[1, 0, 1, 0]>(field, w)"
    " y = Squeeze(v, a)",
    "ConvInteger": f"{_FIELD} b = Cast<to=2>(field) w = Constant<value=uint8[1,1,3,1] {{1, 2, 3}}>()"
    " i = ConvInteger<pads=[1, 0, 1, 0]>(b, w) v = Cast<to=1>(i) y = Squeeze(v, a)",
    "QLinearConv": f"{_FIELD} {_ONE} b = Cast<to=2>(field) w = Constant<value=uint8[1,1,3,1] {{1, 2, 3}}>()"
    " i = QLinearConv<pads=[1, 0, 1, 0]>(b, one, none, w, one, none, one, none) v = Cast<to=1>(i) y = Squeeze(v, a)",
    "ConvTranspose": f"{_FIELD} w = Constant<value=float[1,1,3,1] {{1, 2, 3}}>()"
    " v = ConvTranspose<pads=[1, 0, 1, 0]>(field, w) y = Squeeze(v, a)",
    "DepthToSpace": f"{_STEPS} t = Transpose<perm=[1, 0, 2]>(steps) b = Constant<value_ints=[3]>()"
    " w = Unsqueeze(t, b) v = DepthToSpace<blocksize=2>(w) y = Flatten<axis=3>(v)",
    "SpaceToDepth": f"{_FIELD} v = SpaceToDepth<blocksize=2>(field) y = Flatten<axis=3>(v)",
    "GlobalAveragePool": f"{_LINE} v = GlobalAveragePool(line) {_BACK.replace('y =', 'w =')} y = Add(x, w)",
    "GlobalMaxPool": f"{_LINE} v = GlobalMaxPool(line) {_BACK.replace('y =', 'w =')} y = Add(x, w)",
    "GlobalLpPool": f"{_LINE} v = GlobalLpPool(line) {_BACK.replace('y =', 'w =')} y = Add(x, w)",
    "GRU": f"{_STEPS} w = Constant<value=float[1,3,4] {{1,1,1,1,1,1,1,1,1,1,1,1}}>()"
    " r = Constant<value=float[1,3,1] {1,1,1}>() v, l = GRU<hidden_size=1>(steps, w, r) y = Flatten<axis=1>(v)",
    "LSTM": f"{_STEPS} w = Constant<value=float[1,4,4] {{1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}}>()"
    " r = Constant<value=float[1,4,1] {1,1,1,1}>() v, l = LSTM<hidden_size=1>(steps, w, r) y = Flatten<axis=1>(v)",
    "RNN": f"{_STEPS} w = Constant<value=float[1,1,4] {{1,1,1,1}}>() r = Constant<value=float[1,1,1] {{1}}>()"
    " v, l = RNN<hidden_size=1>(steps, w, r) y = Flatten<axis=1>(v)",
    "GridSample": f"{_FIELD} g = Constant<value=float[1,1,2,2] {{0, 0, 1, 1}}>() v = GridSample(field, g)"
    " w = ReduceMax(v) y = Mul(x, w)",
    "Resize": "s = Constant<value=float[2] {2, 1}>() n = Constant<value=float[0] {}>()"
    ' y = Resize<mode="linear">(x, n, s)',
    "Upsample": 's = Constant<value=float[2] {2, 1}>() y = Upsample<mode="linear">(x, s)',
    "TfIdfVectorizer": "i = Cast<to=7>(x) t = Transpose(i)"
    ' y = TfIdfVectorizer<max_gram_length=1, max_skip_count=0, min_gram_length=1, mode="TF", ngram_counts=[0],'
    " ngram_indexes=[0], pool_int64s=[1]>(t)",
    "Bernoulli": "m = Sigmoid(x) y = Bernoulli(m)",
    "Compress": "c = Constant<value=bool[2] {1, 1}>() y = Compress<axis=0>(x, c)",
    "DynamicQuantizeLinear": f"{_BYTES} y = DequantizeLinear(q, scale, zero)",
    "Multinomial": "i = Multinomial(x) y = Cast<to=1>(i)",
    "NonMaxSuppression": "a = Constant<value_ints=[0]>() b = Unsqueeze(x, a) "
    "s = Constant<value=float[1,1,4] {1,1,1,1}>() i = NonMaxSuppression(b, s) y = Cast<to=1>(i)",
    "NonZero": "i = NonZero(x) f = Cast<to=1>(i) m = ReduceSum(f) y = Add(x, m)",
    "RandomNormal": "r = RandomNormal<shape=[4]>() y = Add(x, r)",
    "RandomNormalLike": "y = RandomNormalLike(x)",
    "RandomUniform": "r = RandomUniform<shape=[4]>() y = Add(x, r)",
    "RandomUniformLike": "y = RandomUniformLike(x)",
    "StringSplit": "w = Cast<to=8>(x) p, n = StringSplit(w) y = Cast<to=1>(n)",
    "Unique": "v = Unique<axis=0>(x) m = ReduceMax(v) y = Add(x, m)",
    "If": f"{COUNTED} c = Constant<value_float=3.0>() l = Less(number, c) b = Squeeze(l)"
    " y = If(b) <then_branch = t () => (p) { p = Identity(x) }, else_branch = f () => (q) { q = Neg(x) }>",
    "Loop": f"{COUNTED} n = Squeeze(count) t = Constant<value=bool {{1}}>()"
    " y = Loop(n, t, x) <body = b (int64 i, bool c, float[M, 4] s) => (bool d, float[M, 4] r)"
    " { d = Identity(c) r = Add(s, s) }>",
    "Scan": "s = Constant<value=float[4] {0, 0, 0, 0}>()"
    " w, y = Scan<num_scan_inputs=1, body = b (float[4] s, float[4] r) => (float[4] n, float[4] o)"
    " { n = Add(s, r) o = Identity(n) }>(s, x)",
}

_ML = "ai.onnx.ml"
LEARNED: dict[str, str] = {
    "ArrayFeatureExtractor": f"i = Constant<value_ints=[0]>() {_TURNED} v = {_ML}.ArrayFeatureExtractor(t, i)"
    " w = Transpose(v) y = Add(x, w)",
    "Binarizer": f"{COUNTED} v = {_ML}.Binarizer<threshold=3.0>(number) y = Mul(x, v)",
    "CategoryMapper": f'{COUNTED} v = {_ML}.CategoryMapper<cats_int64s=[4, 1], cats_strings=["a", "b"]>(count)'
    f' w = {_ML}.CategoryMapper<cats_int64s=[4, 1], cats_strings=["a", "b"]>(v) f = Cast<to=1>(w) y = Mul(x, f)',
    "FeatureVectorizer": f"{_TURNED} y = {_ML}.FeatureVectorizer<inputdimensions=[4]>(t)",
    "Imputer": f"{_TURNED} v = {_ML}.Imputer<imputed_value_floats=[1.0], replaced_value_float=0.0>(t) y = Transpose(v)",
    "LabelEncoder": f"{COUNTED} l = {_ML}.LabelEncoder<keys_int64s=[4], values_floats=[2.0], default_float=1.0>(count)"
    " y = Mul(x, l)",
    "LinearClassifier": f"{_TURNED} l, y = {_ML}.LinearClassifier<coefficients=[1.0, 2.0]>(t)",
    "LinearRegressor": f"{_TURNED} y = {_ML}.LinearRegressor<coefficients=[1.0, 2.0, 3.0, 4.0]>(t)",
    "Normalizer": f'{_TURNED} v = {_ML}.Normalizer<norm="L2">(t) y = Transpose(v)',
    "OneHotEncoder": f"{COUNTED} o = {_ML}.OneHotEncoder<cats_int64s=[1, 2, 3, 4]>(count) y = Mul(x, o)",
    "SVMClassifier": f"{_TURNED} l, y = {_ML}.SVMClassifier<coefficients=[1.0]>(t)",
    "SVMRegressor": f"{_TURNED} y = {_ML}.SVMRegressor<coefficients=[1.0]>(t)",
    "Scaler": f"{_TURNED} v = {_ML}.Scaler<offset=[1.0], scale=[2.0]>(t) y = Transpose(v)",
    "TreeEnsemble": f"{_TURNED} y = {_ML}.TreeEnsemble(t)",
    "TreeEnsembleClassifier": f"{_TURNED} l, y = {_ML}.TreeEnsembleClassifier(t)",
    "TreeEnsembleRegressor": f"{_TURNED} y = {_ML}.TreeEnsembleRegressor(t)",
    "ZipMap": f"{_TURNED} y = {_ML}.ZipMap<classlabels_int64s=[1, 2]>(t)",
}

_MS = "com.microsoft"
_SEQUENCE = "a = Constant<value_ints=[0]>() s = Unsqueeze(x, a)"
_WEIGHTS = (
    "w = Constant<value=float[4,12] {"
    + ",".join(["0.1"] * 48)
    + "}>() b = Constant<value=float[12] {"
    + (",".join(["0.1"] * 12) + "}>()")
)
RUNTIME: dict[str, str] = {
    "Attention": f"{_SEQUENCE} {_WEIGHTS} v = {_MS}.Attention<num_heads=1>(s, w, b) y = Squeeze(v, a)",
    "QAttention": f"{_SEQUENCE} {_ONE} q = Cast<to=2>(s) w = Constant<value=uint8[4,12] {{{','.join(['1'] * 48)}}}>()"
    f" b = Constant<value=float[12] {{{','.join(['0.1'] * 12)}}}>()"
    f" v = {_MS}.QAttention<num_heads=1>(q, w, b, one, one) y = Squeeze(v, a)",
    "MultiHeadAttention": f"{_SEQUENCE} v = {_MS}.MultiHeadAttention<num_heads=1>(s, s, s) y = Squeeze(v, a)",
    "BiasGelu": f"{COUNTED} v = {_MS}.BiasGelu(number, number) y = Mul(x, v)",
    "CDist": f'd = {_MS}.CDist<metric="euclidean">(x, x) y = MatMul(d, x)',
    "DynamicQuantizeLSTM": f"{_STEPS} y = {_MS}.DynamicQuantizeLSTM(steps)",
    "DynamicQuantizeMatMul": "w = Constant<value=uint8[4,4] {" + ",".join(["3"] * 16) + "}>()"
    f" s = Constant<value=float {{1}}>() y = {_MS}.DynamicQuantizeMatMul(x, w, s)",
    "EmbedLayerNormalization": "i = Cast<to=6>(x) t = Transpose(i)"
    f" y = {_MS}.EmbedLayerNormalization(t, t, x, x, x, x, x)",
    "FastGelu": f"{COUNTED} v = {_MS}.FastGelu(number) y = Mul(x, v)",
    "FusedConv": f"{_FIELD} w = Constant<value=float[1,1,3,1] {{1, 2, 3}}>()"
    f" v = {_MS}.FusedConv<pads=[1, 0, 1, 0]>(field, w) y = Squeeze(v, a)",
    "FusedGemm": f"g = {_MS}.FusedGemm<transB=1>(x, x) y = MatMul(g, x)",
    "FusedMatMul": f"g = {_MS}.FusedMatMul<transB=1>(x, x) y = MatMul(g, x)",
    "Gelu": f"{COUNTED} v = {_MS}.Gelu(number) y = Mul(x, v)",
    "MatMulIntegerToFloat": f"{_UINT} s = Constant<value=float {{1}}>() g = {_MS}.MatMulIntegerToFloat(b, bt, s, s)"
    " y = MatMul(g, x)",
    "NhwcMaxPool": f"a = Constant<value_ints=[0, 3]>() f = Unsqueeze(x, a) q = Cast<to=2>(f)"
    f" v = {_MS}.NhwcMaxPool<kernel_shape=[3, 1], pads=[1, 0, 1, 0]>(q) u = Cast<to=1>(v) y = Squeeze(u, a)",
    "QGemm": f"{_UINT} {_ONE} y = {_MS}.QGemm<transB=1>(b, one, none, b, one, none)",
    "QLinearAdd": f"{_UINT} {_ONE} g = {_MS}.QLinearAdd(b, one, none, bt, one, none, one, none) y = Cast<to=1>(g)",
    "QLinearMul": f"{_UINT} {_ONE} g = {_MS}.QLinearMul(b, one, none, bt, one, none, one, none) y = Cast<to=1>(g)",
    "QLinearAveragePool": f"{_FIELD} {_ONE} q = Cast<to=2>(field)"
    f" p = {_MS}.QLinearAveragePool<kernel_shape=[3, 1], pads=[1, 0, 1, 0]>(q, one, none, one, none)"
    " v = Cast<to=1>(p) y = Squeeze(v, a)",
    "QLinearGlobalAveragePool": f"{_FIELD} {_ONE} q = Cast<to=2>(field)"
    f" p = {_MS}.QLinearGlobalAveragePool(q, one, none, one, none) v = Cast<to=1>(p) m = Squeeze(v, a) y = Add(x, m)",
    "QLinearConcat": f"b = Cast<to=2>(x) {_ONE} g = {_MS}.QLinearConcat<axis=0>(one, none, b, one, none, b, one, none)"
    " y = Cast<to=1>(g)",
    "QLinearLeakyRelu": f"{COUNTED} {_ONE} u = Cast<to=2>(count) g = {_MS}.QLinearLeakyRelu(u, one, none, one, none)"
    " v = Cast<to=1>(g) y = Mul(x, v)",
    "QLinearSigmoid": f"{COUNTED} {_ONE} u = Cast<to=2>(count) g = {_MS}.QLinearSigmoid(u, one, none, one, none)"
    " v = Cast<to=1>(g) y = Mul(x, v)",
    "QuickGelu": f"{COUNTED} v = {_MS}.QuickGelu(number) y = Mul(x, v)",
    "SkipLayerNormalization": f"{COUNTED} {_LINE} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    f" v = {_MS}.SkipLayerNormalization(line, line, s) {_BACK}",
    "SkipSimplifiedLayerNormalization": f"{COUNTED} {_LINE} s = ConstantOfShape<value=float[1] {{1}}>(count)"
    f" v = {_MS}.SkipSimplifiedLayerNormalization(line, line, s) {_BACK}",
    "Trilu": f"y = {_MS}.Trilu(x)",
    "Unique": f"a = Constant<value_ints=[-1]>() f = Reshape(x, a) v, i, c = {_MS}.Unique(f)"
    " m = ReduceMax(v) y = Add(x, m)",
}
EXAMPLES = {"": STANDARD, "ai.onnx.ml": LEARNED, "com.microsoft": RUNTIME}


def text(domain: str, op: str) -> str:
    """A model in ONNX's text form: x float32 [rows, 4] -> y."""
    opset = OPSETS.get(op, 20 if op in ("Gelu", "RegexFullMatch", "StringConcat") else 18) if not domain else 18
    domains = f'["" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1]'
    return f"<ir_version: 10, opset_import: {domains}> g (float[rows, 4] x) => (y) {{ {EXAMPLES[domain][op]} }}"

"""Operators against ONNX Runtime, where geometry, versions or types make a difference."""

import numpy as np
import pytest
import torch

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import load

from .helpers import assert_equals_runtime, normal, text_model

IMAGE = "g (float[N,C,H,W] x) => (float[A,B,D,E] y)"


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2, 1], dilations = [1, 2], pads = [1, 2, 1, 2]",
        "strides = [2, 2], pads = [0, 1, 2, 3]",
        'auto_pad = "SAME_UPPER", strides = [2, 3]',
        'auto_pad = "SAME_LOWER", strides = [2, 2]',
        'auto_pad = "VALID"',
    ],
)
def test_convolution_geometry(attributes: str) -> None:
    proto = text_model(
        f"{IMAGE} {{ y = Conv<{attributes}>(x, w, b) }}".replace("<>", ""),
        {"w": normal(6, 4, 3, 2), "b": normal(6)},
    )
    assert_equals_runtime(proto, {"x": normal(2, 4, 9, 8)}, {"x": normal(1, 4, 12, 7)})


@pytest.mark.parametrize("rank", [1, 3])
def test_convolution_of_other_ranks(rank: int) -> None:
    dims = ",".join("dhw"[:rank])
    proto = text_model(
        f"g (float[N,C,{dims}] x) => (float[N,C,{dims}] y) {{ y = Conv<group = 2>(x, w) }}",
        {"w": normal(4, 1, *[3] * rank)},
    )
    assert_equals_runtime(proto, {"x": normal(2, 2, *[5] * rank)})


@pytest.mark.parametrize(
    "attributes",
    [
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        "strides = [2, 2], pads = [0, 1, 1, 0]",
        "strides = [2, 3], output_shape = [11, 20]",
        "strides = [2, 2], dilations = [2, 1], group = 2",
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
    ],
)
def test_transposed_convolution_geometry(attributes: str) -> None:
    out = 6 if "group" in attributes else 3
    proto = text_model(
        f"{IMAGE} {{ y = ConvTranspose<{attributes}>(x, w, b) }}",
        {"w": normal(4, 3, 3, 3), "b": normal(out)},
    )
    assert_equals_runtime(proto, {"x": normal(2, 4, 5, 6)})


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", ["[0,0,0,0]", "[1,1,1,1]", "[0,1,1,2]"])
@pytest.mark.parametrize(
    "operator", ["MaxPool", "AveragePool", "AveragePool<count_include_pad = 1>"]
)
def test_pooling_geometry(operator: str, pads: str, ceil: int) -> None:
    name, _, extra = operator.partition("<")
    settings = f"kernel_shape = [3,3], strides = [2,2], pads = {pads}, ceil_mode = {ceil}"
    settings += f", {extra[:-1]}" if extra else ""
    proto = text_model(f"{IMAGE} {{ y = {name}<{settings}>(x) }}", opset=19)
    assert_equals_runtime(proto, {"x": normal(2, 3, 8, 9)}, {"x": normal(1, 3, 7, 10)})


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_pooling_to_the_same_size(name: str, auto_pad: str) -> None:
    settings = f'kernel_shape = [3,2], strides = [2,2], auto_pad = "{auto_pad}"'
    proto = text_model(f"{IMAGE} {{ y = {name}<{settings}>(x) }}")
    assert_equals_runtime(proto, {"x": normal(1, 2, 7, 8)})


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("node", "call"),
    [
        ("Conv<AUTO>(x, w)", "F.conv2d(x, self.w, padding=(1, 1))"),
        ("Conv<kernel_shape = [3,2], AUTO>(x, v)", "F.pad(x, ["),
        ("MaxPool<kernel_shape = [3,5], AUTO>(x)", "(x, (3, 5), stride=(1, 1), padding=(1, 2))"),
        ("AveragePool<kernel_shape = [3,3], ceil_mode = 1, AUTO>(x)", "padding=(1, 1), count_"),
    ],
)
def test_padding_to_the_same_size_is_certain_for_strides_of_1(
    node: str, call: str, auto_pad: str
) -> None:
    node = node.replace("AUTO", f'auto_pad = "{auto_pad}"')
    weights = {"w": normal(2, 4, 3, 3), "v": normal(2, 4, 3, 2)}
    used = {name: array for name, array in weights.items() if f"{name})" in node}
    proto = text_model(f"{IMAGE} {{ y = {node} }}", used, opset=19)
    code = assert_equals_runtime(proto, {"x": normal(2, 4, 7, 6)}, {"x": normal(1, 4, 1, 8)}).code
    assert call in code
    assert "SAME" not in code
    assert "pad_same" not in code


@pytest.mark.parametrize(
    "body", ["alpha = 0.5, beta = 2.0", "transA = 1", "transB = 1, beta = 0.5"]
)
def test_gemm(body: str) -> None:
    trans_a, trans_b = "transA" in body, "transB" in body
    proto = text_model(
        f"g (float[a,b] x) => (float[c,d] y) {{ y = Gemm<{body}>(x, w, c) }}",
        {"w": normal(3, 4) if trans_b else normal(4, 3), "c": normal(1, 3)},
    )
    assert_equals_runtime(proto, {"x": normal(4, 2) if trans_a else normal(2, 4)})


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_gemm_with_a_vector_is_a_linear_layer(kind: str) -> None:
    dtype = np.dtype(kind if kind == "float16" else "float32")
    proto = text_model(
        f"g ({kind}[N,4] x) => ({kind}[N,3] y) {{ y = Gemm(x, w, c) }}",
        {"w": normal(4, 3).astype(dtype), "c": normal(3).astype(dtype)},
    )
    module = assert_equals_runtime(proto, {"x": normal(2, 4).astype(dtype)}, tolerance=5e-3)
    assert ", self.w.t(), self.c)" in module.code


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_flattens_before_version_13(operator: str, opset: int) -> None:
    proto = text_model(
        f"g (float[N,3,4] x) => (float[N,3,4] y) {{ y = {operator}<axis = 1>(x) }}", opset=opset
    )
    assert_equals_runtime(proto, {"x": normal(2, 3, 4)})


@pytest.mark.parametrize(
    "body",
    [
        "y = Clip<min = -0.5, max = 0.5>(x)",
        "y = HardSigmoid<alpha = 0.3>(x)",
        "y = Selu(x)",
        "y = PRelu(x, s)",
        "y = LRN<size = 3>(x)",
        "y = LpNormalization<axis = 1, p = 1>(x)",
        "y = InstanceNormalization(x, c, c)",
        "y = Transpose(x)",
        'y = Pad<mode = "reflect", pads = [0,0,2,1,0,0,1,2]>(x)',
        'y = Pad<mode = "edge", pads = [1,0,2,1,0,1,1,2]>(x)',
        "y = Pad<pads = [0,0,-1,1,0,0,1,2], value = 3.0>(x)",
        "y = DepthToSpace<blocksize = 2>(x)",
        'y = Upsample<mode = "linear">(x, up)',
    ],
)
def test_old_versions_of_operators(body: str) -> None:
    opset = 9 if "Upsample" in body else 10
    arrays = {"s": normal(4, 1, 1), "c": normal(4), "up": np.float32([1, 1, 2, 3])}
    used = {name: array for name, array in arrays.items() if name in body.split("(")[1]}
    proto = text_model(f"{IMAGE} {{ {body} }}", used, opset=opset)
    assert_equals_runtime(proto, {"x": normal(2, 4, 5, 6)})


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("target", ["scales", "sizes"])
def test_resize(mode: str, coordinates: str, target: str) -> None:
    arrays = {
        "scales": np.array([1, 1, 2, 0.6], dtype=np.float32),
        "sizes": np.array([2, 3, 9, 5]),
    }
    inputs = "x, , scales" if target == "scales" else "x, , , sizes"
    settings = f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}"'
    proto = text_model(f"{IMAGE} {{ y = Resize<{settings}>({inputs}) }}", {target: arrays[target]})
    assert_equals_runtime(proto, {"x": normal(2, 3, 5, 6)})


def test_resize_uses_interpolate_where_it_is_the_same() -> None:
    proto = text_model(
        f'{IMAGE} {{ y = Resize<mode = "linear">(x, , scales) }}',
        {"scales": np.array([1, 1, 2, 2], dtype=np.float32)},
    )
    module = assert_equals_runtime(proto, {"x": normal(1, 2, 4, 5)}, {"x": normal(2, 2, 3, 3)})
    assert "interpolate(" in module.code


@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        ("y = Div(x, k)", "int64"),
        ("y = Mod(x, k)", "int32"),
        ("y = Mod<fmod = 1>(x, k)", "int32"),
        ("y = ReduceMean<axes = [1]>(x)", "int32"),
        ("y = ReduceSum(x)", "int32"),
    ],
)
def test_integer_arithmetic_stays_integer(body: str, dtype: str) -> None:
    onnx_type = dtype
    arrays = {"k": np.array([[3, -3, 2]], dtype=dtype)} if "k)" in body else {}
    graph = f"g ({onnx_type}[N,3] x) => ({onnx_type}[N,M] y) {{ {body} }}"
    x = np.array([[7, 7, -7], [-8, 5, 9]], dtype=dtype)
    assert_equals_runtime(text_model(graph, arrays), {"x": x})


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather<axis = 1>(x, i)",
        "y = Gather(x, j)",
        "y = GatherElements<axis = 1>(x, e)",
        "y = GatherND(x, n)",
        "y = ScatterND(x, n, u)",
        'y = ScatterND<reduction = "add">(x, n, u)',
        "y = ScatterElements<axis = 1>(x, e, v)",
        'y = ScatterElements<axis = 1, reduction = "mul">(x, e, v)',
        "y, k = TopK<axis = 1, largest = 0>(x, two)",
        "y = CumSum<exclusive = 1, reverse = 1>(x, one)",
        "y = Tile(x, reps)",
        "y = Slice(x, s0, s1, s2, s3)",
    ],
)
def test_indexing(body: str) -> None:
    arrays = {
        "i": np.array([[0, -1], [2, 1]]),
        "j": np.array(-2),
        "e": np.array([[0, -1], [2, 1], [1, 3]]),
        "n": np.array([[0, 1], [2, -1]]),
        "u": normal(2),
        "v": normal(3, 2),
        "two": np.array([2]),
        "one": np.array(1),
        "reps": np.array([2, 1]),
        "s0": np.array([-1, 100]),
        "s1": np.array([-100, 0]),
        "s2": np.array([0, -1]),
        "s3": np.array([-1, -2]),
    }
    used = {
        k: a for k, a in arrays.items() if k in body[body.rindex("(") :].strip("()").split(", ")
    }
    proto = text_model(f"g (float[3,4] x) => (float[p,q] y) {{ {body} }}", used)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert_equals_runtime(proto, {"x": normal(3, 4)})


SHAPE_MATH = """g (float[N,C,H,W] x) => (float[A,B,D] y, float[A,B] z) {
    shape = Shape(x)
    n = Gather<axis = 0>(shape, zero)
    n1 = Unsqueeze(n, axis0)
    hw = Slice(shape, two, four)
    area = ReduceProd<axes = [0]>(hw)
    target = Concat<axis = 0>(n1, minus, area)
    y = Reshape(x, target)
    count = Cast<to = 1>(area)
    root = Sqrt(count)
    pooled = ReduceSum<keepdims = 0>(y, last)
    z = Div(pooled, root)
}"""
SHAPE_ARRAYS = {
    "zero": np.array(0),
    "axis0": np.array([0]),
    "two": np.array([2]),
    "four": np.array([4]),
    "minus": np.array([-1]),
    "last": np.array([2]),
}


def test_shape_arithmetic_stays_on_the_host_and_dynamic() -> None:
    module = assert_equals_runtime(
        text_model(SHAPE_MATH, SHAPE_ARRAYS),
        {"x": normal(2, 3, 4, 5)},
        {"x": normal(5, 2, 3, 3)},
    )
    assert not list(module.buffers())
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    x = torch.from_numpy(normal(2, 3, 6, 5))
    torch.testing.assert_close(compiled(x), module(x))


def test_nothing_is_made_on_a_fixed_device() -> None:
    proto = text_model(
        """g (float[N,4] x) => (float[N,4] y) {
            shape = Shape(x)
            zeros = ConstantOfShape(shape)
            n = Gather<axis = 0>(shape, zero)
            numbers = Range(zero, n, one)
            column = Unsqueeze(numbers, axis1)
            floats = Cast<to = 1>(column)
            a = Add(x, zeros)
            b = Add(a, floats)
            y = Add(b, k)
        }""",
        {"zero": np.array(0), "one": np.array(1), "axis1": np.array([1]), "k": normal(2, 4)[:1]},
    )
    module = assert_equals_runtime(proto, {"x": normal(3, 4)})
    module.to("meta")
    assert module(torch.empty(5, 4, device="meta")).device.type == "meta"


def test_dynamic_shape_input_is_read_while_running() -> None:
    proto = text_model("g (float[N,4] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }")
    assert_equals_runtime(
        proto,
        {"x": normal(3, 4), "s": np.array([0, -1])},
        {"x": normal(3, 4), "s": np.array([6, 2])},
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent_layers(kind: str, direction: str, lengths: bool) -> None:
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (direction == "bidirectional")
    arrays = {
        "w": normal(count, gates * 5, 3, seed=1),
        "r": normal(count, gates * 5, 5, seed=2),
        "b": normal(count, 2 * gates * 5, seed=3),
    }
    arguments = "x, w, r, b"
    if lengths:
        arrays["n"] = np.array([4, 2], dtype=np.int32)
        arguments += ", n"
    settings = f'hidden_size = 5, direction = "{direction}"'
    settings += ", linear_before_reset = 1" if kind == "GRU" and not lengths else ""
    proto = text_model(
        f"""g (float[T,N,3] x) => (float[T,D,N,5] y, float[D,N,5] h) {{
            y, h = {kind}<{settings}>({arguments})
        }}""",
        arrays,
    )
    module = assert_equals_runtime(proto, {"x": normal(4, 2, 3)})
    assert set(module.tensor_names.values()) == {"w", "r", "b"}
    module(torch.from_numpy(normal(4, 2, 3)))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_regions_by_their_largest_samples() -> None:
    settings = 'mode = "max", output_height = 2, output_width = 3, spatial_scale = 0.5'
    proto = text_model(
        "g (float[N,C,H,W] x, float[R,4] r, int64[R] b) => (float[R,C,p,q] y) "
        f"{{ y = RoiAlign<{settings}, sampling_ratio = 2>(x, r, b) }}"
    )
    regions = np.array([[0, 0, 9, 7], [4, 2, 20, 15]], dtype=np.float32)
    assert_equals_runtime(proto, {"x": normal(2, 3, 6, 7), "r": regions, "b": np.array([1, 0])})


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 2]])
def test_deformable_convolution(pads: list[int]) -> None:
    height, width = 5 + pads[0] + pads[2] - 1, 6 + pads[1] + pads[3] - 1
    proto = text_model(
        "g (float[1,2,5,6] x, float[N,8,P,Q] o) => (float[N,3,P,Q] y) "
        f"{{ y = DeformConv<pads = {pads}, kernel_shape = [2, 2]>(x, w, o) }}",
        {"w": normal(3, 2, 2, 2)},
        opset=19,
    )
    offsets = 0.4 * normal(1, 8, height, width, seed=1)
    assert_equals_runtime(proto, {"x": normal(1, 2, 5, 6), "o": offsets})


def test_multinomial_draws_by_probability() -> None:
    torch.manual_seed(0)
    proto = text_model(
        "g (float[N,3] x) => (int32[N,M] y) { y = Multinomial<sample_size = 4000>(x) }"
    )
    odds = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    drawn = load(proto)(odds.log())
    assert (drawn.shape, drawn.dtype) == ((2, 4000), torch.int32)
    shares = torch.bincount(drawn[0], minlength=3) / 4000
    torch.testing.assert_close(shares, odds[0], atol=0.03, rtol=0)
    assert bool((drawn[1] == 1).all())


def test_unsupported_settings_are_named_with_their_node() -> None:
    proto = text_model(
        "g (float[N,C,W] x, float[A,B,C] w, float[N,E,W] o) => (float[N,C,W] y) "
        "{ y = DeformConv<pads = [0, 1]>(x, w, o) }",
        opset=19,
    )
    with pytest.raises(UnsupportedModelError, match=r"DeformConv: other than two.* at 'y'"):
        load(proto)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("s = Shape(w) n = Slice(s, zero, one) f = Constant<value_int = 0>() c = CastLike(f, x) "
         "b = Expand(c, n) "
         "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", "F.conv2d(x, self.w, padding=(1, 1))"),
        ("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", "F.max_pool2d(x, (2, 2))"),
        ('y = Pad<mode = "reflect">(x, pads)', "F.pad(x, [1, 2, 0, 0], mode='reflect')"),
        ("y = Slice(x, zero, end, two, one)", "return x\n"),
        ("y = Slice(x, one, end, two, one)", "x[:, :, 1:]"),
        ("y = Mul(x, tenth)", "x * 0.1\n"),
        ("r = Reshape(x, shape) y = Expand(r, shape)", "torch.reshape(x, (2, 4, 30, 1))"),
        ("y = Expand(x, wide)", "x.expand(3, -1, -1, -1, -1)"),
    ],
)  # fmt: skip
def test_generated_code_says_no_more_than_needed(body: str, line: str) -> None:
    arrays = {
        "w": normal(3, 4, 3, 3),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "end": np.array([10**9]),
        "pads": np.array([0, 0, 0, 1, 0, 0, 0, 2]),
        "tenth": np.array(0.1, dtype=np.float32),
        "shape": np.array([2, 4, 30, 1]),
        "wide": np.array([3, 1, 4, 1, 1]),
    }
    names = {name.strip("(),") for name in body.replace("(", " ").split()}
    used = {name: array for name, array in arrays.items() if name in names}
    proto = text_model(f"g (float[N,4,H,W] x) => (float[a,b,c,d] y) {{ {body} }}", used)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert line in assert_equals_runtime(proto, {"x": normal(2, 4, 6, 5)}).code


@pytest.mark.parametrize(
    "body",
    [
        "y = Where(m, x, low)",
        "n = Where(m, x, low) y = Softmax(n)",
        "y = Clip(x, low)",
        "y = Pad(x, pads, low)",
        "k = Cast<to = 1>(m) y = Mul(k, low)",
    ],
)
def test_the_lowest_number_of_float32(body: str) -> None:
    """Its shortest decimal text is beyond the range of float32."""
    arrays = {
        "low": np.array(np.finfo(np.float32).min),
        "pads": np.array([0, 1, 0, 1]),
        "m": np.array([[True, False, True]]),
    }
    proto = text_model(f"g (float[N,3] x) => (float[N,M] y) {{ {body} }}", arrays)
    module = assert_equals_runtime(proto, {"x": normal(2, 3)})
    assert "e+38" not in module.code or "3.4028234663852886e+38" in module.code


@pytest.mark.parametrize(
    ("node", "call"),
    [
        ("ReduceSum<keepdims = 0>(x)", "torch.sum(x)"),
        ("ReduceMax(x)", "torch.amax(x, dim=(0, 1, 2), keepdim=True)"),
        ("ReduceL2<keepdims = 0>(x, axis)", "torch.linalg.vector_norm(x, dim=(1,))"),
        ("ReduceL1(x, axis)", "torch.linalg.vector_norm(x, 1, dim=(1,), keepdim=True)"),
        ("ReduceSumSquare<keepdims = 0>(x, axis)", "torch.sum(x * x, dim=(1,))"),
        ("ReduceLogSumExp(x)", "torch.logsumexp(x, dim=(0, 1, 2), keepdim=True)"),
        ("ReduceProd(x, axis)", "torch.prod(x, dim=1, keepdim=True)"),
        ("ReduceProd<keepdims = 0>(x)", "torch.prod(x)"),
        ("ReduceLogSum<keepdims = 0>(x)", "torch.log(sum_1)"),
        ("ReduceProd(x)", "reduce(x, 'Prod', None, True, False)"),
        ("ReduceSum<noop_with_empty_axes = 1>(x)", "reduce(x, 'Sum', None, True, True)"),
    ],
)
@pytest.mark.parametrize("rank", ["known", "unknown"])
def test_reductions_are_calls_of_pytorch(node: str, call: str, rank: str) -> None:
    arrays = {"axis": np.array([1])} if "axis)" in node else {}
    proto = text_model(f"g (float[N,A,B] x) => (float[a,b,c] y) {{ y = {node} }}", arrays, 18)
    for value in [*proto.graph.output, *(proto.graph.input if rank == "unknown" else [])]:
        value.type.tensor_type.ClearField("shape")
    code = assert_equals_runtime(proto, {"x": abs(normal(2, 3, 4))}).code
    assert (call if rank == "known" or "(0, 1, 2)" not in call else "reduce(x, ") in code


@pytest.mark.parametrize("axes", ["N,L", "N,L,1"])
def test_signals_of_real_numbers_may_lack_their_last_axis(axes: str) -> None:
    """PyTorch's exporter writes them so, and ONNX Runtime takes both."""
    graph = f"g (float[{axes}] x) => (float[N,F,K,2] y) {{ y = STFT(x, step, window) }}"
    proto = text_model(graph, {"step": np.array(4), "window": normal(16)})
    extra = (1,) if axes.endswith("1") else ()
    assert_equals_runtime(proto, {"x": normal(2, 64, *extra)}, {"x": normal(3, 40, *extra)})


@pytest.mark.parametrize(
    "node",
    [
        "y = Expand(s, none)",
        "n = Shape(s) y = Expand(s, n)",
        "n = Shape(x) m = Slice(n, start, start) y = Expand(s, m)",
        "y = Transpose(s)",
    ],
)
def test_scalars_have_no_axes_to_expand_or_to_transpose(node: str) -> None:
    """BEiT expands scalars to a shape that it computes."""
    graph = f"g (float[N,4] x) => (float y) {{ s = ReduceSum<keepdims = 0>(x) {node} }}"
    arrays = {"none": np.zeros(0, np.int64), "start": np.array([2])}
    assert_equals_runtime(text_model(graph, arrays), {"x": normal(2, 4)}, {"x": normal(3, 4)})

"""One small use of each operator in every form that its versions gave it."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from .helpers import normal

OLDEST, NEWEST = 7, onnx.defs.onnx_opset_version()


def _array(*values: object, dtype: object = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)


def _scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


INPUTS = {
    "x": normal(2, 4, 6, 5),
    "x2": normal(4, 3),
    "x3": normal(3, 2, 4),
    "xp": np.abs(normal(3, 4)) % 1 + 0.01,
    "xw": (10 * normal(3, 4)).round() / 4,
    "xs": np.array([[1, np.inf, -np.inf, np.nan, 0]], dtype=np.float32),
    "xi": np.arange(12).reshape(4, 3) % 5 - 2,
    "xu": np.arange(12, dtype=np.uint8).reshape(4, 3) % 5,
    "xb": np.arange(12).reshape(4, 3) % 2 == 0,
    "xc": np.arange(12).reshape(4, 3) % 3 == 0,
    "xe": normal(2, 1, 3, 1),
    "xl": np.array([[2, 0, 1], [0, 2, 2]]),
    "xg": np.tanh(normal(2, 3, 3, 2)),
    "xr": np.array([[0, 0, 3, 3], [1, 2, 4, 5]], dtype=np.float32),
}
"""Graph inputs; those that a form names."""

CONSTANTS = {
    "channels": normal(4, 1, 1, seed=1),
    "c": normal(4, seed=2),
    "v": np.abs(normal(4, seed=3)) + 0.5,
    "shift": normal(4, seed=16),
    "mean": normal(4, seed=17),
    "ints": _array(3, -3, 2),
    "shifts": _array(0, 1, 2, dtype=np.uint8),
    "low": _scalar(-0.5),
    "high": _scalar(0.5),
    "keep": _array(True, False, True, True, dtype=bool),
    "four": _array(2, 3),
    "wide": _array(2, 1, 3),
    "weight": normal(4, 2, 3, 2, seed=4),
    "kernel": normal(4, 2, 3, 3, seed=5),
    "one": np.array(1),
    "ratio": _scalar(0.3),
    "ratio_d": np.array(0.3, dtype=np.float64),
    "negative": _array(0, -1),
    "places": _array([0, -1, 2], [1, 1, 0], [3, 2, 1], [0, 0, 0]),
    "tuples": _array([0, 1], [2, -1]),
    "batched": _array([1], [0], [-1], [2]),
    "pair": normal(2, seed=6),
    "updates": normal(4, 3, seed=7),
    "matrix": normal(3, 5, seed=8),
    "row": normal(1, 5, seed=9),
    "gru_w": normal(1, 15, 4, seed=10),
    "gru_r": normal(1, 15, 5, seed=11),
    "lstm_w": normal(1, 20, 4, seed=12),
    "lstm_r": normal(1, 20, 5, seed=13),
    "rnn_w": normal(1, 5, 4, seed=14),
    "rnn_r": normal(1, 5, 5, seed=15),
    "none": np.zeros(0, dtype=np.float32),
    "pads": _array(0, 0, 1, 2, 0, 0, 0, 1),
    "pads2": _array(1, 2, 0, 1),
    "axes23": _array(2, -1),
    "fill": _scalar(3),
    "scales": np.array([1, 1, 2, 0.6], dtype=np.float32),
    "scales2": np.array([2, 0.6], dtype=np.float32),
    "zero": np.array(0),
    "five": np.array(5),
    "two": np.array(2),
    "axis1": _array(1),
    "axes13": _array(1, 3),
    "shape": _array(0, -1, 5),
    "lengths": _array(3, 1),
    "images": _array(0, 1),
    "starts": _array(1, -4),
    "ends": _array(4, 100),
    "axes": _array(1, -2),
    "steps": _array(2, 1),
    "sizes": _array(1, 3),
    "repeats": _array(2, 3),
    "k": _array(2),
    "up": np.array([1, 1, 2, 3], dtype=np.float32),
    "depth": np.array(4),
    "values": np.array([-1, 2], dtype=np.float32),
    "boxes": np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 2, 1, 3]]], dtype=np.float32),
    "scores": np.array([[[0.9, 0.8, 0.7]]], dtype=np.float32),
    "labels": _array(0, 2, 1, 1),
}
"""Initializers."""

_WINDOW = "kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]"
_CONV = "strides = [2, 1], pads = [1, 0, 1, 2], group = 2"

FORMS: dict[str, dict[int, str]] = {
    **{
        name: {7: f"y = {name}(x, channels)"}
        for name in ("Add", "Sub", "Mul", "Div", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
    },
    **{
        name: {7: f"y = {name}(xp)"}
        for name in (
            *("Abs", "Acos", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos"),
            *("Cosh", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity"),
            *("LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid"),
            *("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "Size"),
            *("NonZero", "EyeLike"),
        )
    },
    **{name: {7: f"y = {name}(xb, xc)"} for name in ("And", "Or", "Xor")},
    **{
        name: {7: f"y = {name}(x, x)", 8: f"y = {name}(x, channels)"}
        for name in ("Max", "Min", "Mean", "Sum")
    },
    **{
        name: {7: f"y = {name}(x)"}
        for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    },
    **{
        f"Reduce{kind}": {
            7: f"y = Reduce{kind}<axes = [1, 3], keepdims = 0>(x)",
            (13 if kind == "Sum" else 18): f"y = Reduce{kind}<keepdims = 0>(x, axes13)",
        }
        for kind in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    **{
        f"Reduce{kind}": {
            7: f"y = Reduce{kind}<axes = [1]>(xp)",
            18: f"y = Reduce{kind}(xp, axis1)",
        }
        for kind in ("LogSum", "LogSumExp")
    },
    **{
        name: {7: f"y = {name}(x3)", 13: f"y = {name}(x3)"}
        for name in ("Softmax", "LogSoftmax", "Hardmax")
    },
    "Attention": {23: "y = Attention<is_causal = 1, scale = 0.7>(x, x, x)"},
    **{
        name: {
            7: f"y = {name}<axis = 1, keepdims = 0>(xw)",
            12: f"y = {name}<axis = -1, select_last_index = 1>(xw)",
        }
        for name in ("ArgMax", "ArgMin")
    },
    "Acosh": {9: "y = Acosh(xa)"},
    "AveragePool": {
        7: f"y = AveragePool<{_WINDOW}, count_include_pad = 1>(x)",
        10: f"y = AveragePool<{_WINDOW}, ceil_mode = 1>(x)",
        19: f"y = AveragePool<{_WINDOW}, dilations = [1, 2]>(x)",
    },
    "BatchNormalization": {7: "y = BatchNormalization<epsilon = 0.01>(x, c, shift, mean, v)"},
    "BitShift": {11: 'y = BitShift<direction = "LEFT">(xu, shifts)'},
    "Cast": {7: "y = Cast<to = 7>(xw)", 13: "y = Cast<to = 9>(xw)"},
    "CastLike": {15: "y = CastLike(xw, one)"},
    "Celu": {12: "y = Celu<alpha = 2.0>(x)", 28: "y = Celu(x)"},
    "Clip": {7: "y = Clip<min = -0.5, max = 0.5>(x)", 11: "y = Clip(x, low, high)"},
    "Compress": {9: "y = Compress<axis = 1>(x, keep)"},
    "Concat": {7: "y = Concat<axis = 1>(x, x)", 11: "y = Concat<axis = -2>(x, x)"},
    "ConstantOfShape": {9: "y = ConstantOfShape<value = float[1] {2.5}>(four)"},
    "Conv": {7: f"y = Conv<{_CONV}>(x, weight, c)"},
    "ConvTranspose": {7: "y = ConvTranspose<strides = [2, 3], group = 2>(x, kernel, c)"},
    "CumSum": {11: "y = CumSum<reverse = 1>(x, one)"},
    "DFT": {17: "y = DFT<axis = 2, onesided = 1>(xe)", 20: "y = DFT<onesided = 1>(xe, , two)"},
    "DepthToSpace": {
        7: "y = DepthToSpace<blocksize = 2>(x)",
        11: 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)',
    },
    "Det": {11: "y = Det(xq)"},
    "Dropout": {7: "y = Dropout<ratio = 0.3>(x)", 12: "y = Dropout(x, ratio)"},
    "Einsum": {12: 'y = Einsum<equation = "abij, abkj -> baik">(x, x)'},
    "Equal": {7: "y = Equal(xi, ints)", 11: "y = Equal(xw, xw)"},
    "Expand": {8: "y = Expand(x2, wide)"},
    "Flatten": {7: "y = Flatten<axis = 2>(x)", 11: "y = Flatten<axis = -1>(x)"},
    "GRU": {
        7: "y, h = GRU<hidden_size = 5, linear_before_reset = 1>(x3, gru_w, gru_r)",
        14: "y, h = GRU<hidden_size = 5>(x3, gru_w, gru_r)",
    },
    "Gather": {7: "y = Gather<axis = 1>(x, four)", 11: "y = Gather<axis = -1>(x, negative)"},
    "GatherElements": {11: "y = GatherElements(x2, places)"},
    "GatherND": {11: "y = GatherND(x2, tuples)", 12: "y = GatherND<batch_dims = 1>(x2, batched)"},
    "Gemm": {
        7: "y = Gemm<alpha = 0.5, beta = 2.0>(x2, matrix, row)",
        11: "y = Gemm(x2, matrix)",
    },
    "GridSample": {16: "y = GridSample(x, xg)", 20: 'y = GridSample<mode = "cubic">(x, xg)'},
    "GroupNormalization": {21: "y = GroupNormalization<num_groups = 2>(x, c, v)"},
    "InstanceNormalization": {7: "y = InstanceNormalization(x, c, v)"},
    "IsInf": {10: "y = IsInf<detect_negative = 0>(xs)"},
    "IsNaN": {9: "y = IsNaN(xs)"},
    "LRN": {7: "y = LRN<size = 3>(x)"},
    "LSTM": {
        7: "y, h, k = LSTM<hidden_size = 5>(x3, lstm_w, lstm_r)",
        14: "y, h, k = LSTM<hidden_size = 5>(x3, lstm_w, lstm_r)",
    },
    "LpNormalization": {7: "y = LpNormalization<axis = 1, p = 1>(x)"},
    "LpPool": {
        7: f"y = LpPool<{_WINDOW}, p = 3>(x)",
        18: f"y = LpPool<{_WINDOW}, ceil_mode = 1, dilations = [1, 2]>(x)",
    },
    "MatMul": {7: "y = MatMul(x2, matrix)"},
    "MaxPool": {
        7: f"y = MaxPool<{_WINDOW}>(x)",
        8: f"y, i = MaxPool<{_WINDOW}, storage_order = 1>(x)",
        10: f"y = MaxPool<{_WINDOW}, dilations = [1, 2], ceil_mode = 1>(x)",
    },
    "MaxUnpool": {9: "y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(xm, maxima)"},
    "MeanVarianceNormalization": {9: "y = MeanVarianceNormalization<axes = [0, 2]>(x)"},
    "Mod": {10: "y = Mod<fmod = 1>(x, channels)", 13: "y = Mod(xi, ints)"},
    "NonMaxSuppression": {10: "y = NonMaxSuppression(boxes, scores, five, high)"},
    "Not": {7: "y = Not(xb)"},
    "OneHot": {9: "y = OneHot(xl, depth, values)", 11: "y = OneHot<axis = 0>(xl, depth, values)"},
    "PRelu": {7: "y = PRelu(x, channels)"},
    "Pad": {
        7: "y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 3.0>(x)",
        11: "y = Pad(x, pads, fill)",
        13: 'y = Pad<mode = "reflect">(x, pads)',
        18: 'y = Pad<mode = "edge">(x, pads2, , axes23)',
        19: 'y = Pad<mode = "wrap">(x, pads)',
    },
    "Pow": {7: "y = Pow(xp, xp)", 12: "y = Pow(xi, two)"},
    "RNN": {
        7: "y, h = RNN<hidden_size = 5>(x3, rnn_w, rnn_r)",
        14: 'y, h = RNN<hidden_size = 5, activations = ["Relu"]>(x3, rnn_w, rnn_r)',
    },
    "Range": {11: "y = Range(zero, five, two)"},
    "Reshape": {7: "y = Reshape(x, shape)", 14: "y = Reshape<allowzero = 1>(x2, repeats_six)"},
    "Resize": {
        10: "y = Resize(x, scales)",
        11: 'y = Resize<mode = "linear">(x, none, scales)',
        13: 'y = Resize<mode = "cubic">(x, , scales)',
        18: 'y = Resize<axes = [2, 3], mode = "linear">(x, , scales2)',
        19: 'y = Resize<antialias = 1, mode = "linear">(x, , scales)',
    },
    "ReverseSequence": {10: "y = ReverseSequence(x3, lengths)"},
    "RoiAlign": {
        10: "y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(x, xr, images)",
    },
    "MaxRoiPool": {7: "y = MaxRoiPool<pooled_shape = [2, 2]>(x, regions)"},
    "Round": {11: "y = Round(xw)", 22: "y = Round(xp)"},
    "Scatter": {9: "y = Scatter(x2, places, updates)"},
    "ScatterElements": {
        11: "y = ScatterElements<axis = -1>(x2, places_unique, updates)",
        16: 'y = ScatterElements<reduction = "add">(x2, places, updates)',
        18: 'y = ScatterElements<reduction = "max">(x2, places, updates)',
    },
    "ScatterND": {
        11: "y = ScatterND(x2, tuples, pair)",
        16: 'y = ScatterND<reduction = "mul">(x2, tuples, pair)',
        18: 'y = ScatterND<reduction = "min">(x2, tuples, pair)',
    },
    "Shape": {7: "y = Shape(x)", 15: "y = Shape<start = 1, end = -1>(x)"},
    "Shrink": {9: "y = Shrink<lambd = 0.4, bias = 0.1>(x)"},
    "Slice": {
        7: "y = Slice<starts = [1, -4], ends = [4, 100], axes = [1, 2]>(x)",
        10: "y = Slice(x, starts, ends, axes, steps)",
    },
    "SoftmaxCrossEntropyLoss": {12: "y = SoftmaxCrossEntropyLoss(x2, labels)"},
    "SpaceToDepth": {7: "y = SpaceToDepth<blocksize = 2>(x_even)"},
    "Split": {
        7: "y, z = Split<axis = 1, split = [1, 3]>(x)",
        13: "y, z = Split<axis = 1>(x, sizes)",
        18: "y, z = Split<axis = -1, num_outputs = 2>(x)",
    },
    "Squeeze": {7: "y = Squeeze<axes = [1, 3]>(xe)", 13: "y = Squeeze(xe, axes13)"},
    "ThresholdedRelu": {10: "y = ThresholdedRelu<alpha = 0.4>(x)"},
    "Tile": {7: "y = Tile(x2, repeats)"},
    "TopK": {
        7: "y, i = TopK<axis = 1, k = 2>(x)",
        10: "y, i = TopK<axis = 1>(x, k)",
        11: "y, i = TopK<axis = 1, largest = 0>(x, k)",
    },
    "Transpose": {7: "y = Transpose<perm = [1, 0, 3, 2]>(x)", 13: "y = Transpose(x)"},
    "Trilu": {14: "y = Trilu<upper = 0>(x, one)"},
    "Unique": {11: "y, f, i, n = Unique<sorted = 0>(xw)", 28: "y, f, i, n = Unique(xw)"},
    "Unsqueeze": {7: "y = Unsqueeze<axes = [1, 3]>(x2)", 13: "y = Unsqueeze(x2, axes13)"},
    "Upsample": {
        7: "y = Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(x)",
        9: 'y = Upsample<mode = "linear">(x, up)',
    },
    "Where": {9: "y = Where(xb, x2, x2)"},
}
"""For each operator, the text of a node by the first version in which this form is valid."""

INPUTS["xa"] = INPUTS["xp"] + 1.5
INPUTS["x_even"] = normal(1, 2, 4, 6)
INPUTS["xm"] = normal(1, 1, 2, 2)
INPUTS["xq"] = normal(2, 3, 3)
CONSTANTS["maxima"] = _array(5, 7, 13, 15).reshape(1, 1, 2, 2)
CONSTANTS["repeats_six"] = _array(6, 2)
CONSTANTS["places_unique"] = _array([0, -1, 1], [1, 2, 0], [2, 1, 0], [0, 1, 2])
CONSTANTS["regions"] = np.array([[0, 0, 0, 3, 3], [1, 1, 2, 4, 5]], dtype=np.float32)


ALWAYS_FLOAT32 = {"scales", "scales2", "up", "none", "ratio"}


def versions(op_type: str) -> Iterator[int]:
    """Versions at which the standard changed an operator, from operator set 7 on."""
    known = {
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op_type and schema.domain == "" and not schema.deprecated
    }
    first = max(max((v for v in known if v <= OLDEST), default=min(known)), OLDEST)
    yield from sorted({max(first, min(FORMS[op_type]))} | {v for v in known if v > first})


def form(op_type: str, version: int) -> str:
    """The node's text for an operator set version."""
    return FORMS[op_type][max(since for since in FORMS[op_type] if since <= version)]


def _wide(arrays: dict[str, np.ndarray], name: str, double: bool) -> np.ndarray:
    array = arrays[name]
    fixed = array.dtype != np.float32 or name in ALWAYS_FLOAT32
    return array if fixed or not double else array.astype(np.float64)


def form_model(
    op_type: str, version: int, with_shapes: bool = True, double: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and what to feed it.

    Args:
        op_type: Operator.
        version: Operator set version.
        with_shapes: Whether the model states shapes; without them not even ranks are known.
        double: Whether to compute in float64.
    """
    node = parser.parse_node(form(op_type, version))
    feed = {name: _wide(INPUTS, name, double) for name in node.input if name in INPUTS}
    inputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            [f"{name}_{axis}" for axis in range(array.ndim)] if with_shapes else None,
        )
        for name, array in feed.items()
    ]
    initializers = [
        numpy_helper.from_array(_wide(CONSTANTS, name, double), name)
        for name in dict.fromkeys(node.input)
        if name in CONSTANTS
    ]
    graph = helper.make_graph([node], "g", inputs, [], initializers)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    opset = helper.make_opsetid("", version)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for value in model.graph.output:
        if not value.type.tensor_type.elem_type:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        value.type.tensor_type.ClearField("shape")
    return model, feed

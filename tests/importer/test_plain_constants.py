"""Learned values that a file stores as plain numbers in `Constant` nodes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.export.writeback import write_back
from onnxprune.importer import ImportedModel, load
from onnxprune.model import payload_sha256
from onnxprune.tensors import find_tensors
from onnxprune.validate import inspect_model

from .helpers import assert_equals_runtime, normal, outputs, runtime_outputs, text_model

PLAIN = """g (float[N,3,4] x) => (float[N,2] y) {
    b = Constant<value_floats = [0.1, -0.2]>()
    s = Constant<value_floats = [1.5, 0.5]>()
    z = Constant<value_floats = [0.25, -0.75]>()
    m = Constant<value_floats = [0.0, 0.125]>()
    v = Constant<value_floats = [1.0, 2.0]>()
    slope = Constant<value_float = 0.3>()
    two = Constant<value_float = 2.0>()
    axes = Constant<value_ints = [2]>()
    row = Constant<value_int = 0>()
    c = Conv(x, w, b)
    n = BatchNormalization<momentum = 0.75>(c, s, z, m, v)
    p = PRelu(n, slope)
    d = Mul(p, two)
    r = ReduceMax(d, axes)
    y = Gather<axis = 2>(r, row)
}"""


def _plain() -> onnx.ModelProto:
    return text_model(PLAIN, {"w": normal(2, 3, 1)}, opset=18)


def _attributes(proto: onnx.ModelProto) -> dict[str, AttributeProto]:
    nodes = [node for node in proto.graph.node if node.op_type == "Constant"]
    return {node.output[0]: node.attribute[0] for node in nodes}


def _trained(proto: onnx.ModelProto) -> ImportedModel:
    module = load(proto).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for seed in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(normal(8, 3, 4, seed=seed))).square().mean().backward()
        optimizer.step()
    return module.eval()


def test_slots_decide_what_plain_numbers_are() -> None:
    tensors = find_tensors(_plain())
    roles = {name: tensor.role for name, tensor in tensors.items()}
    assert (roles["b"], roles["s"], roles["z"]) == ("bias", "scale", "shift")
    assert (roles["m"], roles["v"], roles["slope"]) == ("running_mean", "running_var", "slope")
    trainable = {name for name, tensor in tensors.items() if tensor.trainable}
    assert trainable == {"w", "b", "s", "z", "slope"}  # `two` is a number of the formula
    assert (tensors["b"].shape, tensors["slope"].shape, tensors["axes"].shape) == ((2,), (), (1,))
    assert (tensors["b"].dtype, tensors["row"].dtype) == (np.float32, np.int64)
    assert tensors["axes"].array().tolist() == [2]
    assert inspect_model(_plain()).parameters == 6 + 2 + 2 + 2 + 1


def test_they_are_parameters_of_the_imported_module() -> None:
    module = assert_equals_runtime(_plain(), {"x": normal(5, 3, 4)})
    assert set(module.tensor_names.values()) == {"w", "b", "s", "z", "slope"}
    assert set(module.buffer_names.values()) == {"m", "v"}
    np.testing.assert_array_equal(module.b.detach(), np.float32([0.1, -0.2]))
    assert module.slope.shape == ()


def test_trained_they_come_back_as_plain_numbers(tmp_path: Path) -> None:
    proto = _plain()
    module = _trained(proto)
    onnxprune.export(module, tmp_path / "trained.onnx")
    written = onnx.load(tmp_path / "trained.onnx")
    before, after = _attributes(proto), _attributes(written)
    for name in ("b", "s", "z", "m", "v", "slope"):
        assert (after[name].name, after[name].type) == (before[name].name, before[name].type)
        assert after[name] != before[name]
    for name in ("two", "axes", "row"):
        assert after[name] == before[name]
    assert list(after["b"].floats) == module.b.tolist()
    assert after["slope"].f == module.slope.item()
    x = normal(5, 3, 4, seed=9)
    (expected,) = runtime_outputs(written, {"x": x})
    np.testing.assert_allclose(outputs(module, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
    again = load(tmp_path / "trained.onnx").export_tensors()
    for name, tensor in module.export_tensors().items():
        np.testing.assert_array_equal(again[name], tensor)


def test_untrained_the_file_stays_as_it_is(tmp_path: Path) -> None:
    proto = _plain()
    onnx.save(proto, tmp_path / "model.onnx")
    onnxprune.export(load(tmp_path / "model.onnx"), tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_payload_digest_covers_them() -> None:
    proto = _plain()
    for name, field in (("b", "floats"), ("axes", "ints"), ("slope", "f"), ("row", "i")):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        attribute = _attributes(changed)[name]
        if field in ("floats", "ints"):
            getattr(attribute, field)[0] += 1
        else:
            setattr(attribute, field, getattr(attribute, field) + 1)
        assert payload_sha256(changed) != payload_sha256(proto), name


def test_as_many_numbers_as_before_are_written() -> None:
    proto = _plain()
    with pytest.raises(ModelError, match="another shape"):
        write_back(proto, {"b": np.zeros(3, np.float32)})
    with pytest.raises(ModelError, match="only float tensors"):
        write_back(proto, {"axes": np.array([1])})


def test_a_bias_after_a_matmul_trains_where_weights_are_in_constants(tmp_path: Path) -> None:
    proto = text_model(
        """g (float[N,2] x, bool ask) => (float[N,2] y) {
            w = Constant<value = float[2,2] {1, 2, 3, 4}>()
            h = MatMul(x, w)
            y = If(ask)<
                then_branch = t () => (float[N,2] a) {
                    b = Constant<value_floats = [0.5, -0.5]>()
                    a = Add(h, b)
                },
                else_branch = e () => (float[N,2] r) { r = Relu(h) }
            >
        }"""
    )
    x = normal(3, 2)
    feeds = [{"x": x, "ask": np.array(True)}, {"x": x, "ask": np.array(False)}]
    module = assert_equals_runtime(proto, *feeds)
    assert set(module.tensor_names.values()) == {"w", "b"}
    module(torch.from_numpy(x), torch.tensor(True)).sum().backward()
    with torch.no_grad():
        module.b -= 0.1 * module.b.grad
    onnxprune.export(module, tmp_path / "trained.onnx")
    written = onnx.load(tmp_path / "trained.onnx")
    branch = written.graph.node[2].attribute[0].g
    np.testing.assert_allclose(branch.node[0].attribute[0].floats, [0.2, -0.8], rtol=1e-6)
    assert_equals_runtime(written, *feeds)

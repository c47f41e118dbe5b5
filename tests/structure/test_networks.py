"""The closure of whole networks as exporters write them: exact, and something is found."""

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from onnxprune.cascade import Closure, close
from onnxprune.structure import read_flow
from onnxprune.tensors import find_tensors

from .test_reader import Tensors, applied, run, stored

SIZE = 32


def exported(name: str) -> onnx.ModelProto:
    """A network of torchvision with random norms, through the exporter based on TorchScript."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
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
            (torch.zeros(2, 3, SIZE, SIZE),),
            buffer,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNorm apart
        )
    return onnx.load_from_string(buffer.getvalue())


def cut(proto: onnx.ModelProto, sparsity: float) -> tuple[Tensors, Tensors]:
    """Random masks, which take all of a tenth of the out channels, and pruned tensors."""
    rng = np.random.default_rng(0)
    tensors, masks = stored(proto), {}
    for name, tensor in find_tensors(proto).items():
        if not tensor.prunable:
            continue
        mask = rng.random(tensor.shape) > sparsity
        gone = rng.random(tensor.shape[tensor.output_axis or 0]) < 0.1
        mask[(slice(None),) * (tensor.output_axis or 0) + (gone,)] = False
        masks[name] = torch.from_numpy(mask)
    return masks, {n: t * masks[n] if n in masks else t for n, t in tensors.items()}


def closed(proto: onnx.ModelProto, masks: Tensors, pruned: Tensors) -> Closure:
    """The closure, whose outputs under ONNX Runtime are those before it."""
    closure = close(read_flow(proto), pruned, masks)
    for a, b in zip(run(proto, pruned), run(proto, applied(pruned, closure)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    return closure


@pytest.mark.parametrize(
    ("name", "sparsity"),
    [
        ("resnet18", 0.98),
        ("mobilenet_v3_small", 0.95),
        ("densenet121", 0.95),
        ("shufflenet_v2_x0_5", 0.98),
    ],
)
def test_networks_of_torchvision_keep_their_outputs(name: str, sparsity: float) -> None:
    proto = exported(name)
    masks, pruned = cut(proto, sparsity)
    closure = closed(proto, masks, pruned)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert sum(closure.dead.values()) > 0.02 * kept


def model(
    nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], shape: list[int]
) -> onnx.ModelProto:
    stored_arrays = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), name)
        for name, a in arrays.items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored_arrays,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape)


def dead_of(proto: onnx.ModelProto, **gone: object) -> dict[str, int]:
    """Dead weights by tensor, with some places of masks cut."""
    tensors = stored(proto)
    masks = {
        name: torch.ones(tensor.shape, dtype=torch.bool)
        for name, tensor in find_tensors(proto).items()
        if tensor.prunable
    }
    for name, where in gone.items():
        masks[name][where] = False  # type: ignore[index]
    return closed(
        proto, masks, {n: t * masks[n] if n in masks else t for n, t in tensors.items()}
    ).dead


def test_channels_are_followed_through_layouts_of_tensorflow() -> None:
    """NHWC in, NCHW around the convolutions, NHWC for what lies between."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "a"], ["h"]),
        helper.make_node("Transpose", ["h"], ["n"], perm=[0, 2, 3, 1]),
        helper.make_node("Mul", ["n", "gain"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Transpose", ["r"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["b", "c"], ["y"], pads=[1] * 4),
    ]
    arrays = {"a": rand(3, 2, 3, 3), "gain": rand(3), "c": rand(2, 3, 3, 3)}
    proto = model(nodes, arrays, [6, 6, 2])
    assert dead_of(proto, c=(slice(None), 1)) == {"a": 18}
    assert dead_of(proto, a=2) == {"c": 18}


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_transposed_convolutions_have_their_channels_the_other_way_round(
    strides: list[int],
) -> None:
    """Weights are (in_channels, out_channels, kh, kw), and a bias is no constant of the input."""
    nodes = [
        helper.make_node("Conv", ["x", "a", "d"], ["h"]),
        helper.make_node("ConvTranspose", ["h", "b", "e"], ["u"], strides=strides),
        helper.make_node("Conv", ["u", "c"], ["y"]),
    ]
    arrays = {"a": rand(3, 2, 1, 1), "d": np.zeros(3), "b": rand(3, 4, 2, 2)}
    arrays |= {"e": rand(4), "c": rand(2, 4, 1, 1)}
    proto = model(nodes, arrays, [2, 4, 4])
    assert dead_of(proto, c=(slice(None), 3)) == {"b": 12}
    assert dead_of(proto, b=1) == {"a": 2}
    assert dead_of(proto, a=0) == {"b": 16}
    arrays["d"] = rand(3)
    proto = model(nodes, arrays, [2, 4, 4])
    assert dead_of(proto, a=0) == {}, "a constant is not the same at the borders"


@pytest.mark.parametrize(("fill", "dead"), [(0.0, {}), (0.7, {"c": 18})])
def test_explicit_padding_ends_constants_unless_it_is_the_same(
    fill: float, dead: dict[str, int]
) -> None:
    """Channel 1 is 0.7 everywhere, and is padded with 0 or with 0.7."""
    nodes = [
        helper.make_node("Conv", ["x", "a", "b"], ["h"]),
        helper.make_node("Pad", ["h", "pads", "fill"], ["p"]),
        helper.make_node("Conv", ["p", "c", "d"], ["y"]),
    ]
    arrays = {"a": rand(2, 2, 1, 1), "b": np.array([0.1, 0.7]), "c": rand(2, 2, 3, 3)}
    arrays |= {"d": rand(2), "fill": np.array(fill), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    assert dead_of(model(nodes, arrays, [2, 5, 5]), a=1) == dead


def test_a_norm_with_batch_statistics_ends_constants() -> None:
    """Only a scale of zero counts: what varies, varies with the other samples, too."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node(
            "BatchNormalization",
            ["h", "scale", "shift", "mean", "var"],
            ["n", "new_mean", "new_var"],
            training_mode=1,
        ),
        helper.make_node("Conv", ["n", "c"], ["y"]),
    ]
    arrays = {"a": rand(3, 2, 1, 1), "c": rand(2, 3, 1, 1), "scale": np.array([1.0, 0, 2.0])}
    arrays |= {"shift": np.zeros(3), "mean": rand(3), "var": rand(3)}
    proto = model(nodes, arrays, [2, 5, 5])
    assert dead_of(proto) == {"a": 2, "c": 2}
    assert dead_of(proto, c=(slice(None), 2)) == {"a": 4, "c": 2}

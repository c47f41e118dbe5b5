"""The closure on small graphs; equality is judged by ONNX Runtime."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cascade import Closure, close
from onnxprune.export import write_back
from onnxprune.structure import read_flow

Arrays = dict[str, np.ndarray]
NORM = ("scale", "shift", "mean", "var")


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def norm(source: str, output: str, prefix: str) -> onnx.NodeProto:
    names = " ".join(f"{prefix}.{part}" for part in NORM)
    return node("BatchNormalization", f"{source} {names}", output)


def norm_arrays(prefix: str, channels: int, rng: np.random.Generator) -> Arrays:
    values = [rng.uniform(0.5, 1.5, channels) for _ in NORM]
    values[1:3] = [value - 1 for value in values[1:3]]
    return {f"{prefix}.{part}": value for part, value in zip(NORM, values, strict=True)}


def build(
    nodes: list[onnx.NodeProto],
    arrays: Arrays,
    channels: int = 2,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """A model of `x` (N, channels, 6, 6); its arrays are float32 initializers."""
    stored = [
        numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), name)
        for name, v in arrays.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 6, 6])
    graph = helper.make_graph(
        nodes,
        "graph",
        [x],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def run(proto: onnx.ModelProto, batch: int = 3) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    shape = (batch, *session.get_inputs()[0].shape[1:])
    x = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    return session.run(None, {"x": x})


def closed(
    proto: onnx.ModelProto,
    masks: Mapping[str, np.ndarray],
    floors: Mapping[str, int] | None = None,
) -> Closure:
    """Close a model, and check that its outputs stay, whatever the dead weights were."""
    tensors = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in proto.graph.initializer
        if t.data_type == TensorProto.FLOAT
    }
    kept = {name: torch.from_numpy(np.asarray(mask, dtype=bool)) for name, mask in masks.items()}
    tensors.update({name: tensors[name] * mask for name, mask in kept.items()})
    flow = read_flow(proto)
    found = close(flow, tensors, kept, floors)
    before = run(write_back(proto, {n: t.numpy() for n, t in tensors.items()}))
    most = sum(found.dead.values()) // 2
    half = close(flow, tensors, kept, floors, most=most)
    assert sum(half.dead.values()) == most
    gone = {name: kept[name] & ~mask for name, mask in half.masks.items()}
    again = close(flow, tensors, kept, floors, among=gone)
    assert again.dead == half.dead, "the weights that went depend on others that did not"
    for closure in (half, found):
        new = {name: closure.changes.get(name, t) for name, t in tensors.items()}
        new.update({name: new[name] * mask for name, mask in closure.masks.items()})
        after = run(write_back(proto, {n: t.numpy() for n, t in new.items()}))
        for a, b in zip(before, after, strict=True):
            if closure.changes:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(a, b)
    if not found.changes:
        # A weight may be dead only because those behind it are, so these go first.
        gone = dict(tensors)
        for name in reversed([n for step in proto.graph.node for n in step.input]):
            if name not in found.dead or gone[name] is not tensors[name]:
                continue
            changed = tensors[name].clone()
            changed[tuple((kept[name] & ~found.masks[name]).nonzero()[-1])] = 7.0
            other = {n: t.numpy() for n, t in (gone | {name: changed}).items()}
            for a, b in zip(before, run(write_back(proto, other)), strict=True):
                np.testing.assert_array_equal(a, b, "a dead weight has a say")
            gone[name] = new[name]
    assert not close(flow, new, found.masks, floors).dead, "a second closure finds more"
    for name, mask in found.masks.items():
        assert not (mask & ~kept[name]).any(), "a weight came back"
        assert found.dead.get(name, 0) == int((kept[name] & ~mask).sum())
    return found


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


def full(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=bool)


def two_convs(bias: float, pads: list[int], **more: np.ndarray) -> onnx.ModelProto:
    """A convolution of which channel 1 will be constant, Relu, and a 3x3 convolution."""
    arrays = {"a": rand(2, 2, 1, 1), "b": np.array([0.1, bias]), "c": rand(2, 2, 3, 3), **more}
    second = "r c d" if "d" in more else "r c"
    nodes = [node("Conv", "x a b", "h"), node("Relu", "h", "r")]
    return build([*nodes, node("Conv", second, "y", pads=pads)], arrays)


CUT = np.array([[[[True]], [[True]]], [[[False]], [[False]]]])
"""A mask of the first convolution that takes all weights of its channel 1."""


def test_a_negative_constant_is_zero_behind_relu_and_its_readers_die() -> None:
    found = closed(two_convs(-1.0, [1, 1, 1, 1]), {"a": CUT, "c": full(2, 2, 3, 3)})
    assert found.dead == {"c": 18}
    assert found.dead_channels["c"].inputs == 1
    assert not found.changes


def test_a_constant_through_a_padded_convolution_stays_and_is_reported() -> None:
    proto = two_convs(1.0, [1, 1, 1, 1], d=rand(2))
    found = closed(proto, {"a": CUT, "c": full(2, 2, 3, 3)})
    assert not found.dead
    assert [(u.tensor, u.channels) for u in found.unfolded] == [("c", 1)]
    assert "pads" in found.unfolded[0].reason


def test_a_constant_goes_into_the_bias_of_an_unpadded_convolution() -> None:
    proto = two_convs(1.0, [0, 0, 0, 0], d=rand(2))
    found = closed(proto, {"a": CUT, "c": full(2, 2, 3, 3)})
    assert found.dead == {"c": 18}
    want = rand(2) + rand(2, 2, 3, 3).astype(np.float32)[:, 1].sum((1, 2))
    np.testing.assert_allclose(found.changes["d"].numpy(), want, rtol=1e-6)


def test_a_constant_without_a_bias_to_take_it_stays() -> None:
    found = closed(two_convs(1.0, [0, 0, 0, 0]), {"a": CUT, "c": full(2, 2, 3, 3)})
    assert not found.dead
    assert "no bias" in found.unfolded[0].reason


def test_a_bias_that_two_convolutions_share_takes_nothing() -> None:
    arrays = {"a": rand(2, 2, 1, 1), "b": np.array([1.0, 1.0]), "c": rand(2, 2, 1, 1)}
    nodes = [node("Conv", "x a b", "h"), node("Relu", "h", "r"), node("Conv", "r c b", "y")]
    found = closed(build(nodes, arrays), {"a": CUT, "c": full(2, 2, 1, 1)})
    assert not found.changes
    assert not found.dead


@pytest.mark.parametrize("second_reader", [False, True])
def test_a_running_mean_takes_a_constant_only_if_it_alone_follows(second_reader: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rand(2, 2, 1, 1), "b": np.array([0.1, 1.0]), "c": rand(2, 2, 3, 3)}
    nodes = [
        *(node("Conv", "x a b", "r"), node("Conv", "r c", "m")),
        norm("m", "y", "n"),
    ]
    outputs = ("y", "m") if second_reader else ("y",)
    proto = build(nodes, arrays | norm_arrays("n", 2, rng), outputs=outputs)
    found = closed(proto, {"a": CUT, "c": full(2, 2, 3, 3)})
    assert found.changes.keys() == (set() if second_reader else {"n.mean"})


def test_what_a_scale_of_zero_cuts_off_is_dead() -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rand(2, 2, 3, 3)} | norm_arrays("n", 2, rng)
    arrays["n.scale"][1] = 0
    found = closed(
        build([node("Conv", "x a", "h"), norm("h", "y", "n")], arrays), {"a": full(2, 2, 3, 3)}
    )
    assert found.dead == {"a": 18}
    assert found.masks["a"][0].all()


def test_unused_channels_die_through_a_depthwise_convolution() -> None:
    arrays = {"a": rand(2, 2, 1, 1), "d": rand(2, 1, 3, 3), "c": rand(2, 2, 1, 1)}
    nodes = [
        *(node("Conv", "x a", "h"), node("Conv", "h d", "i", group=2, pads=[1, 1, 1, 1])),
        node("Conv", "i c", "y"),
    ]
    mask = full(2, 2, 1, 1)
    mask[:, 1] = False
    found = closed(build(nodes, arrays), {"a": full(2, 2, 1, 1), "d": full(2, 1, 3, 3), "c": mask})
    assert found.dead == {"a": 2, "d": 9}


def test_a_residual_add_keeps_what_only_one_branch_uses() -> None:
    arrays = {"a": rand(2, 2, 1, 1), "c": rand(2, 2, 1, 1), "e": rand(2, 2, 1, 1)}
    nodes = [
        *(node("Conv", "x a", "h"), node("Conv", "h c", "i")),
        *(node("Add", "h i", "s"), node("Conv", "s e", "y")),
    ]
    unread = full(2, 2, 1, 1)
    unread[:, 1] = False
    proto = build(nodes, arrays)
    masks = {"a": full(2, 2, 1, 1), "c": full(2, 2, 1, 1), "e": full(2, 2, 1, 1)}
    assert not closed(proto, masks | {"c": unread}).dead
    assert closed(proto, masks | {"e": unread}).dead == {"c": 2}
    assert closed(proto, masks | {"c": unread, "e": unread}).dead == {"a": 2, "c": 1}


def test_concatenated_channels_are_told_apart_by_their_offset() -> None:
    arrays = {"a": rand(1, 2, 1, 1), "b": rand(3, 2, 1, 1), "c": rand(2, 4, 1, 1)}
    nodes = [
        *(node("Conv", "x a", "h"), node("Conv", "x b", "i")),
        *(node("Concat", "h i", "j", axis=1), node("Conv", "j c", "y")),
    ]
    mask = full(2, 4, 1, 1)
    mask[:, 2] = False
    masks = {"a": full(1, 2, 1, 1), "b": full(3, 2, 1, 1), "c": mask}
    found = closed(build(nodes, arrays), masks)
    assert found.dead == {"b": 2}
    assert not found.masks["b"][1].any()


def test_flattened_channels_reach_their_columns_of_a_gemm() -> None:
    arrays = {"a": rand(2, 2, 3, 3), "g": rand(3, 32), "shape": np.array([0, -1])}
    nodes = [
        *(node("Conv", "x a", "h"), node("Reshape", "h shape", "f")),
        node("Gemm", "f g", "y", transB=1),
    ]
    mask = full(3, 32)
    mask[:, :16] = False
    found = closed(build(nodes, arrays), {"a": full(2, 2, 3, 3), "g": mask})
    assert found.dead == {"a": 18}
    assert not found.masks["a"][0].any()


def test_a_gate_of_zero_cuts_its_channel() -> None:
    arrays = {"a": rand(2, 2, 1, 1), "g": rand(2, 2, 1, 1), "b": np.array([0.1, -1.0])}
    nodes = [
        *(node("Conv", "x a", "h"), node("GlobalAveragePool", "h", "p")),
        *(node("Conv", "p g b", "q"), node("Relu", "q", "s"), node("Mul", "h s", "y")),
    ]
    found = closed(build(nodes, arrays), {"a": full(2, 2, 1, 1), "g": CUT})
    assert not found.dead, "channel 1 of the features goes on into the gate of channel 0"
    mask = CUT.copy()
    mask[0, 1] = False
    assert closed(build(nodes, arrays), {"a": full(2, 2, 1, 1), "g": mask}).dead == {"a": 2}


def test_a_tied_weight_dies_only_where_no_use_needs_it() -> None:
    arrays = {"a": rand(2, 2, 1, 1), "c": rand(1, 2, 1, 1)}
    nodes = [
        *(node("Conv", "x a", "h"), node("Conv", "h a", "i")),
        *(node("Conv", "i c", "y"),),
    ]
    mask = full(1, 2, 1, 1)
    mask[:, 1] = False
    found = closed(build(nodes, arrays), {"a": full(2, 2, 1, 1), "c": mask})
    assert not found.dead


def test_a_floor_keeps_the_last_dead_weights() -> None:
    proto = two_convs(-1.0, [1, 1, 1, 1])
    found = closed(proto, {"a": CUT, "c": full(2, 2, 3, 3)}, {"c": 30})
    assert found.dead == {"c": 6}
    assert not found.masks["c"][0, 1].reshape(-1)[:6].any()
    assert found.masks["c"].sum() == 30


@pytest.mark.parametrize("use", ["unknown operator", "sub-graph", "output"])
def test_what_is_used_in_ways_that_are_not_analysed_stays(use: str) -> None:
    arrays = {"a": rand(2, 2, 1, 1), "c": rand(1, 2, 1, 1)}
    nodes = [node("Conv", "x a", "h"), node("Conv", "h c", "y")]
    outputs: tuple[str, ...] = ("y", "z")
    if use == "unknown operator":
        nodes.append(node("Det", "h", "z"))
    elif use == "output":
        outputs = ("y", "h")
    else:
        inner = [
            helper.make_graph(
                [node("Neg", "h", f"z{i}")],
                "branch",
                [],
                [helper.make_tensor_value_info(f"z{i}", TensorProto.FLOAT, None)],
            )
            for i in range(2)
        ]
        arrays["zero"] = np.zeros(1)
        nodes += [
            *(node("ReduceMax", "x", "top", keepdims=0), node("Greater", "top zero", "cond")),
            node("If", "cond", "z", then_branch=inner[0], else_branch=inner[1]),
        ]
    mask = full(1, 2, 1, 1)
    mask[:, 1] = False
    proto = build(nodes, arrays, outputs=outputs)
    assert not closed(proto, {"a": full(2, 2, 1, 1), "c": mask}).dead


def test_channel_shuffle_is_followed() -> None:
    arrays = {"a": rand(4, 2, 1, 1), "c": rand(2, 4, 1, 1)}
    arrays |= {"split": np.array([0, 2, 2, 6, 6]), "join": np.array([0, 4, 6, 6])}
    nodes = [
        *(node("Conv", "x a", "h"), node("Reshape", "h split", "s")),
        node("Transpose", "s", "t", perm=[0, 2, 1, 3, 4]),
        *(node("Reshape", "t join", "j"), node("Conv", "j c", "y")),
    ]
    mask = full(2, 4, 1, 1)
    mask[:, 1] = False  # shuffled channel 1 is channel 2
    found = closed(build(nodes, arrays), {"a": full(4, 2, 1, 1), "c": mask})
    assert found.dead == {"a": 2}
    assert not found.masks["a"][2].any()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), sparsity=st.floats(0.5, 0.98))
@example(seed=183, sparsity=0.75)  # weights that are dead because others are
def test_random_networks_keep_their_outputs(seed: int, sparsity: float) -> None:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    nodes: list[onnx.NodeProto] = []
    masks: Arrays = {}
    values = [("x", 4)]
    for index in range(int(rng.integers(3, 9))):
        source, channels = values[int(rng.integers(max(len(values) - 3, 0), len(values)))]
        same = [v for v, c in values if c == channels and v != source and v != "x"]
        kind = rng.choice(["conv", "conv", "conv", "grouped", "add", "concat", "norm"])
        name = f"v{index}"
        if kind == "add" and same:
            nodes.append(node("Add", f"{source} {rng.choice(same)}", name))
        elif kind == "concat" and channels <= 8:
            other, more = values[int(rng.integers(len(values)))]
            nodes.append(node("Concat", f"{source} {other}", name, axis=1))
            channels += more
        elif kind == "norm":
            prefix = f"n{index}"
            arrays |= norm_arrays(prefix, channels, rng)
            arrays[f"{prefix}.scale"] *= rng.random(channels) > 0.2
            nodes.append(norm(source, name, prefix))
        else:
            groups = 2 if kind == "grouped" and channels % 2 == 0 else 1
            out, size = int(rng.choice([2, 4, 6])), int(rng.choice([1, 3]))
            weight, bias = f"w{index}", f"b{index}" if rng.random() < 0.6 else ""
            shape = (out, channels // groups, size, size)
            arrays[weight] = rng.normal(size=shape)
            mask = rng.random(shape) > sparsity
            mask &= rng.random(shape[:2])[..., None, None] > sparsity / 2
            masks[weight] = mask
            if bias:
                arrays[bias] = rng.normal(size=out)
            pad = size // 2
            inputs = f"{source} {weight} {bias}".strip()
            nodes.append(node("Conv", inputs, name, group=groups, pads=[pad] * 4))
            channels = out
        if rng.random() < 0.6:
            function = str(rng.choice(["Relu", "Sigmoid", "HardSwish", "LeakyRelu"]))
            nodes.append(node(function, name, f"{name}f"))
            name += "f"
        values.append((name, channels))
    last, channels = values[-1]
    arrays["w"] = rng.normal(size=(2, channels, 1, 1))
    arrays["b"] = rng.normal(size=2)
    masks["w"] = rng.random((2, channels, 1, 1)) > sparsity / 2
    proto = build([*nodes, node("Conv", f"{last} w b", "y")], arrays, channels=4)
    closed(proto, masks)

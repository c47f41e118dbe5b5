"""A compiled model as the standard layers that its sparse operators stand for, to be looked at."""

import math
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelFileError
from onnxprune.runtime.graph import label
from onnxprune.runtime.library import DOMAIN
from onnxprune.runtime.rewriting import PARTS
from onnxprune.runtime.rows import MOST_COLUMNS, SparseRows
from onnxprune.runtime.samples import with_whole_batch
from onnxprune.stored import stored_array, stored_shape
from onnxprune.tensor_views import attribute_of

_WINDOW = ("kernel_shape", "strides", "pads", "dilations")

MOST_ELEMENTS = 2**31
"""Largest weight that is written out, in values."""


def dense_view(proto: ModelProto) -> ModelProto:
    """A model with Conv, Gemm and MatMul in the place of sparse operators.

    Weights are written out from the values, columns and row starts that the file holds, under the
    names they had before; nothing is taken from metadata. The activations that the operators
    compute are left out, so the result is for reading and not for running.

    Args:
        proto: A compiled model; it is not changed.

    Raises:
        ModelFileError: The compressed rows of an operator make no sense.
    """
    view = ModelProto()
    view.CopyFrom(with_whole_batch(proto))
    stored = {tensor.name: tensor for tensor in view.graph.initializer}
    nodes: list[NodeProto] = []
    weights: dict[tuple[object, ...], TensorProto] = {}
    taken = {*stored, *(value.name for value in view.graph.input)}
    taken.update(name for node in view.graph.node for name in (*node.input, *node.output))
    for node in view.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        if len(node.input) < 2 or not node.output:
            raise _senseless(node, stored)
        for part in _parts(node, stored, taken):
            depthwise = part.op_type == "DepthwiseConv"
            key = _weight_key(part)
            if key not in weights:
                array = _depthwise_weight(part, stored) if depthwise else _weight(part, stored)
                name = part.input[1].removesuffix(".taps" if depthwise else f".{PARTS[0]}")
                # The file may keep it for another use, or otherwise arranged.
                name = _free(name, taken, ".dense")
                weights[key] = numpy_helper.from_array(array, name)
            nodes += _standard(part, weights[key].name, int(weights[key].dims[0]), taken)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del view.graph.node[:]
    view.graph.node.extend(kept)
    view.graph.initializer.extend(weights.values())
    read = {name for node in kept for name in node.input}
    for place in reversed(range(len(view.graph.initializer))):
        name = view.graph.initializer[place].name
        parts = (*PARTS, "taps")
        if name.endswith(tuple(f".{part}" for part in parts)) and name not in read:
            del view.graph.initializer[place]
    for place in reversed(range(len(view.opset_import))):
        if view.opset_import[place].domain == DOMAIN:
            del view.opset_import[place]
    return view


def _free(name: str, taken: set[str], suffix: str = "_") -> str:
    """A name that no value has, now taken: with as many suffixes as it needs."""
    while name in taken:
        name += suffix
    taken.add(name)
    return name


def _parts(node: NodeProto, stored: dict[str, TensorProto], taken: set[str]) -> list[NodeProto]:
    """The operators of single layers that compute what an operator does."""
    if node.op_type != "SparseExpandDepthwise":
        return [node]
    window = {name: attribute_of(node, name) for name in _WINDOW}
    axes = len(window["kernel_shape"] or ())
    if len(node.input) < 5 or not axes:
        raise _senseless(node, stored)
    x, values, columns, starts, taps = node.input[:5]
    bias, depthwise_bias, residual = (*node.input[5:], "", "", "")[:3]
    ones: dict[str, Any] = dict.fromkeys(("kernel_shape", "strides", "dilations"), [1] * axes)
    between = _free(f"{node.output[0]}.expanded", taken)
    pointwise = helper.make_node(
        "SparseConv",
        [x, values, columns, starts, *([bias] if bias else [])],
        [between],
        node.name,
        domain=DOMAIN,
        in_channels=attribute_of(node, "in_channels"),
        **ones,
        pads=[0] * 2 * axes,
    )
    depthwise = helper.make_node(
        "DepthwiseConv",
        [between, taps, depthwise_bias, residual],
        node.output,
        f"{label(node)}.depthwise",
        domain=DOMAIN,
        **window,
    )
    return [pointwise, depthwise]


def _weight_key(node: NodeProto) -> tuple[object, ...]:
    """What operators with the same weight have in common."""
    shape = (attribute_of(node, name) for name in ("in_channels", "in_features", "kernel_shape"))
    weight = node.input[1:2] if node.op_type == "DepthwiseConv" else node.input[1:4]
    return (node.op_type, *weight, *map(str, shape))


def _standard(node: NodeProto, weight: str, channels: int, taken: set[str]) -> list[NodeProto]:
    """The layer that an operator stands for, and the sum with its residual."""
    x, *_ = node.input
    depthwise = node.op_type == "DepthwiseConv"
    bias, residual = (*node.input[2 if depthwise else 4 :], "", "")[:2]
    output = node.output[0]
    made = _free(f"{output}.without_residual", taken) if residual else output
    if depthwise or node.op_type == "SparseConv":
        attributes = {name: attribute_of(node, name) for name in _WINDOW}
        if depthwise:
            attributes["group"] = channels
        inputs = [x, weight, *([bias] if bias else [])]
        layers = [helper.make_node("Conv", inputs, [made], node.name, **attributes)]
    else:
        product = _free(f"{output}.without_bias", taken) if bias else made
        layers = [helper.make_node("MatMul", [x, weight], [product], node.name)]
        if bias:
            layers.append(helper.make_node("Add", [product, bias], [made]))
    if residual:
        layers.append(helper.make_node("Add", [made, residual], [output]))
    return layers


def _weight(node: NodeProto, stored: dict[str, TensorProto]) -> np.ndarray:
    """The weight of an operator as Conv and MatMul store theirs."""
    try:
        values, columns, starts = (stored_array(stored[name]) for name in node.input[1:4])
        convolution = node.op_type == "SparseConv"
        inner = [int(attribute_of(node, "in_channels" if convolution else "in_features"))]
        if convolution:
            inner += [int(size) for size in attribute_of(node, "kernel_shape")]
        width, rows = math.prod(inner), len(starts) - 1
        sound = (
            0 < width <= MOST_COLUMNS
            and rows > 0
            and width * rows <= MOST_ELEMENTS
            and values.shape == columns.shape == (int(starts[-1]),)
            and starts[0] == 0
            and (starts[1:] >= starts[:-1]).all()
            and (not len(columns) or int(columns.max()) < width)
        )
        if sound:
            matrix = SparseRows(values, columns, starts, width).dense()
            return matrix.reshape(rows, *inner) if convolution else matrix.T
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    raise _senseless(node, stored)


def _depthwise_weight(node: NodeProto, stored: dict[str, TensorProto]) -> np.ndarray:
    """The weight of a depthwise operator as Conv stores it."""
    try:
        values = stored_array(stored[node.input[1]])
        kernel = [int(size) for size in attribute_of(node, "kernel_shape")]
        return values.reshape(len(values), 1, *kernel)
    except (KeyError, IndexError, TypeError, ValueError):
        raise _senseless(node, stored) from None


def _senseless(node: NodeProto, stored: dict[str, TensorProto]) -> ModelFileError:
    return ModelFileError(
        "the weight of an operator of the library makes no sense",
        where=f"node {label(node)!r}",
        got=", ".join(
            f"{name} {list(stored_shape(stored[name]))}" if name in stored else f"no {name!r}"
            for name in node.input[1:4]
        ),
        expected="values and columns of one length, and row starts that rise from 0 to it; or one "
        "row of taps for each channel",
        remedy="compile the model again",
    )

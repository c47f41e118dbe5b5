"""Writing sparse operators into a graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.runtime.graph import label, names_read
from onnxprune.runtime.layers import Layer
from onnxprune.runtime.library import DOMAIN, VERSION
from onnxprune.runtime.plan import Plan, Weight, WeightKey, weight_key
from onnxprune.runtime.samples import split_samples

_OPERATORS = {
    "conv": "SparseConv",
    "product": "SparseMatMul",
    "expanded": "SparseExpandDepthwise",
}

PARTS = ("values", "columns", "row_starts")
"""What is appended to a weight's name for each of the three tensors that take its place."""

TAPS = "taps"
"""The same for the weight of a depthwise layer, which stays dense."""

BIAS = "bias"
"""What is appended to a layer's name for its bias."""


def rewrite(plan: Plan) -> None:
    """Put the operators of a plan in place, and drop what nothing reads any more.

    Changes the plan's model, after which the plan describes what it was before. An operator stands
    where the last of the nodes stood that it absorbs, so all that it reads is computed before.
    """
    graph = plan.proto.graph
    split = not plan.mixing  # which looks at the graph as it is before
    last = {max(layer.absorbed): layer for layer in plan.replaced}
    taken = {number for layer in plan.replaced for number in layer.absorbed}
    names = {*plan.index.stored, *plan.index.makers, *(v.name for v in graph.input)}
    writer = _Writer(graph, names)
    nodes = []
    for number, node in enumerate(graph.node):
        if number in last:
            layer = last[number]
            layouts = {value: plan.layout(value) for value in (layer.x, layer.output)}
            name = label(graph.node[layer.node])
            if layer.kind == "depthwise":
                nodes.append(writer.depthwise(layer, layer.matrix(plan.index), name))
            else:
                weight, depthwise = plan.weight(layer), _depthwise(plan, layer)
                nodes.append(writer.operator(layer, weight, name, layouts, depthwise))
        elif number not in taken:
            nodes.append(node)
    known = {value.name for value in graph.value_info} | plan.index.outputs
    for layer in plan.replaced:
        shape = plan.sizes.named(layer.output)
        if layer.output not in known and shape is not None:
            kind = TensorProto.FLOAT
            graph.value_info.append(helper.make_tensor_value_info(layer.output, kind, shape))
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    plan.proto.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    _drop_unread(plan.proto)
    if split:
        split_samples(plan.proto, plan.sizes)


def layer_models(
    plan: Plan, layer: Layer, weight: Weight, shapes: Mapping[str, Sequence[int]]
) -> tuple[ModelProto, ModelProto]:
    """A layer with what it absorbs as models of their own, dense and sparse.

    Args:
        plan: What it comes from.
        layer: The layer.
        weight: Its weight.
        shapes: Whole shapes of the values that it reads.
    """
    graph = plan.proto.graph
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])
        for name in dict.fromkeys([layer.x, *([layer.residual] if layer.residual else [])])
    ]
    output = helper.make_tensor_value_info(layer.output, TensorProto.FLOAT, None)
    holder = GraphProto()
    writer = _Writer(holder, set())
    plain = {layer.x: "plain", layer.output: "plain"}
    name = label(graph.node[layer.node])
    operator = writer.operator(layer, weight, name, plain, _depthwise(plan, layer))
    nodes = [graph.node[number] for number in layer.absorbed]
    read = dict.fromkeys(name for node in nodes for name in node.input)
    stored = [plan.index.stored[name] for name in read if name in plan.index.stored]
    dense = helper.make_graph(nodes, "dense", inputs, [output], stored)
    sparse = helper.make_graph([operator], "sparse", inputs, [output], holder.initializer)
    opsets = list(plan.proto.opset_import)
    version = plan.proto.ir_version
    return (
        helper.make_model(dense, opset_imports=opsets, ir_version=version),
        helper.make_model(
            sparse,
            opset_imports=[*opsets, helper.make_opsetid(DOMAIN, VERSION)],
            ir_version=version,
        ),
    )


def _depthwise(plan: Plan, layer: Layer) -> tuple[str, np.ndarray] | None:
    """Name and weight `(channels, taps)` of the depthwise layer within another one's operator."""
    if layer.depthwise is None:
        return None
    node = plan.index.graph.node[layer.depthwise.node]
    return label(node), layer.depthwise.matrix(plan.index)


class _Writer:
    """Makes operators and the tensors that they read.

    Args:
        graph: Where the tensors go.
        names: Names that are taken.
    """

    def __init__(self, graph: GraphProto, names: set[str]) -> None:
        self._tensors = graph.initializer
        self._names = names
        self._stored: dict[WeightKey, list[str]] = {}
        self._taps: dict[str, list[str]] = {}

    def operator(
        self,
        layer: Layer,
        weight: Weight,
        name: str,
        layouts: Mapping[str, str],
        depthwise: tuple[str, np.ndarray] | None = None,
    ) -> NodeProto:
        """The sparse operator of a layer.

        Args:
            layer: The layer.
            weight: Its weight.
            name: The operator's name.
            layouts: Of what it reads and makes.
            depthwise: Name and weight `(channels, taps)` of the depthwise layer that it also
                computes.
        """
        key = weight_key(layer)
        if key not in self._stored:
            parts = {part: getattr(weight.rows, part) for part in PARTS}
            self._stored[key] = self._store(layer.weight, parts)
        attributes = self._attributes(layer)
        if weight.block > 1:
            attributes["block"] = weight.block
        if layer.kind == "conv":
            attributes |= {"x_layout": layouts[layer.x], "y_layout": layouts[layer.output]}
        stored = self._stored[key]
        if layer.depthwise is None or depthwise is None:
            inputs = self._inputs(layer, [*stored, *self._bias(layer, name)])
        else:
            second, weights = depthwise
            taps = self._store_taps(layer.depthwise, weights)
            biases = [*self._bias(layer, name), *self._bias(layer.depthwise, second)]
            inputs = self._inputs(layer, [*stored, *taps, *biases])
        kind = _OPERATORS[layer.kind]
        return helper.make_node(kind, inputs, [layer.output], name, domain=DOMAIN, **attributes)

    def depthwise(self, layer: Layer, weight: np.ndarray, name: str) -> NodeProto:
        """The operator of a depthwise convolution, whose weight is `(channels, taps)`."""
        taps = self._store_taps(layer, weight)
        inputs = self._inputs(layer, [*taps, *self._bias(layer, name)])
        attributes = self._attributes(layer)
        return helper.make_node(
            "DepthwiseConv", inputs, [layer.output], name, domain=DOMAIN, **attributes
        )

    def _store_taps(self, layer: Layer, weight: np.ndarray) -> list[str]:
        """A depthwise layer's weight, kept once for all layers that share it."""
        if layer.weight not in self._taps:
            self._taps[layer.weight] = self._store(layer.weight, {TAPS: weight})
        return self._taps[layer.weight]

    def _bias(self, layer: Layer, owner: str) -> list[str]:
        return [""] if layer.bias is None else self._store(owner, {BIAS: layer.bias})

    @staticmethod
    def _inputs(layer: Layer, constants: Sequence[str]) -> list[str]:
        inputs = [layer.x, *constants, layer.residual or ""]
        while not inputs[-1]:
            inputs.pop()
        return inputs

    @staticmethod
    def _attributes(layer: Layer) -> dict[str, Any]:
        last = layer.depthwise or layer
        attributes = {**last.attributes, **_activation(last)}
        if last is not layer:
            attributes["in_channels"] = layer.attributes["in_channels"]
            attributes |= {f"expand_{key}": value for key, value in _activation(layer).items()}
        return attributes

    def _store(self, owner: str, parts: Mapping[str, np.ndarray]) -> list[str]:
        """Keep tensors under their owner's name, with a number where that is taken."""
        count, base = 0, owner
        while any(f"{base}.{part}" in self._names for part in parts):
            count += 1
            base = f"{owner}_{count}"
        names = [f"{base}.{part}" for part in parts]
        self._names.update(names)
        for name, array in zip(names, parts.values(), strict=True):
            # In place: to make a tensor and add it would copy it once more.
            tensor = self._tensors.add(name=name, dims=array.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return names


def _activation(layer: Layer) -> dict[str, Any]:
    """Attributes of a layer's activation."""
    chosen = layer.activation
    if not chosen.name:
        return {}
    return {"activation": chosen.name, "alpha": chosen.alpha, "beta": chosen.beta}


def _drop_unread(proto: ModelProto) -> None:
    """Remove initializers and value infos that nothing reads or makes."""
    graph = proto.graph
    read = {name for node in graph.node for name in names_read(node)}
    read |= {value.name for value in (*graph.output, *graph.input)}
    made = {name for node in graph.node for name in node.output}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]
    for place in reversed(range(len(graph.value_info))):
        if graph.value_info[place].name not in made:
            del graph.value_info[place]

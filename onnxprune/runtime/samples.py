"""Models that compute the samples of a batch one after the other.

What a layer makes of one sample mostly fits into the processor's caches; of a whole batch it does
not, and dense layers hide better than sparse ones that they wait for memory. So the graph becomes
the body of a standard `Scan` over the first axis, which runs it for one sample at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxprune.graph_shapes import PartialShape
from onnxprune.payload import inner_graphs
from onnxprune.runtime.graph import label, names_read
from onnxprune.runtime.library import DOMAIN
from onnxprune.runtime.sizes import Sizes

NAME = "onnxprune.samples"
"""Name of the nodes around the graph for one sample."""

_AXES_ARE_INPUTS_SINCE = 13
OLDEST_OPSET = 9
"""Opset since which `Scan` has no axis of its own for the batch."""


def split_samples(proto: ModelProto, sizes: Sizes) -> None:
    """Make a model compute its samples one after the other; changes it.

    Args:
        proto: A model whose samples do not depend on each other, with an opset of `OLDEST_OPSET` or
            newer.
        sizes: Its shapes. Inputs whose first axis is not open are the same for all samples.
    """
    graph = proto.graph
    shapes = {value.name: sizes.of_sample(value.name) for value in graph.output}
    opset = next(int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    unique = _Names(graph)
    batched = [value for value in graph.input if _is_batched(value)]
    outputs = list(graph.output)
    made = {value.name: unique(f"{value.name}.split") for value in outputs}
    scan = helper.make_node(
        "Scan",
        [value.name for value in batched],
        list(made.values()),
        NAME,
        body=GraphProto(name="sample"),
        num_scan_inputs=len(batched),
    )
    branches = (_split_branch(scan, outputs), _empty_branch(outputs, shapes, unique))
    count = len(graph.node)
    graph.node.extend(_chosen_by_batch(batched[0].name, branches, outputs, unique))
    # Filled in place, so that weights are copied once.
    branch = dict(inner_graphs(graph.node[-1]))["then_branch"]
    body = dict(inner_graphs(branch.node[0]))["body"]
    inner = {value.name: unique(f"{value.name}.one") for value in batched}
    inner |= {value.name: unique(f"{value.name}.one") for value in graph.output}
    axes: list[str] = []
    if opset >= _AXES_ARE_INPUTS_SINCE:
        axes = [unique("onnxprune.batch_axis")]
        body.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axes[0]))
    attributes: dict[str, Any] = {} if axes else {"axes": [0]}
    for value in batched:
        sample = ValueInfoProto(name=unique(f"{value.name}.sample"), type=value.type)
        del sample.type.tensor_type.shape.dim[0]
        body.input.append(sample)
        given = [sample.name, *axes]
        body.node.append(helper.make_node("Unsqueeze", given, [inner[value.name]], **attributes))
    body.node.extend(_renamed(graph.node[:count], inner))
    for value in graph.output:
        kind = value.type.tensor_type.elem_type
        result = unique(f"{value.name}.sample")
        body.output.append(helper.make_tensor_value_info(result, kind, shapes[value.name]))
        given = [inner[value.name], *axes]
        body.node.append(helper.make_node("Squeeze", given, [result], **attributes))
    body.initializer.extend(graph.initializer)
    for value in graph.value_info:
        if value.name not in inner:
            body.value_info.append(value)
            _fix_batch(body.value_info[-1].type, sizes.batch, sizes.certain(value.name))
    del graph.node[:count], graph.initializer[:], graph.value_info[:]
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), graph.node[1].input[1]))


def _split_branch(scan: NodeProto, outputs: Sequence[ValueInfoProto]) -> GraphProto:
    """What is run for a batch of one sample or more."""
    kinds = [value.type.tensor_type.elem_type for value in outputs]
    values = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in zip(scan.output, kinds, strict=True)
    ]
    return helper.make_graph([scan], "samples", [], values)


def _empty_branch(
    outputs: Sequence[ValueInfoProto], shapes: Mapping[str, Sequence[int]], unique: "_Names"
) -> GraphProto:
    """What is run for a batch without samples, which a `Scan` of ONNX Runtime refuses."""
    branch = GraphProto(name="no_samples")
    for value in outputs:
        kind = value.type.tensor_type.elem_type
        shape, made = unique(f"{value.name}.shape"), unique(f"{value.name}.none")
        sizes = np.array([0, *shapes[value.name]], np.int64)
        branch.initializer.append(numpy_helper.from_array(sizes, shape))
        zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)))
        branch.node.append(helper.make_node("ConstantOfShape", [shape], [made], value=zero))
        branch.output.append(helper.make_tensor_value_info(made, kind, None))
    return branch


def _chosen_by_batch(
    first: str,
    branches: tuple[GraphProto, GraphProto],
    outputs: Sequence[ValueInfoProto],
    unique: "_Names",
) -> list[NodeProto]:
    """The nodes that look at the batch of the first input and run one of two graphs."""
    shape, index = unique("onnxprune.shape"), unique("onnxprune.first")
    count, some = unique("onnxprune.count"), unique("onnxprune.some")
    return [
        helper.make_node("Shape", [first], [shape]),
        helper.make_node("Gather", [shape, index], [count]),
        helper.make_node("Cast", [count], [some], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            [some],
            [value.name for value in outputs],
            NAME,
            then_branch=branches[0],
            else_branch=branches[1],
        ),
    ]


def working_graph(proto: ModelProto) -> GraphProto:
    """The graph with the layers: that for one sample, or the main graph."""
    body = _body(proto)
    return proto.graph if body is None else body


def with_whole_batch(proto: ModelProto) -> ModelProto:
    """A model whose layers stand in the main graph and compute all samples at once.

    Args:
        proto: Any model; it is not changed, and is the result where its samples are not split.
    """
    body = _body(proto)
    if body is None:
        return proto
    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.initializer[:]
    scan = _scan(proto)
    if scan is None:
        return proto
    entries = [node.output[0] for node in body.node[: len(body.input)]]
    exits = [node.input[0] for node in body.node[len(body.node) - len(body.output) :]]
    outer = dict(zip(entries, scan.input, strict=True)) | dict(
        zip(exits, (value.name for value in proto.graph.output), strict=True)
    )
    nodes = _renamed(body.node[len(body.input) : len(body.node) - len(body.output)], outer)
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    read = {name for node in nodes for name in names_read(node)}
    whole.graph.initializer.extend(tensor for tensor in body.initializer if tensor.name in read)
    return whole


def _body(proto: ModelProto) -> GraphProto | None:
    """The graph for one sample, if a model is as `split_samples` leaves it."""
    scan = _scan(proto)
    if scan is None:
        return None
    bodies = [a.g for a in scan.attribute if a.name == "body" and a.HasField("g")]
    if len(bodies) != 1:
        return None
    body = bodies[0]
    ins, outs = len(body.input), len(body.output)
    frame = (len(scan.input), len(scan.output), len(proto.graph.output))
    if len(body.node) < ins + outs or (ins, outs, outs) != frame:
        return None
    entries, exits = body.node[:ins], body.node[len(body.node) - outs :]
    sound = all(
        node.op_type == kind and len(node.input) > 0 and len(node.output) == 1
        for kind, nodes in (("Unsqueeze", entries), ("Squeeze", exits))
        for node in nodes
    )
    sound = sound and any(node.domain == DOMAIN for node in body.node)
    sound = sound and [v.name for v in body.input] == [n.input[0] for n in entries]
    sound = sound and [v.name for v in body.output] == [n.output[0] for n in exits]
    return body if sound else None


def _scan(proto: ModelProto) -> NodeProto | None:
    """The node that runs the graph for each sample."""
    nodes = proto.graph.node
    if [node.op_type for node in nodes] != ["Shape", "Gather", "Cast", "If"]:
        return None
    if nodes[-1].name != NAME or list(nodes[-1].output) != [v.name for v in proto.graph.output]:
        return None
    branches = [a.g for a in nodes[-1].attribute if a.name == "then_branch" and a.HasField("g")]
    found = [node for branch in branches for node in branch.node]
    sound = len(found) == 1 and found[0].op_type == "Scan" and found[0].name == NAME
    return found[0] if sound and not _hides_tensors(proto.graph) else None


def _hides_tensors(graph: GraphProto) -> bool:
    """Whether there may be weights beside the graph for one sample, which nobody would see there.

    There is nothing to store but a place in a shape, and shapes of outputs without samples.
    """
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    empty = [branch for branch in inner if not any(node.op_type == "Scan" for node in branch.node)]
    stored = [*graph.initializer, *(tensor for branch in inner for tensor in branch.initializer)]
    bodies = [a.g for branch in inner for node in branch.node for a in node.attribute]
    return (
        (len(inner), len(empty)) != (2, 1)
        or any(node.op_type != "ConstantOfShape" for branch in empty for node in branch.node)
        or any(tensor.data_type != TensorProto.INT64 or len(tensor.dims) > 1 for tensor in stored)
        or any(g.sparse_initializer for g in (graph, *inner, *bodies))
    )


def _is_batched(value: ValueInfoProto) -> bool:
    """Whether the first axis of an input is open."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].dim_value <= 0


def _renamed(nodes: Iterable[NodeProto], names: dict[str, str]) -> list[NodeProto]:
    """Copies of nodes that read and make values of other names; what nodes are called stays."""
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        if any(name in names for name in node.output[:1]):
            copy.name = label(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        copies.append(copy)
    return copies


def _fix_batch(value_type: TypeProto, batch: str | None, certain: PartialShape | None) -> None:
    """Say that a value is of one sample, and nothing of sizes that the file may have wrong.

    ONNX Runtime overlooks a wrong batch in a model that was exported with a fixed one, but not
    where samples are taken out of a batch.
    """
    tensor = value_type.tensor_type
    if certain is None or len(certain) != len(tensor.shape.dim):
        tensor.ClearField("shape")
        return
    for dim, size in zip(tensor.shape.dim, certain, strict=True):
        if dim.dim_param == batch:
            dim.dim_value = 1
        elif dim.HasField("dim_value") and dim.dim_value != size:
            dim.Clear()


class _Names:
    """Makes names that no value of a graph has."""

    def __init__(self, graph: GraphProto) -> None:
        self._taken = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
        self._taken |= {tensor.name for tensor in graph.initializer}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}

    def __call__(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

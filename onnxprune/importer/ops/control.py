"""Control flow: If, Loop and Scan, each a module that holds its sub-graphs.

An If whose condition is known at import is no module: its branch runs in place.
"""

from typing import Any

import torch
from onnx import TensorProto, TypeProto
from torch import Tensor, fx, nn

from onnxprune.importer.builder import GraphBuilder
from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedInside, UnsupportedNode, register
from onnxprune.importer.values import TORCH_DTYPES, Value
from onnxprune.shapes import tensor_type, type_shape


class If(nn.Module):
    """Runs one of two graphs.

    Args:
        then_branch: Graph for a true condition.
        else_branch: Graph for a false one.
        then_inputs: How many of the outer values the first graph reads; the second reads the rest.
    """

    def __init__(self, then_branch: nn.Module, else_branch: nn.Module, then_inputs: int) -> None:
        super().__init__()
        self.then_branch = then_branch
        self.else_branch = else_branch
        self.then_inputs = then_inputs

    def forward(self, condition: Any, *outer: Any) -> Any:
        """Run the branch that the condition asks for on the values that it reads."""
        if bool(condition):
            return self.then_branch(*outer[: self.then_inputs])
        return self.else_branch(*outer[self.then_inputs :])


class Loop(nn.Module):
    """Repeats a graph, carrying values from one turn to the next.

    Args:
        body: Graph from (turn, condition, carried..., outer...) to (condition, carried...,
            collected...).
        carried: Number of carried values.
        empty: Shape and type of each collected output of no turns at all.
    """

    def __init__(
        self, body: nn.Module, carried: int, empty: list[tuple[tuple[int, ...], torch.dtype]]
    ) -> None:
        super().__init__()
        self.body = body
        self.carried = carried
        self.empty = empty

    def forward(self, limit: Any, condition: Any, *values: Any) -> tuple[Any, ...]:
        """Carried values after the last turn, and the collected ones of all turns stacked."""
        state, outer = list(values[: self.carried]), values[self.carried :]
        device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
        collected: list[list[Tensor]] = [[] for _ in self.empty]
        turn = 0
        proceed = torch.tensor(True if condition is None else bool(condition), device=device)
        while bool(proceed) and (limit is None or turn < int(limit)):
            step = torch.tensor(turn, device=device)
            proceed, *results = self.body(step, proceed, *state, *outer)
            state = results[: self.carried]
            for parts, result in zip(collected, results[self.carried :], strict=True):
                parts.append(result)
            turn += 1
        stacked = [
            torch.stack(parts) if parts else torch.zeros(shape, dtype=dtype, device=device)
            for parts, (shape, dtype) in zip(collected, self.empty, strict=True)
        ]
        return (*state, *stacked)


class Scan(nn.Module):
    """Runs a graph over the slices of tensors, carrying a state.

    Args:
        body: Graph from (state..., slices..., outer...) to (state..., collected...).
        states: Number of state values.
        inputs: Axis of each scanned input, and whether it is scanned backwards.
        outputs: The same of each collected output.
    """

    def __init__(
        self,
        body: nn.Module,
        states: int,
        inputs: list[tuple[int, bool]],
        outputs: list[tuple[int, bool]],
    ) -> None:
        super().__init__()
        self.body = body
        self.states = states
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """The last state, and the collected outputs."""
        state, rest = list(values[: self.states]), values[self.states :]
        scanned, outer = rest[: len(self.inputs)], rest[len(self.inputs) :]
        collected: list[list[Tensor]] = [[] for _ in self.outputs]
        steps = scanned[0].shape[self.inputs[0][0]]
        for step in range(steps):
            slices = [
                tensor.select(axis, steps - 1 - step if backward else step)
                for tensor, (axis, backward) in zip(scanned, self.inputs, strict=True)
            ]
            results = self.body(*state, *slices, *outer)
            state = list(results[: self.states])
            for parts, result in zip(collected, results[self.states :], strict=True):
                parts.append(result)
        stacked = [
            torch.stack(parts[::-1] if backward else parts, dim=axis)
            for parts, (axis, backward) in zip(collected, self.outputs, strict=True)
        ]
        return (*state, *stacked)


class BatchedScan(nn.Module):
    """Runs a `Scan` on each sample of a batch, as operator set version 8 defines it.

    Args:
        scan: The scan of one sample.
        values: Number of its states and scanned inputs.
    """

    def __init__(self, scan: Scan, values: int) -> None:
        super().__init__()
        self.scan = scan
        self.values = values

    def forward(self, lengths: Tensor | None, *values: Any) -> tuple[Any, ...]:
        """Batches of states and outputs; the latter are zero from a sample's length on."""
        batches, outer = values[: self.values], values[self.values :]
        states, steps = self.scan.states, batches[-1].shape[1]
        samples = []
        for sample in range(batches[0].shape[0]):
            length = steps if lengths is None else int(lengths[sample])
            state = [batch[sample] for batch in batches[:states]]
            scanned = [batch[sample, :length] for batch in batches[states:]]
            results = self.scan(*state, *scanned, *outer)
            padded = [_padded(result, steps) for result in results[states:]]
            samples.append((*results[:states], *padded))
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


def _padded(x: Tensor, steps: int) -> Tensor:
    return torch.cat([x, x.new_zeros(steps - x.shape[0], *x.shape[1:])])


Body = tuple[GraphBuilder, list[Value | None]]
"""A converted sub-graph and its outputs."""


def _body(op: Op, attribute: str, inputs: list[TypeProto | None]) -> Body:
    if op.convert_graph is None:
        raise UnsupportedNode("sub-graphs cannot be converted here")
    builder, outputs = op.convert_graph(op.attr(attribute), inputs)
    return builder, outputs


def _finished(body: Body) -> tuple[nn.Module, list[Any]]:
    """A module that always returns a tuple, and the outer values that it reads after its inputs."""
    builder, outputs = body
    if any(value is None for value in outputs):
        raise UnsupportedInside
    nodes = tuple(builder.materialise(value) for value in outputs if value is not None)
    builder.graph.output(nodes)
    builder.graph.lint()
    return fx.GraphModule(builder.root, builder.graph), list(builder.captures)


def _inlined(op: Op, attribute: str) -> list[Value | None]:
    """The outputs of a sub-graph that runs in any case, with the types that they have there."""
    if op.inline_graph is None:
        raise UnsupportedNode("sub-graphs cannot be converted here")
    outputs = op.inline_graph(op.attr(attribute))
    op.output_types = [value_type for _, value_type in outputs]
    return [value for value, _ in outputs]


@register("If")
def _conditional(op: Op) -> Result:
    known = op.number(0)
    if known is not None and not isinstance(known, fx.Node):
        return _inlined(op, "then_branch" if known else "else_branch")
    bodies = [_body(op, branch, []) for branch in ("then_branch", "else_branch")]
    (then_branch, then_outer), (else_branch, else_outer) = map(_finished, bodies)
    condition = op.scalar(0)
    module = If(then_branch, else_branch, len(then_outer))
    count = len(op.node.output)
    return op.unpack(op.module(module, condition, *then_outer, *else_outer), count)


def _loose(value_type: TypeProto | None) -> TypeProto | None:
    """A type without sizes, which may change from turn to turn."""
    shape = type_shape(value_type)
    if value_type is None or shape is None:
        return value_type
    return tensor_type(value_type.tensor_type.elem_type, (None,) * len(shape))


def _empty(value_type: TypeProto | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of a collected output without elements; unknown sizes are 0 as well."""
    sizes = type_shape(value_type) or (0,)
    elem_type = value_type.tensor_type.elem_type if value_type is not None else TensorProto.FLOAT
    return (0, *[size or 0 for size in sizes[1:]]), TORCH_DTYPES.get(elem_type, torch.float32)


@register("Loop")
def _loop(op: Op) -> Result:
    carried = len(op.inputs) - 2
    types = [_loose(value_type) for value_type in op.input_types[2:]]
    counter, flag = tensor_type(TensorProto.INT64, ()), tensor_type(TensorProto.BOOL, ())
    body, outer = _finished(_body(op, "body", [counter, flag, *types]))
    limit, condition = op.scalar(0), op.scalar(1)
    state = [op.tensor(index + 2) for index in range(carried)]
    empty = [_empty(value_type) for value_type in op.output_types[carried:]]
    result = op.module(Loop(body, carried, empty), limit, condition, *state, *outer)
    return op.unpack(result, len(op.node.output))


def _scan_axes(op: Op, what: str, count: int) -> list[tuple[int, bool]]:
    axes = op.attr(f"scan_{what}_axes") or [0] * count
    directions = op.attr(f"scan_{what}_directions") or [0] * count
    return [(axis, bool(backward)) for axis, backward in zip(axes, directions, strict=True)]


@register("Scan", until=9)
def _batched_scan(op: Op) -> Result:
    scanned = op.attr("num_scan_inputs")
    states = len(op.inputs) - 1 - scanned
    types: list[TypeProto | None] = []
    for index in range(1, len(op.inputs)):
        shape, dropped = op.shape(index), 1 if index <= states else 2
        inner = None if shape is None else (None,) * (len(shape) - dropped)
        types.append(tensor_type(op.elem_type(index), inner))
    body, outer = _finished(_body(op, "body", types))
    directions = op.attr("directions") or [0] * scanned
    inputs = [(0, bool(backward)) for backward in directions]
    scan = Scan(body, states, inputs, [(0, False)] * (len(op.node.output) - states))
    batches = [op.tensor(index) for index in range(1, len(op.inputs))]
    module = BatchedScan(scan, len(batches))
    return op.unpack(op.module(module, op.optional(0), *batches, *outer), len(op.node.output))


@register("Scan", since=9)
def _scan(op: Op) -> Result:
    scanned = op.attr("num_scan_inputs")
    states = len(op.inputs) - scanned
    inputs = _scan_axes(op, "input", scanned)
    outputs = _scan_axes(op, "output", len(op.node.output) - states)
    types = [_loose(value_type) for value_type in op.input_types[:states]]
    for index, (axis, _) in enumerate(inputs):
        shape = list(op.shape(states + index) or ())
        known = op.shape(states + index) is not None
        if known:
            shape.pop(axis)
        types.append(tensor_type(op.elem_type(states + index), tuple(shape) if known else None))
    body, outer = _finished(_body(op, "body", types))
    module = Scan(body, states, inputs, outputs)
    return op.unpack(op.module(module, *op.tensors(), *outer), len(op.node.output))

"""Which tensors of an ONNX graph are parameters, and what they are used for.

The answer comes from the graph, without PyTorch and without decoding weights (only elementwise
operands are looked at, to tell parameters from attention masks): every slot of
every operator that holds learned values is followed back, through nodes that only rename or
rearrange, to the initializer or `Constant` node in which the values are stored.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnxprune.conditions import Number, computed
from onnxprune.errors import ModelFileError
from onnxprune.frequencies import is_frequency
from onnxprune.slots import (
    ELEMENTWISE,
    LINEAR_OPS,
    PASSING,
    PRUNABLE_OPS,
    SLOTS,
    STATISTICS_ROLES,
    WEIGHT_ROLES,
    channel_groups,
    is_depthwise,
    output_axis,
    reduction_axis,
)
from onnxprune.stored import Stored, constant_value, stored_array, stored_shape, stored_type
from onnxprune.tensor_views import (
    REARRANGING,
    SELECTING,
    View,
    forwarded,
    joined,
)

_FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_FOLDED_CONSTANT = re.compile(
    r"onnx::\w+|_?val_\d+|(.*/)?const(ant)?_?\d*(_\w*)?|ortshared_\w+"
    r"|(c_)?_?(lifted_)?tensor(_constant)?_?\d+|.*\.(lifted_tensor_|_tensor_constant)\d+"
    r"|(arange|clone|convert_element_type_default|scalar_tensor_default|_?to_copy)(_\d+)?"
    r"|(lift_fresh_copy|(full|ones|zeros)(_like)?|eye|linspace|cos|sin|tril|triu)(_\d+)?",
    re.I,
)
"""Names that exporters give to constants which they computed themselves."""

_NEUTRAL = {"scale": 1, "shift": 0, "bias": 0}
_MAX_CALL_DEPTH = 64
_MAX_SELECTIONS = 256
_MAX_CONDITION_DEPTH = 8
_MAX_NODES = 5_000_000
"""Nodes visited, once for each call of the function that they are in: functions that call each
other twice at every level would be visited for ever."""
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What code that expects a sound node raises on a damaged one."""

_MASK_MAGNITUDE = 1e4
_MASK_OFFSET = -10.0


@dataclass(frozen=True)
class Use:
    """One operator input that a stored tensor feeds.

    Attributes:
        node: Name of the node, or of its first output where it has none.
        op_type: Operator of the node, without its domain.
        slot: Index of the input.
        role: What the operator takes the tensor for; None for an operand without learned values.
        value: Name by which the node reads it: the tensor's own, or that of an alias.
        reduction_axis: Axis of the stored tensor along which the operator sums products.
        output_axis: Axis of the stored tensor along which the operator's outputs lie.
        channel_groups: Axis of the stored tensor that the groups of a convolution divide, and their
            number; None for a single one.
        depthwise: Whether the operator is a depthwise convolution.
    """

    node: str
    op_type: str
    slot: int
    role: str | None
    value: str
    reduction_axis: int | None = None
    output_axis: int | None = None
    channel_groups: tuple[int, int] | None = None
    depthwise: bool = False


@dataclass(frozen=True)
class GraphTensor:
    """A tensor that an ONNX model stores.

    Attributes:
        name: Its ONNX name: the initializer's, or the output name of its `Constant` node. Where
            scopes repeat a name, the later ones get their scope in front.
        scope: Sub-graph or function that holds it; empty for the main graph.
        proto: The live message inside the model.
        kind: `initializer` or `constant`; the latter's values may be plain numbers.
        shape: Stored shape.
        dtype: NumPy element type; `ml_dtypes` for those that NumPy lacks.
        role: What it is used for: weight, bias, scale, shift, slope, embedding, recurrent,
            running_mean, running_var, operand (of Mul, Add, Sub, Div), or None.
        op_type: Operator that uses it in this role, empty if none.
        node: Name of that node.
        trainable: Whether fine-tuning should change it.
        prunable: Whether pruning takes it by default.
        depthwise: Whether it is the weight of a depthwise convolution.
        reduction_axis: Axis of the stored tensor along which its products are summed; None where
            there is none, or where a Reshape mixes axes.
        output_axis: Axis of the stored tensor along which its outputs lie: output channels, columns
            of a product; None as above.
        channel_groups: The stored axis that the groups of a convolution divide, and their number;
            None for a single one.
        uses: Every operator input that it feeds.
    """

    name: str
    scope: str
    proto: Stored
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    role: str | None
    op_type: str
    node: str
    trainable: bool
    prunable: bool
    depthwise: bool
    reduction_axis: int | None
    output_axis: int | None
    channel_groups: tuple[int, int] | None
    uses: tuple[Use, ...]

    @property
    def elem_type(self) -> int:
        """Element type as ONNX numbers it."""
        return stored_type(self.proto)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Shape of what one group of a convolution uses; of the whole tensor elsewhere.

        Groups that do not divide their axis, as in a damaged file, count as single channels.
        """
        shape = list(self.shape)
        if self.channel_groups is not None:
            axis, groups = self.channel_groups
            shape[axis] = 1 if shape[axis] % groups else shape[axis] // groups
        return tuple(shape)

    def array(self) -> np.ndarray:
        """The values in their stored shape and type; read-only where no decoding is needed."""
        return stored_array(self.proto)


def find_tensors(proto: onnx.ModelProto) -> dict[str, GraphTensor]:
    """Find the stored tensors of a model and what they are used for.

    Sub-graphs and the model's own functions are searched, too. A tensor that is reached under
    several names (`Identity` aliases) is one entry, with all of its uses.

    Returns:
        Tensors by name, in graph order.

    Raises:
        ModelFileError: Functions of the model call each other in a circle, or a node is damaged.
    """
    finder = _Finder(proto)
    finder.visit(_graph_scope(proto.graph, "", None), proto.graph.node, 0)
    return finder.result()


@dataclass
class _Stored:
    name: str
    scope: str
    proto: Stored
    kind: str
    uses: list[Use] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return stored_shape(self.proto)

    @property
    def data_type(self) -> int:
        return stored_type(self.proto)


@dataclass
class _Scope:
    """Names of one graph or function call, and how to go on outside of it.

    What a graph reads that never runs is no use of it.
    """

    path: str
    stored: dict[str, Stored]
    inputs: set[str]
    parent: "_Scope | None" = None
    runs: bool = True
    bindings: dict[str, tuple["_Scope", str]] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[NodeProto]] = field(default_factory=dict)
    integers: set[str] = field(default_factory=set)

    def holds_frequencies(self, node: NodeProto, slot: int) -> bool:
        """Whether an operand is multiplied with positions for their sine and cosine."""
        return is_frequency(node, slot, self.producers.get, self._readers, self.integers)

    def _readers(self, name: str) -> list[NodeProto]:
        return self.consumers.get(name, [])


_View: TypeAlias = View[_Stored]


def _graph_scope(graph: GraphProto, path: str, parent: _Scope | None) -> _Scope:
    stored: dict[str, Stored] = {t.name: t for t in graph.initializer}
    stored.update({t.values.name: t for t in graph.sparse_initializer})
    inputs = {value.name for value in graph.input} - stored.keys()
    scope = _Scope(path, stored, inputs, parent)
    scope.integers = {v.name for v in graph.input if v.type.tensor_type.elem_type in _INTEGERS}
    scope.integers |= {name for name, value in stored.items() if stored_type(value) in _INTEGERS}
    return scope


class _Finder:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._functions = {(f.domain, f.name): f for f in proto.functions}
        self._scalars = proto.producer_name == "pytorch"
        self._by_id: dict[int, _Stored] = {}
        self._by_name: dict[str, _Stored] = {}
        self._visited = 0

    def visit(self, scope: _Scope, nodes: Iterable[NodeProto], depth: int) -> None:
        if depth > _MAX_CALL_DEPTH:
            raise ModelFileError(
                "functions or sub-graphs of the model are nested without end",
                where=scope.path,
                expected=f"at most {_MAX_CALL_DEPTH} levels",
            )
        for name, stored in scope.stored.items():
            self._add(name, scope.path, stored, "initializer")
        nodes = list(nodes)
        self._visited += len(nodes)
        if self._visited > _MAX_NODES:
            raise ModelFileError(
                "the model's functions call each other too often",
                where=scope.path,
                expected=f"at most {_MAX_NODES} nodes in all",
            )
        for node in nodes:
            for output in node.output:
                scope.producers[output] = node
            for name in node.input:
                scope.consumers.setdefault(name, []).append(node)
            tensor = constant_value(node)
            if tensor is not None and node.output:
                self._add(node.output[0], scope.path, tensor, "constant")
        for index, node in enumerate(nodes):
            try:
                if scope.runs:
                    self._visit_uses(scope, node)
                never = self._branch_that_never_runs(scope, node)
            except _DAMAGE as error:
                raise ModelFileError(
                    f"a {node.op_type} node, or one that it reads from, does not make sense",
                    where=f"node {node.name or list(node.output)!r}",
                    got=f"{type(error).__name__}: {error}",
                ) from error
            self._visit_inner(scope, node, index, depth, never)

    def _visit_inner(
        self, scope: _Scope, node: NodeProto, index: int, depth: int, never: str
    ) -> None:
        label = node.name or f"{node.op_type}_{index}"
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                path = "/".join(filter(None, [scope.path, f"{label}.{attribute.name}"]))
                inner = _graph_scope(graph, path, scope)
                inner.runs = scope.runs and attribute.name != never
                self.visit(inner, graph.node, depth + 1)
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            inner = _Scope(f"{function.domain}::{function.name}", {}, set(), runs=scope.runs)
            inner.bindings = {
                formal: (scope, actual)
                for formal, actual in zip(function.input, node.input, strict=False)
                if actual
            }
            self.visit(inner, function.node, depth + 1)

    def _add(self, name: str, path: str, proto: Stored, kind: str) -> None:
        if id(proto) in self._by_id:
            return
        unique = name
        if unique in self._by_name:
            unique = f"{path}/{name}"
            while unique in self._by_name:
                unique += "'"
        stored = _Stored(unique, path, proto, kind)
        self._by_id[id(proto)] = self._by_name[unique] = stored

    def _visit_uses(self, scope: _Scope, node: NodeProto) -> None:
        if node.op_type in REARRANGING or (node.domain, node.op_type) in self._functions:
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        roles = SLOTS.get((domain, node.op_type), {})
        for slot, value in enumerate(node.input):
            views = self._views(scope, value) if value else []
            role = roles.get(slot)
            if views and domain == "" and role is None:
                role = self._operand_role(scope, node, slot, views)
            if views and role in ("weight", "operand") and scope.holds_frequencies(node, slot):
                role = None
            for view in views:
                use = Use(
                    node=node.name or next(iter(node.output), ""),
                    op_type=node.op_type,
                    slot=slot,
                    role=role if view.tensor.data_type in _FLOAT_TYPES else None,
                    value=value,
                    reduction_axis=reduction_axis(node, slot, view) if role else None,
                    output_axis=output_axis(node, slot, view) if role else None,
                    channel_groups=channel_groups(node, slot, view) if role else None,
                    depthwise=role == "weight" and is_depthwise(node, view),
                )
                view.tensor.uses.append(use)

    def _operand_role(
        self, scope: _Scope, node: NodeProto, slot: int, views: Sequence[_View]
    ) -> str | None:
        if node.op_type == "Einsum":
            return "weight"
        if node.op_type in PASSING and (node.op_type == "Concat" or slot == 0):
            return "operand"
        if node.op_type not in ELEMENTWISE or len(node.input) != 2:
            return None
        other = node.input[1 - slot]
        position = node.op_type == "Add" and all(_varies_along_axes(view) > 1 for view in views)
        if not position and self._comes_from_input(scope, other):
            return None
        producer = scope.producers.get(other)
        if node.op_type == "Add" and producer is not None and producer.op_type in LINEAR_OPS:
            return "bias"
        return "operand"

    def _comes_from_input(self, scope: _Scope, name: str) -> bool:
        """Whether a value is a graph input up to normalisation with constants."""
        for _ in range(16):
            if name in scope.bindings:
                scope, name = scope.bindings[name]
                continue
            if name in scope.inputs:
                return scope.parent is None
            node = scope.producers.get(name)
            if node is None or not node.input:
                return False
            if node.op_type in ELEMENTWISE and len(node.input) == 2:
                stored = [self._resolve(scope, value) is not None for value in node.input]
                if stored[0] == stored[1]:
                    return False
                name = node.input[stored.index(False)]
            elif node.op_type in REARRANGING:
                name = node.input[0]
            else:
                return False
        return False

    def _views(self, scope: _Scope, name: str) -> list[_View]:
        """Views of the stored tensors that a value is made of; none if anything else goes in."""
        view = self._resolve(scope, name)
        return [view] if view is not None else self._selected(scope, name, {}, 0)

    def _selected(
        self, scope: _Scope, name: str, known: dict[tuple[int, str], list[_View]], depth: int
    ) -> list[_View]:
        """Follow a value back through nodes that select from stored tensors and join them.

        Exporters reorder the gates of recurrent weights, and take attention's projections apart,
        in this way. Of a tensor that is taken apart and joined again there is one view.
        """
        view = self._resolve(scope, name)
        if view is not None:
            return [view] if view.tensor.data_type in _FLOAT_TYPES else []
        scope, name = _bound(scope, name)
        key = (id(scope), name)
        if key in known:
            return known[key]
        known[key] = []
        node = scope.producers.get(name)
        if node is None or depth > _MAX_SELECTIONS or len(known) > _MAX_SELECTIONS:
            return []
        follow = partial(self._selected, known=known, depth=depth + 1)
        if node.op_type == "Concat" and node.domain in ("", "ai.onnx"):
            parts = [follow(scope, value) for value in node.input]
            if parts and all(parts):
                unique = {id(view.tensor): view for view in joined(parts, node)}
                known[key] = list(unique.values())
        elif node.op_type in REARRANGING | SELECTING and node.input:
            ints = partial(self._small_ints, scope)
            fixed = node.op_type != "Gather" or self._resolve(scope, node.input[1]) is not None
            views = follow(scope, node.input[0]) if fixed else []
            known[key] = [forwarded(view, node, name, ints) for view in views]
        return known[key]

    def _resolve(self, scope: _Scope, name: str) -> _View | None:
        """Follow a value back to the stored tensor that it is a rearrangement of."""
        chain: list[tuple[_Scope, NodeProto]] = []
        for _ in range(4096):
            if name in scope.bindings:
                scope, name = scope.bindings[name]
            elif name in scope.stored:
                return self._replay(self._by_id[id(scope.stored[name])], chain)
            elif name in scope.producers:
                node = scope.producers[name]
                tensor = constant_value(node)
                if tensor is not None:
                    return self._replay(self._by_id[id(tensor)], chain)
                if node.op_type not in REARRANGING or not node.input:
                    return None
                chain.append((scope, node))
                name = node.input[0]
            elif scope.parent is not None and name not in scope.inputs:
                scope = scope.parent
            else:
                return None
        return None

    def _replay(self, tensor: _Stored, chain: list[tuple[_Scope, NodeProto]]) -> _View | None:
        if chain and tensor.data_type not in _FLOAT_TYPES:
            return None
        view = View(tensor, tensor.shape, tuple(range(len(tensor.shape))))
        for scope, node in reversed(chain):
            view = forwarded(view, node, node.output[0], partial(self._small_ints, scope))
        return view

    def _small_ints(self, scope: _Scope, name: str) -> list[int] | None:
        view = self._resolve(scope, name)
        if view is None or view.tensor.data_type != TensorProto.INT64:
            return None
        if int(np.prod(view.tensor.shape)) > 64:
            return None
        return [int(item) for item in stored_array(view.tensor.proto).ravel()]

    def _branch_that_never_runs(self, scope: _Scope, node: NodeProto) -> str:
        """The attribute of an If with the branch that its condition rules out; empty if none is."""
        if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
            return ""
        condition = self._number(scope, node.input[0], 0)
        if condition is None:
            return ""
        return "else_branch" if condition else "then_branch"

    def _number(self, scope: _Scope, name: str, depth: int) -> Number | None:
        """The single number that a value is in any case; None if the file does not decide it."""
        scope, name = _bound(scope, name)
        node = scope.producers.get(name)
        stored = scope.stored.get(name)
        if stored is None and node is not None:
            stored = constant_value(node)
        if stored is not None:
            single = math.prod(stored_shape(stored)) == 1
            return stored_array(stored).item() if single else None
        if node is None or depth > _MAX_CONDITION_DEPTH:
            return None
        operands = [self._number(scope, value, depth + 1) for value in node.input if value]
        return computed(node, operands)

    def result(self) -> dict[str, GraphTensor]:
        in_constants = self._weights_in_constants()
        scalars = self._scalars
        return {n: _classified(t, in_constants, scalars) for n, t in self._by_name.items()}

    def _weights_in_constants(self) -> bool:
        kinds = {
            tensor.kind
            for tensor in self._by_name.values()
            if any(use.role in WEIGHT_ROLES for use in tensor.uses)
        }
        return kinds == {"constant"}


def _classified(stored: _Stored, weights_in_constants: bool, scalars: bool) -> GraphTensor:
    """Decide over one tensor.

    Args:
        stored: The tensor with its uses.
        weights_in_constants: Whether the model keeps its weights in `Constant` nodes.
        scalars: Whether a named scalar is a parameter, as in PyTorch's exports, which keep plain
            numbers in `Constant` nodes.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(stored.data_type)
    size = int(np.prod(stored.shape, dtype=np.int64))
    named = not _FOLDED_CONSTANT.fullmatch(stored.name)
    if stored.kind == "constant":
        named = weights_in_constants
    learned_operand = named and (size > 1 or (scalars and stored.kind == "initializer"))
    uses = [use for use in stored.uses if _keeps_role(use, stored, named, learned_operand)]
    best = min(uses, key=_rank_of_use, default=None)
    depthwise = best is not None and best.depthwise
    return GraphTensor(
        name=stored.name,
        scope=stored.scope,
        proto=stored.proto,
        kind=stored.kind,
        shape=stored.shape,
        dtype=np.dtype(dtype),
        role=best.role if best else None,
        op_type=best.op_type if best else "",
        node=best.node if best else "",
        trainable=any(use.role not in STATISTICS_ROLES for use in uses),
        prunable=(
            best is not None
            and best.role in WEIGHT_ROLES
            and best.op_type in PRUNABLE_OPS
            and len(stored.shape) >= 2
            and size > 0
            and not depthwise
        ),
        depthwise=depthwise,
        reduction_axis=best.reduction_axis if best else None,
        output_axis=best.output_axis if best else None,
        channel_groups=best.channel_groups if best else None,
        uses=tuple(stored.uses),
    )


def _keeps_role(use: Use, stored: _Stored, named: bool, learned_operand: bool) -> bool:
    if use.role is None or 0 in stored.shape:
        return False
    if use.role == "embedding":
        return len(stored.shape) >= 2
    if not named and use.role in _NEUTRAL and _is_neutral(stored, use.role):
        return False
    if use.role == "operand" or (use.role == "bias" and use.op_type == "Add"):
        return learned_operand and not _is_mask(stored_array(stored.proto))
    return True


def _is_neutral(stored: _Stored, role: str) -> bool:
    """Whether values do nothing: exporters fill in what an operator needs and nobody learned."""
    return bool((stored_array(stored.proto) == _NEUTRAL[role]).all())


def _is_mask(values: np.ndarray) -> bool:
    """Whether an operand switches values off, as attention masks do with -inf, -10000 or -100."""
    values = values.astype(np.float64)
    if not bool((np.abs(values) < _MASK_MAGNITUDE).all()):
        return True
    lowest = values.min()
    return bool(lowest <= _MASK_OFFSET and ((values == 0) | (values == lowest)).all())


def _rank_of_use(use: Use) -> int:
    if use.role in WEIGHT_ROLES and use.op_type in PRUNABLE_OPS:
        return 1 if use.depthwise else 0
    if use.role in STATISTICS_ROLES:
        return 4
    return 3 if use.role == "operand" else 2


def _bound(scope: _Scope, name: str) -> tuple[_Scope, str]:
    """Where a value is computed: outside of function calls and sub-graphs that only pass it on."""
    while True:
        if name in scope.bindings:
            scope, name = scope.bindings[name]
            continue
        known = name in scope.producers or name in scope.stored or name in scope.inputs
        if known or scope.parent is None:
            return scope, name
        scope = scope.parent


def _varies_along_axes(view: _View) -> int:
    return sum(dim != 1 for dim in view.shape)

"""Weights that a graph computes from stored values before an operator multiplies with them.

What is stored then is not what counts: a product with ones hides a dense weight from whoever looks
for weights, quantised weights are stored as integers, and a slice can leave zeros of a large tensor
to nobody. Such weights are computed, and their zeros counted, where that takes simple operators.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from onnxprune.export.liveness import Reading, needed_readings
from onnxprune.payload import inner_graphs
from onnxprune.slots import PRUNABLE_OPS, SLOTS, WEIGHT_ROLES
from onnxprune.stored import Stored, constant_value, stored_array, stored_type
from onnxprune.tensor_views import REARRANGING, attribute_of

_SELECTING = frozenset({"Slice", "Split", "Gather", "Concat"})
_ELEMENTWISE = frozenset({"Mul", "Add", "Sub", "Div", "Where"})
_COMPUTED = REARRANGING | _SELECTING | _ELEMENTWISE | {"DequantizeLinear", "ScatterND"}
_QUANTISED = {
    "QLinearConv": {3: 5},
    "ConvInteger": {1: 3},
    "QLinearMatMul": {0: 2, 3: 5},
    "MatMulInteger": {0: 2, 1: 3},
}
"""Operators on stored integers: slots of weights and of their zero points."""

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16})
_FLOATS |= {onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
_STANDARD = ("", "ai.onnx")
_MOST_ELEMENTS = 2**27
"""Largest value that is computed."""


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that no stored tensor is, whole and only rearranged.

    Attributes:
        readings: Where it is read.
        value: Name of the value.
        op_type: Operator that multiplies with it.
        by: Operator that computes it; that itself where it takes stored integers.
        size: Number of values; 0 if it could not be computed.
        zeros: Values that are zero; None if it could not be computed.
        selected: Whether it is stored values in another order, or some of them, and nothing else.
    """

    readings: frozenset[Reading]
    value: str
    op_type: str
    by: str
    size: int
    zeros: int | None
    selected: bool


def computed_weights(proto: onnx.ModelProto) -> list[ComputedWeight]:
    """The computed weights that outputs of a model depend on, in graph order.

    Values that depend on an input of the model are activations and no weights.
    """
    if proto.functions:
        proto = inline_local_functions(proto)
    finder = _Finder(proto, needed_readings(proto))
    finder.visit(_Scope.of(proto.graph, None))
    return list(finder.found.values())


class _Unknown(Exception):
    """A value that is not computed here; says which operator makes it."""


@dataclass(eq=False)
class _Scope:
    graph: GraphProto
    parent: "_Scope | None"
    stored: dict[str, Stored]
    makers: dict[str, NodeProto] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: GraphProto, parent: "_Scope | None") -> "_Scope":
        stored: dict[str, Stored] = {tensor.name: tensor for tensor in graph.initializer}
        stored |= {sparse.values.name: sparse for sparse in graph.sparse_initializer}
        scope = cls(graph, parent, stored)
        for node in graph.node:
            value = constant_value(node)
            for name in node.output:
                if value is None:
                    scope.makers[name] = node
                else:
                    scope.stored[name] = value
        return scope

    def place(self, name: str) -> "_Scope | None":
        """The scope in which a name is made or stored; None for an input."""
        if name in self.makers or name in self.stored:
            return self
        if self.parent is None or any(value.name == name for value in self.graph.input):
            return None
        return self.parent.place(name)


class _Finder:
    def __init__(self, proto: onnx.ModelProto, needed: set[Reading]) -> None:
        self._opsets = list(proto.opset_import)
        self._needed = needed
        self._constant: dict[tuple[int, str], bool] = {}
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self._scopes: list[_Scope] = []
        self.found: dict[tuple[int, str], ComputedWeight] = {}

    def visit(self, scope: _Scope) -> None:
        """Look at the nodes of a graph, and of the graphs inside."""
        self._scopes.append(scope)  # so that no other takes its id
        for node in scope.graph.node:
            for slot in _weight_slots(node):
                label = node.name or next(iter(node.output), "")
                reading = (label, node.op_type, slot, node.input[slot])
                others = [name for at, name in enumerate(node.input[:4]) if name and at != slot]
                if reading in self._needed and not self._all_constant(scope, others):
                    self._look_at(scope, node, slot, reading)
            for _, graph in inner_graphs(node):
                self.visit(_Scope.of(graph, scope))

    def _all_constant(self, scope: _Scope, names: Sequence[str]) -> bool:
        return all(self._is_constant(scope, name) for name in names)

    def _look_at(self, scope: _Scope, node: NodeProto, slot: int, reading: Reading) -> None:
        name = node.input[slot]
        quantised = node.op_type in _QUANTISED and node.domain in _STANDARD
        if not self._is_constant(scope, name):
            return
        chain, root = self._origin(scope, name)
        if not quantised and root is not None and chain <= REARRANGING:
            return
        place = scope.place(name) or scope
        key = (id(place), name)
        known = self.found.get(key)
        if known is not None:
            readings = known.readings | {reading}
            self.found[key] = ComputedWeight(readings, *_rest(known))
            return
        maker = place.makers.get(name)
        by = node.op_type if quantised or maker is None else maker.op_type
        try:
            values = self._array(scope, name)
            if quantised:
                values = values - self._zero_point(scope, node, slot)
        except _Unknown as reason:
            size, zeros, by = 0, None, str(reason)
        else:
            size, zeros = values.size, values.size - int(np.count_nonzero(values))
        selected = not quantised and chain <= REARRANGING | _SELECTING
        self.found[key] = ComputedWeight(
            frozenset({reading}), name, node.op_type, by, size, zeros, selected
        )

    def _zero_point(self, scope: _Scope, node: NodeProto, slot: int) -> np.ndarray:
        place = _QUANTISED[node.op_type][slot]
        name = node.input[place] if place < len(node.input) else ""
        point = self._array(scope, name) if name else np.zeros((), np.int32)
        if point.size != 1:
            raise _Unknown(node.op_type)
        return point.astype(np.int32).reshape(())

    def _origin(self, scope: _Scope, name: str) -> tuple[frozenset[str], Stored | None]:
        """Operators on the way to all that a value is made of, and the only float tensor there."""
        operators: set[str] = set()
        tensors: dict[int, Stored] = {}
        todo, seen = [(scope, name)], set()
        while todo:
            scope, name = todo.pop()
            place = scope.place(name)
            if place is None or (id(place), name) in seen:
                continue
            seen.add((id(place), name))
            stored = place.stored.get(name)
            if stored is not None:
                tensors[id(stored)] = stored
                continue
            node = place.makers[name]
            operators.add(node.op_type if node.domain in _STANDARD else "another domain's")
            data = node.input[:1] if node.op_type in REARRANGING | _SELECTING else node.input
            data = node.input if node.op_type == "Concat" else data
            todo += [(place, value) for value in data if value]
        single = next(iter(tensors.values())) if len(tensors) == 1 else None
        is_float = single is not None and stored_type(single) in _FLOATS
        return frozenset(operators), single if is_float else None

    def _is_constant(self, scope: _Scope, name: str) -> bool:
        """Whether a value depends on nothing but what the file stores."""
        place = scope.place(name)
        if place is None:
            return False
        key = (id(place), name)
        if key not in self._constant:
            self._constant[key] = name in place.stored or self._made_of_constants(place, name)
        return self._constant[key]

    def _made_of_constants(self, place: _Scope, name: str) -> bool:
        """Whether everything before a value is stored; without recursion, as graphs are deep."""
        todo, seen = [(place, name)], set()
        while todo:
            scope, value = todo.pop()
            where = scope.place(value)
            if where is None:
                return False
            if (id(where), value) in seen or value in where.stored:
                continue
            seen.add((id(where), value))
            if self._constant.get((id(where), value)) is False:
                return False
            node = where.makers[value]
            if next(inner_graphs(node), None) is not None or node.op_type.startswith("Random"):
                return False
            todo += [(where, item) for item in node.input if item]
        return True

    def _array(self, scope: _Scope, name: str) -> np.ndarray:
        place = scope.place(name)
        if place is None:
            raise _Unknown("an input")
        key = (id(place), name)
        if key not in self._arrays:
            stored = place.stored.get(name)
            self._arrays[key] = (
                stored_array(stored) if stored is not None else self._run(place, name)
            )
        return self._arrays[key]

    def _run(self, place: _Scope, name: str) -> np.ndarray:
        """What a node makes of values that are computed themselves."""
        node = place.makers[name]
        if node.op_type not in _COMPUTED or node.domain not in _STANDARD:
            raise _Unknown(node.op_type)
        inputs = {value: self._array(place, value) for value in node.input if value}
        if _elements(node, list(inputs.values())) > _MOST_ELEMENTS:
            raise _Unknown(node.op_type)
        if node.op_type == "DequantizeLinear":
            return _dequantised(node, [inputs[value] for value in node.input if value])
        function = helper.make_function("local", "one", list(inputs), [name], [node], self._opsets)
        try:
            (result,) = ReferenceEvaluator(function).run(None, inputs, attributes={})
        except Exception as error:  # whatever a damaged node makes of it
            raise _Unknown(node.op_type) from error
        return np.asarray(result)


def _rest(known: ComputedWeight) -> tuple[str, str, str, int, int | None, bool]:
    return known.value, known.op_type, known.by, known.size, known.zeros, known.selected


def _weight_slots(node: NodeProto) -> Iterator[int]:
    """Inputs of an operator that it takes for weights."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    slots = [
        slot
        for slot, role in SLOTS.get((domain, node.op_type), {}).items()
        if role in WEIGHT_ROLES and node.op_type in PRUNABLE_OPS
    ]
    if domain == "":
        slots += list(_QUANTISED.get(node.op_type, ()))
    yield from (slot for slot in slots if slot < len(node.input) and node.input[slot])


def _dequantised(node: NodeProto, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """`(x - zero point) * scale`, with one of both for all of `x` or for each entry of an axis."""
    x, scale, *point = (array.astype(np.float32) for array in inputs)
    axis = int(attribute_of(node, "axis", 1))
    shape = [1] * x.ndim
    if attribute_of(node, "block_size", 0) or scale.ndim > 1 or not -x.ndim <= axis < x.ndim:
        raise _Unknown(node.op_type)
    shape[axis] = scale.size
    try:
        shift = point[0].reshape(shape) if point else np.float32(0)
        return np.asarray((x - shift) * scale.reshape(shape))
    except ValueError as error:
        raise _Unknown(node.op_type) from error


def _elements(node: NodeProto, inputs: Sequence[np.ndarray]) -> int:
    """At most how many values a node makes; a graph can ask for more than there is memory for."""
    if node.op_type in _ELEMENTWISE:
        try:
            return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))
        except ValueError:
            return 0
    if node.op_type == "Gather" and len(inputs) > 1:
        return inputs[0].size * max(1, inputs[1].size)
    return sum(array.size for array in inputs)

"""Whether a graph computes each sample of its batch by itself.

A value is followed by where its samples lie: row-major, it is `before` groups of a part of each
sample, one after the other. Reshaping changes nothing of that; every other operator is asked which
axes it mixes. What is not known to keep samples apart counts as mixing them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.graph_shapes import GraphFacts, PartialShape
from onnxprune.payload import inner_graphs
from onnxprune.runtime.graph import GraphIndex, label
from onnxprune.runtime.sizes import TRIALS, Sizes, at_batches
from onnxprune.tensor_views import attribute_of

_ELEMENTWISE = frozenset(
    {"Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip"}
    | {"Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"}
    | {"Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal"}
    | {"Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"}
    | {"Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"}
    | {"Add", "And", "BitwiseAnd", "BitwiseOr", "Div", "Equal", "Greater", "GreaterOrEqual"}
    | {"Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub"}
    | {"Sum", "Where", "Xor"}
)
_IMAGES = frozenset(
    {"AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace"}
    | {"GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization"}
    | {"InstanceNormalization", "LRN", "LpPool", "MaxPool", "Resize", "SpaceToDepth", "Upsample"}
)
"""Operators that take the first axis for the batch."""

_REARRANGED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)
_ALONG_AXIS = frozenset({"ArgMax", "ArgMin", "CumSum", "Hardmax", "LogSoftmax", "Softmax", "Split"})
_FROM_AXIS = frozenset({"LayerNormalization", "RMSNormalization"})
_ON_SIZES = frozenset(
    {"Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor"}
    | {"Gather", "Identity", "Mul", "Neg", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub"}
    | {"Unsqueeze", "Where"}
)
"""What they make of sizes is a polynomial of the batch, of which a few batches tell whether it
depends on it; where quotients, comparisons and choices do not, they count as mixing."""

_FIRST_OF_SIZES = frozenset({"Gather", "Reshape", "ReduceProd", "Slice", "Squeeze", "Unsqueeze"})
"""Those of them of which only the first input may depend on the batch."""

_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE})
_OUTPUTS = _FLOATS | {
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    TensorProto.BOOL,
}
"""What `ConstantOfShape` makes in every opset, for a batch without samples."""

_SOFTMAX_FROM_AXIS = 13
"""Opset up to which a softmax is over all axes from its own on."""


@dataclass(frozen=True)
class _Place:
    """Where samples lie in a value of known shape: within one of its axes.

    Attributes:
        axis: The axis.
        before: Groups of samples that the axis is made of.
    """

    axis: int
    before: int


class _Mixes(Exception):
    """An operator may mix samples; the text says why."""


_Given = int | str
"""What is known of a value: groups of samples, or one of the following."""

_FIXED, _SIZES, _ROUNDED = "fixed", "sizes", "rounded"
"""The same for all samples, whatever the batch; computed from sizes, so for the batch at hand; and
that with rounded quotients, of which no few batches tell whether it depends on the batch."""


def mixing(proto: ModelProto, index: GraphIndex, sizes: Sizes) -> str | None:
    """Why the samples of a batch cannot be computed one by one; None if they can.

    They can if all outputs have the batch as their first axis, and no operator is in between that
    might mix samples. Nothing is run.

    Args:
        proto: The model.
        index: Its graph.
        sizes: Its shapes.
    """
    if sizes.batch is None:
        return "the inputs do not say which axis is the batch"
    fault = _frame_fault(index.graph, sizes.batch)
    if fault is not None:
        return fault
    for value in index.graph.output:
        if None in (sizes.certain(value.name) or (None, None))[1:]:
            return f"sizes of the output {value.name!r} depend on more than the batch"
    opset = next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    facts = at_batches(proto)
    try:
        for (batch, _), shapes in zip(TRIALS, sizes.trials, strict=True):
            _Analysis(index, opset, facts, batch, shapes).check()
    except _Mixes as reason:
        return str(reason)
    return None


def _frame_fault(graph: GraphProto, batch: str) -> str | None:
    """Why inputs and outputs keep samples together, whatever is between them; None if they do not.

    Inputs whose batch has no name may have batches of different sizes.
    """
    dims = [value.type.tensor_type.shape.dim for value in graph.input]
    unnamed = [d for d in dims if d and d[0].dim_value <= 0 and not d[0].dim_param]
    if len(unnamed) > 1:
        return "the inputs do not say that they have the same batch"
    if any(dim.dim_param == batch for d in dims for dim in d[1:]):
        return f"an axis that is not the first is as long as the batch {batch!r}"
    given = {value.name for value in graph.input}
    for value in graph.output:
        if value.name in given:
            return f"the output {value.name!r} is an input"
        if value.type.tensor_type.elem_type not in _OUTPUTS:
            return f"the output {value.name!r} is not of numbers"
    return None


class _Analysis:
    """One pass over a graph, with the sizes of one trial.

    Args:
        index: The graph.
        opset: Version of the standard operators.
        facts: What is known of values for batches of several sizes.
        batch: Size of the batch.
        shapes: Sizes of each value.
    """

    def __init__(
        self,
        index: GraphIndex,
        opset: int,
        facts: Mapping[int, GraphFacts],
        batch: int,
        shapes: Mapping[str, PartialShape],
    ) -> None:
        self._index = index
        self._opset = opset
        self._facts = facts
        self._batch = batch
        self._shapes = shapes
        self._known: dict[str, _Given] = dict.fromkeys(index.stored, _FIXED)

    def check(self) -> None:
        graph = self._index.graph
        if self._index.overridable:
            raise _Mixes("a caller may override weights")
        for value in graph.input:
            self._known[value.name] = self._of_input(value.name)
        if 1 not in self._known.values():
            raise _Mixes("no input has a batch whose size is open")
        for node in graph.node:
            known = self._outcome(node)
            for name in filter(None, node.output):
                self._known[name] = _FIXED if known == _SIZES and self._alike(name) else known
                self._check_growth(node, name)
        for value in graph.output:
            shape = self._shapes.get(value.name, ())
            if self._known.get(value.name) != 1 or shape[:1] != (self._batch,):
                raise _Mixes(f"the output {value.name!r} is not one value for each sample")

    def _of_input(self, name: str) -> _Given:
        shape = self._shapes.get(name)
        if shape is None:
            raise _Mixes(f"the input {name!r} has no shape")
        return 1 if shape[:1] == (self._batch,) else _FIXED

    def _outcome(self, node: NodeProto) -> _Given:
        inputs = [name for name in node.input if name]
        given = [self._known.get(name) for name in inputs]
        standard = node.domain in ("", "ai.onnx")
        if None in given or not standard or next(inner_graphs(node), None) is not None:
            raise self._mixes(node)
        if all(known == _FIXED for known in given):
            if node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
                raise self._mixes(node)
            return _FIXED
        if node.op_type in ("Shape", "Size"):
            return _SIZES
        if not any(isinstance(known, int) for known in given):
            expanded = self._expanded(node)
            return self._on_sizes(node) if expanded is None else expanded
        rule = self._rule(node)
        if rule is None:
            raise self._mixes(node)
        return rule(node)

    def _rule(self, node: NodeProto) -> Callable[[NodeProto], int] | None:
        op = node.op_type
        if op in _ELEMENTWISE:
            return self._elementwise
        if op in _REARRANGED:
            return self._rearranged
        if op in _IMAGES:
            # More outputs are statistics of the batch, or places in all of it.
            if len(node.output) > 1 or attribute_of(node, "training_mode", 0):
                return None
            return self._image
        if op in _REDUCTIONS:
            return self._reduced
        if op in _ALONG_AXIS or op in _FROM_AXIS:
            return self._along_axis
        rules: Mapping[str, Callable[[NodeProto], int]] = {
            "Concat": self._concat,
            "Gather": self._gather,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "Pad": self._pad,
            "Slice": self._slice,
            "Transpose": self._transpose,
        }
        return rules.get(op)

    # Rules: each gives the groups of samples of a node's outputs, or raises.

    def _elementwise(self, node: NodeProto) -> int:
        shape = self._shape(node, node.output[0])
        places = set()
        for name in filter(None, node.input):
            own = self._shape(node, name)
            shift = len(shape) - len(own)
            if isinstance(self._known[name], int):
                place = self._place(node, name)
                places.add(_Place(place.axis + shift, place.before))
        if len(places) != 1:
            raise self._mixes(node)
        place = places.pop()
        for name in filter(None, node.input):
            own = self._shape(node, name)
            axis = place.axis - (len(shape) - len(own))
            if isinstance(self._known[name], int):
                if own[axis] != shape[place.axis]:
                    raise self._mixes(node)
            elif self._known[name] != _FIXED or (axis >= 0 and own[axis] != 1):
                raise self._mixes(node)
        return self._groups(shape, place)

    def _rearranged(self, node: NodeProto) -> int:
        known = self._known[node.input[0]]
        if not isinstance(known, int):
            raise self._mixes(node)
        if node.op_type != "Reshape":
            self._first_only(node)
        self._place(node, node.output[0], known)
        return known

    def _image(self, node: NodeProto) -> int:
        sizes = None
        if node.op_type == "Resize":
            sizes = 3
            modes = ("coordinate_transformation_mode", "keep_aspect_ratio_policy")
            if {attribute_of(node, mode) for mode in modes} & {
                *(b"tf_crop_and_resize", b"not_larger", b"not_smaller"),
            }:
                raise self._mixes(node)
        return self._along(node, lambda axis, rank: axis != 0, sizes=sizes)

    def _along(
        self, node: NodeProto, mixed: Callable[[int, int], bool], *, sizes: int | None = None
    ) -> int:
        """Operators whose outputs have the axes of their first input; `mixed` says which mix."""
        self._first_only(node, sizes=sizes)
        place = self._place(node, node.input[0])
        before = self._shape(node, node.input[0])
        if mixed(place.axis, len(before)):
            raise self._mixes(node)
        return self._moved(node, before[place.axis], place)

    def _along_axis(self, node: NodeProto) -> int:
        default = 0 if node.op_type == "Split" else -1
        old = node.op_type in ("Hardmax", "LogSoftmax", "Softmax")
        old = old and self._opset < _SOFTMAX_FROM_AXIS
        if old:
            default = 1
        rank = len(self._shape(node, node.input[0]))
        if node.op_type == "CumSum":
            axes = self._axes(node, 1)
            axis = axes[0] if axes else 0
        else:
            default = 0 if node.op_type.startswith("Arg") else default
            axis = int(attribute_of(node, "axis", default)) % rank
        if node.op_type in _FROM_AXIS or old:
            return self._along(node, lambda at, rank: at >= axis)
        if not attribute_of(node, "keepdims", 1):
            return self._without(node, [axis])
        return self._along(node, lambda at, rank: at == axis)

    def _reduced(self, node: NodeProto) -> int:
        attribute = attribute_of(node, "axes")
        rank = len(self._shape(node, node.input[0]))
        axes = self._axes(node, 1) if attribute is None else [int(a) % rank for a in attribute]
        if not axes:
            raise self._mixes(node)
        if not attribute_of(node, "keepdims", 1):
            return self._without(node, axes)
        return self._along(node, lambda at, rank: at in axes)

    def _without(self, node: NodeProto, axes: Sequence[int]) -> int:
        """Reductions that drop axes."""
        self._first_only(node)
        place = self._place(node, node.input[0])
        if place.axis in axes:
            raise self._mixes(node)
        size = self._shape(node, node.input[0])[place.axis]
        dropped = sum(axis < place.axis for axis in axes)
        return self._moved(node, size, _Place(place.axis - dropped, place.before))

    def _concat(self, node: NodeProto) -> int:
        places = {self._place(node, name) for name in node.input}
        rank = len(self._shape(node, node.output[0]))
        axis = int(attribute_of(node, "axis", 0)) % rank
        if len(places) != 1:
            raise self._mixes(node)
        place = places.pop()
        if place.axis == axis:
            raise self._mixes(node)
        return self._moved(node, self._shape(node, node.input[0])[place.axis], place)

    def _gather(self, node: NodeProto) -> int:
        data, indices = (self._known[name] for name in node.input)
        rank = len(self._shape(node, node.input[0]))
        axis = int(attribute_of(node, "axis", 0)) % rank
        if data == _FIXED and isinstance(indices, int) and axis == 0:
            place = self._place(node, node.input[1])
            return self._moved(node, self._shape(node, node.input[1])[place.axis], place)
        if isinstance(data, int) and indices == _FIXED:
            place = self._place(node, node.input[0])
            added = len(self._shape(node, node.input[1])) - 1
            if place.axis == axis:
                raise self._mixes(node)
            size = self._shape(node, node.input[0])[place.axis]
            after = place.axis + (added if place.axis > axis else 0)
            return self._moved(node, size, _Place(after, place.before))
        raise self._mixes(node)

    def _gemm(self, node: NodeProto) -> int:
        a, *others = node.input
        shape = self._shape(node, a)
        bias = [self._shape(node, name) for name in others[1:2] if name]
        if (
            any(self._known[name] != _FIXED for name in others if name)
            or attribute_of(node, "transA", 0)
            or any(len(own) == 2 and own[0] != 1 for own in bias)
        ):
            raise self._mixes(node)
        place = self._place(node, a)
        if place.axis != 0:
            raise self._mixes(node)
        return self._moved(node, shape[0], place)

    def _matmul(self, node: NodeProto) -> int:
        out = self._shape(node, node.output[0])
        places = set()
        for side, name in enumerate(node.input):
            shape = self._shape(node, name)
            if len(shape) < 2:
                raise self._mixes(node)
            if isinstance(self._known[name], int):
                place = self._place(node, name)
                summed = len(shape) - (1 if side == 0 else 2)
                if place.axis == summed:
                    raise self._mixes(node)
                places.add(_Place(place.axis + len(out) - len(shape), place.before))
            elif self._known[name] != _FIXED:
                raise self._mixes(node)
        if len(places) != 1:
            raise self._mixes(node)
        place = places.pop()
        both = all(isinstance(self._known[name], int) for name in node.input)
        if both and place.axis >= len(out) - 2:
            raise self._mixes(node)
        for name in node.input:
            shape = self._shape(node, name)
            axis = place.axis - (len(out) - len(shape))
            stacked = 0 <= axis < len(shape) - 2
            size = shape[axis] if stacked else 1
            if isinstance(self._known[name], int):
                if stacked and size != out[place.axis]:
                    raise self._mixes(node)
            elif size != 1:
                raise self._mixes(node)
        return self._groups(out, place)

    def _pad(self, node: NodeProto) -> int:
        pads = attribute_of(node, "pads")
        if pads is None:
            stored = self._index.array(node.input[1]) if len(node.input) > 1 else None
            if stored is None or (len(node.input) > 3 and node.input[3]):
                raise self._mixes(node)
            pads = stored.tolist()
        rank = len(self._shape(node, node.input[0]))
        if len(pads) != 2 * rank:
            raise self._mixes(node)
        return self._along(node, lambda at, rank: bool(pads[at] or pads[at + rank]))

    def _slice(self, node: NodeProto) -> int:
        attribute = attribute_of(node, "axes")
        rank = len(self._shape(node, node.input[0]))
        if attribute is not None:
            axes = [int(a) % rank for a in attribute]
        elif len(node.input) > 3 and node.input[3]:
            axes = self._axes(node, 3)
        else:
            raise self._mixes(node)
        if not axes:
            raise self._mixes(node)
        return self._along(node, lambda at, rank: at in axes)

    def _transpose(self, node: NodeProto) -> int:
        shape = self._shape(node, node.input[0])
        order = [int(a) for a in attribute_of(node, "perm", list(reversed(range(len(shape)))))]
        place = self._place(node, node.input[0])
        moved = _Place(order.index(place.axis), place.before)
        return self._moved(node, shape[place.axis], moved)

    def _expanded(self, node: NodeProto) -> int | None:
        """Groups of samples of a constant that is repeated for each of them."""
        if node.op_type not in ("Expand", "ConstantOfShape"):
            return None
        shape = self._shapes.get(node.output[0])
        if shape is None or shape[:1] != (self._batch,):
            return None
        if node.op_type == "Expand":
            if self._known[node.input[0]] != _FIXED:
                return None
            own = self._shape(node, node.input[0])
            if len(own) == len(shape) and own[0] != 1:
                return None
        return 1

    def _on_sizes(self, node: NodeProto) -> _Given:
        """Whether what is computed from sizes is exact for every batch; raises if not known."""
        inputs = [name for name in node.input if name]
        known = [self._known[name] for name in inputs]
        op = node.op_type
        if op not in _ON_SIZES or (op in _FIRST_OF_SIZES and set(known[1:]) - {_FIXED}):
            raise self._mixes(node)
        if op == "Equal" and not self._never_equal(inputs, known):
            raise self._mixes(node)
        if op == "Cast" and attribute_of(node, "to") == TensorProto.BOOL:
            raise self._mixes(node)
        if _ROUNDED in known or op in ("Ceil", "Floor"):
            return _ROUNDED
        if op == "Div" and not self._divides(node):
            if self._facts[self._batch].elem_types.get(node.output[0]) not in _FLOATS:
                raise self._mixes(node)
            return _ROUNDED
        return _SIZES

    def _never_equal(self, inputs: Sequence[str], known: Sequence[_Given]) -> bool:
        """Whether sizes are compared with -1 or the like, so for no batch as equal."""
        numbers = self._facts[self._batch].numbers
        return any(
            fixed == _FIXED and max(numbers.get(name, (0,)), default=0) < 0
            for name, fixed in zip(inputs, known, strict=True)
        )

    def _divides(self, node: NodeProto) -> bool:
        """Whether quotients of integers have no remainder."""
        for facts in self._facts.values():
            parts = [facts.numbers.get(name) for name in (*node.input, node.output[0])]
            if None in parts:
                return False
            a, b, quotient = (np.array(part, dtype=object) for part in parts)
            if not np.array_equal(quotient * b, np.broadcast_to(a, quotient.shape)):
                return False
        return True

    # Helpers.

    def _alike(self, name: str) -> bool:
        """Whether a value is of integers that are the same for batches of different sizes."""
        numbers = {facts.numbers.get(name) for facts in self._facts.values()}
        return len(numbers) == 1 and None not in numbers

    def _check_growth(self, node: NodeProto, name: str) -> None:
        """Only the axis with the samples may grow with the batch, from one sample on."""
        shapes = {batch: facts.shapes.get(name) for batch, facts in self._facts.items()}
        shape = shapes.pop(TRIALS[0][0])
        axis = self._place(node, name).axis if isinstance(self._known[name], int) else None
        for batch, found in shapes.items():
            expected = None if shape is None else list(shape)
            if expected is not None and axis is not None and axis < len(expected):
                expected[axis] = (expected[axis] or 0) * batch // TRIALS[0][0]
            if found is None or list(found) != expected:
                raise _Mixes(f"the shape of {name!r} does not only grow with the batch")

    def _axes(self, node: NodeProto, place: int) -> list[int]:
        """Axes that a node reads as a constant."""
        name = node.input[place] if len(node.input) > place else ""
        stored = self._index.array(name) if name else None
        if stored is None:
            raise self._mixes(node)
        rank = len(self._shape(node, node.input[0]))
        return [int(axis) % rank for axis in np.ravel(stored)]

    def _first_only(self, node: NodeProto, *, sizes: int | None = None) -> None:
        """Only the first input may have samples, and one of a given place may have sizes."""
        others = {
            place: self._known[name] for place, name in enumerate(node.input) if place and name
        }
        if others.get(sizes or 0) in (_SIZES, _ROUNDED):
            del others[sizes or 0]
        first = self._known[node.input[0]]
        if not isinstance(first, int) or any(known != _FIXED for known in others.values()):
            raise self._mixes(node)

    def _moved(self, node: NodeProto, size: int, place: _Place) -> int:
        """Groups of samples of outputs that have them in an axis as long as before."""
        groups = set()
        for name in filter(None, node.output):
            shape = self._shape(node, name)
            if place.axis >= len(shape) or shape[place.axis] != size:
                raise self._mixes(node)
            groups.add(self._groups(shape, place))
        if len(groups) != 1:
            raise self._mixes(node)
        return groups.pop()

    @staticmethod
    def _groups(shape: Sequence[int], place: _Place) -> int:
        return math.prod(shape[: place.axis]) * place.before

    def _place(self, node: NodeProto, name: str, known: _Given | None = None) -> _Place:
        """The axis in which a value has its samples."""
        groups = self._known[name] if known is None else known
        if not isinstance(groups, int):
            raise self._mixes(node)
        shape = self._shape(node, name)
        for axis, size in enumerate(shape):
            outer = math.prod(shape[:axis])
            if outer and groups % outer == 0 and size % (groups // outer * self._batch) == 0:
                return _Place(axis, groups // outer)
        raise self._mixes(node)

    def _shape(self, node: NodeProto, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        if shape is None or None in shape:
            raise _Mixes(
                f"the shape of {name!r} is not known, which {label(node)!r} reads or makes"
            )
        return tuple(size for size in shape if size is not None)

    def _mixes(self, node: NodeProto) -> _Mixes:
        return _Mixes(f"{node.op_type} {label(node)!r} may mix samples")

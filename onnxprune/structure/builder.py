"""Builds a flow: keeps track of profiles, of stored tensors, and of what nodes are made of."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.cascade.flow import (
    Link,
    Move,
    Opaque,
    Operand,
    Pointwise,
    Product,
    Profile,
    Reduce,
    Step,
    Stored,
)
from onnxprune.structure.sizes import Size, Sizes, aligned, fixed
from onnxprune.tensor_views import attribute_of
from onnxprune.tensors import GraphTensor

LARGEST_PROFILE = 2**20
"""Values whose profile would have more elements are not analysed."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

_LARGEST_OPERAND = 2**14
"""A stored operand with more elements, of which more than one axis varies, is not looked into."""


class Whole(Exception):
    """A node is not analysed: all that it reads is used, and all that it makes varies."""


class Builder:
    """Takes down the steps of a flow.

    Args:
        sizes: Sizes of the graph's values, as far as they are known.
        numbers: Elements of small integer values, as far as they are known.
        stored: Which stored tensor a value is, and how it is rearranged.
        tensors: The stored tensors.
        fixed: Names of those that training does not change.
        version: Version of the default operator set.
        elem_types: Element types of values, as ONNX numbers them.
        read: Names of all values that something reads.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sizes],
        numbers: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, Stored],
        tensors: Mapping[str, GraphTensor],
        fixed: frozenset[str],
        version: int,
        elem_types: Mapping[str, int],
        read: frozenset[str],
    ) -> None:
        self.sizes = dict(sizes)
        self.numbers = numbers
        self.stored = stored
        self.version = version
        self.elem_types = elem_types
        self.read = read
        self.tensors = tensors
        self.profiles: dict[str, Profile] = {}
        self.operands: dict[str, Operand] = {}
        self.steps: list[Step] = []
        self._fixed = fixed
        self._fresh = 0
        self._unranked: set[str] = set()

    def rank(self, value: str) -> int:
        """Number of axes of a value."""
        if value in self.sizes:
            return len(self.sizes[value])
        if value not in self.profiles or value in self._unranked:
            raise Whole
        return len(self.profiles[value])

    def size(self, value: str, axis: int) -> Size:
        """Size of an axis; None if it is not known."""
        self.rank(value)
        if value in self.sizes:
            return self.sizes[value][axis]
        length = self.profiles[value][axis]
        return (length, length) if length > 1 else None

    def profile(self, value: str) -> Profile:
        """Profile of a value that steps make or the file stores."""
        if value in self._unranked:
            raise Whole
        if value not in self.profiles:
            if value in self.stored:
                self.operand(value)
            else:
                self.profiles[value] = (1,) * self.rank(value)
        return self.profiles[value]

    def any_profile(self, value: str) -> Profile:
        """Profile of a value, also where its rank is not known."""
        try:
            return self.profile(value)
        except Whole:
            self._unranked.add(value)
            self.profiles[value] = ()
            return ()

    def operand(self, value: str, shape: Sequence[int] | None = None) -> str:
        """Name for a stored value of the given shape, its own by default.

        Large tables stay unknown.
        """
        stored = self.stored[value]
        tensor = self.tensors[stored.names[-1]]
        view = stored.view
        own = view_shape(stored, tensor.shape)
        name = value
        if shape is not None and tuple(shape) != own:
            view = (*view, Link(tuple(shape), tuple(range(len(shape)))))
            name = f"{value}:{'x'.join(map(str, shape))}"
        own = tuple(shape) if shape is not None else own
        if name in self.operands or name in self.profiles:
            return name
        lengths = [length for length in own if length != 1]
        small = len(lengths) < 2 or math.prod(lengths) <= _LARGEST_OPERAND
        known = small and 0 not in own and math.prod(own) <= LARGEST_PROFILE
        if not known or tensor.elem_type not in FLOATS:
            self.profiles[name] = (1,) * len(own)
            return name
        values = None
        if tensor.name in self._fixed and math.prod(own) <= _LARGEST_OPERAND:
            values = np.asarray(tensor.array(), dtype=np.float64)
        self.profiles[name] = own
        self.operands[name] = Operand(name, Stored(stored.names, view), values)
        return name

    def ints(self, node: NodeProto, slot: int, attribute: str) -> list[int] | None:
        """Integers that an input gives, or in older operator sets an attribute; None without both.

        Raises:
            Whole: The input is computed from what is not known.
        """
        if len(node.input) > slot and node.input[slot]:
            if node.input[slot] not in self.numbers:
                raise Whole
            return list(self.numbers[node.input[slot]])
        value = attribute_of(node, attribute)
        return None if value is None else [int(item) for item in value]

    def is_false(self, value: str) -> bool:
        """Whether a value is a stored one of nothing but False or 0."""
        if value not in self.stored:
            return False
        return not self.tensors[self.stored[value].names[-1]].array().any()

    def fresh(self, name: str) -> str:
        """A name for a value that the graph does not have."""
        self._fresh += 1
        return f"{name}#{self._fresh}"

    def pointwise(
        self,
        function: str,
        inputs: Sequence[str],
        output: str,
        settings: Sequence[float] = (),
    ) -> str:
        """A function of single elements of values of known rank."""
        profiles = [self.profile(value) for value in inputs]
        try:
            profile = np.broadcast_shapes(*profiles)
        except ValueError as error:
            raise Whole from error
        self._make(output, profile)
        self.steps.append(Pointwise(function, tuple(inputs), output, tuple(settings)))
        return output

    def move(self, inputs: Sequence[str], index: np.ndarray, output: str, fill: float = 0.0) -> str:
        """Copy elements; see `Move`."""
        self._make(output, index.shape)
        self.steps.append(Move(tuple(inputs), output, index.astype(np.int64), fill))
        return output

    def reshaped(self, value: str, profile: Sequence[int], output: str) -> str:
        """The same elements in another profile."""
        count = math.prod(self.profile(value))
        return self.move([value], np.arange(count).reshape(tuple(profile)), output)

    def reduce(self, kind: str, value: str, axes: Sequence[int], output: str) -> str:
        """Reduce axes to size 1; see `Reduce`."""
        profile = list(self.profile(value))
        axes = sorted({axis % len(profile) for axis in axes}) if profile else []
        count: int | None = 1
        for axis in axes:
            size = fixed(self.size(value, axis))
            if profile[axis] == 1:
                count = None if size is None or count is None else count * size
            profile[axis] = 1
        self._make(output, tuple(profile))
        self.steps.append(Reduce(kind, value, output, tuple(axes), count))
        return output

    def uniform(self, value: str, axes: Sequence[int]) -> str:
        """The value without distinction along some axes; itself if there is none anyway."""
        profile = self.profile(value)
        distinct = [axis % len(profile) for axis in axes if profile[axis] != 1]
        return self.reduce("same", value, distinct, self.fresh(value)) if distinct else value

    def product(
        self,
        weight: Stored,
        form: tuple[int, int, int, int],
        value: str,
        output: str,
        profile: Profile,
        padded: bool,
    ) -> str:
        """Sums of products with a stored weight; see `Product`."""
        self._make(output, profile)
        self.steps.append(Product(weight, form, value, output, padded))
        return output

    def opaque(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """What is not analysed; see `Opaque`."""
        for value in (*inputs, *outputs):
            self.any_profile(value)
        self.steps.append(Opaque(tuple(inputs), tuple(outputs)))

    def undo(self, steps: int) -> None:
        """Forget all steps but the first ones."""
        for step in self.steps[steps:]:
            names = step.outputs if isinstance(step, Opaque) else (step.output,)
            for name in names:
                self.profiles.pop(name, None)
        del self.steps[steps:]

    def _make(self, output: str, profile: Sequence[int]) -> None:
        if math.prod(profile) > LARGEST_PROFILE or 0 in profile:
            raise Whole
        known = self.sizes.get(output)
        if known is not None and len(known) != len(profile):
            raise Whole
        for length, size in zip(profile, known or (), strict=False):
            if length != 1 and size is not None and size != (length, length):
                raise Whole
        self.profiles[output] = tuple(profile)


def view_shape(stored: Stored, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a stored tensor where it is read."""
    result = tuple(shape)
    for link in stored.view:
        result = tuple(link.shape[axis] for axis in link.axes)
    return result


def regrouped(profile: Profile, before: Sizes, after: Sizes) -> np.ndarray:
    """Where the elements of a profile go in a reshape, as the index of a `Move`.

    Args:
        profile: The profile before.
        before: Sizes before.
        after: Sizes after.

    Raises:
        Whole: Axes that are told apart are mixed with those that are not, in an unknown way.
    """
    result = np.zeros((1,) * len(after), dtype=np.int64)
    for inner, outer in aligned(before, after):
        lengths = [profile[axis] for axis in inner]
        stride = math.prod(profile[inner[-1] + 1 :]) if inner else 1
        if math.prod(lengths) == 1:
            continue
        sizes = [fixed(before[axis]) for axis in inner]
        target = [fixed(after[axis]) for axis in outer]
        full = [size for size in sizes if size is not None]
        new = [size for size in target if size is not None]
        complete = len(full) == len(sizes) and len(new) == len(target)
        if not complete or math.prod(full) != math.prod(new):
            raise Whole
        if math.prod(full) > LARGEST_PROFILE:
            raise Whole
        places = np.arange(math.prod(lengths), dtype=np.int64).reshape(lengths) * stride
        places = np.broadcast_to(places, full).reshape(new)
        shape = [1] * len(after)
        for axis, size in zip(outer, new, strict=True):
            shape[axis] = size
        result = result + places.reshape(shape)
        if result.size > LARGEST_PROFILE:
            raise Whole
    return result

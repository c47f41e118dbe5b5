"""Shapes of a graph's values: certain sizes, and whether two values always have the same ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, TypeProto

from onnxprune.graph_shapes import GraphFacts, PartialShape, infer_facts

TRIALS = ((29, 96), (31, 160))
"""Sizes for the batch axis and for every other axis that the inputs leave open, in two trials.

No network makes a batch's two sizes out of the others."""

_MORE_BATCHES = (1, 2, 1000)
"""One sample, as it is computed by itself; an even number of them; and more than most sizes."""

_BATCH = "onnxprune_batch"
"""The name of a batch axis to which the inputs give none."""


@dataclass(frozen=True)
class Sizes:
    """Shapes in two trials that differ in every axis that the model leaves open.

    Attributes:
        trials: Sizes of each value.
        batch: The name of the batch axis; None where inputs give it several.
    """

    trials: tuple[dict[str, PartialShape], dict[str, PartialShape]]
    batch: str | None

    @classmethod
    def of(cls, proto: ModelProto) -> "Sizes":
        """Infer the shapes; `proto` is as before when this returns."""
        first, second = (dict(_inferred(proto, t[0], _trial_size(*t)).shapes) for t in TRIALS)
        axes = [value.type.tensor_type.shape.dim[:1] for value in proto.graph.input]
        names = {dim.dim_param or _BATCH for dims in axes for dim in dims if dim.dim_value <= 0}
        return cls((first, second), names.pop() if len(names) == 1 else None)

    def certain(self, value: str) -> PartialShape | None:
        """Sizes, None for each that depends on the inputs or is not known; None without rank."""
        shapes = [trial.get(value) for trial in self.trials]
        if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
            return None
        return tuple(a if a == b else None for a, b in zip(*shapes, strict=True))

    def named(self, value: str) -> list[int | str | None] | None:
        """Sizes, with the batch's name for a first axis that is as long as the batch.

        ONNX Runtime lets an operator write over one of its inputs only where it knows that both
        have the same shape, and it cannot infer the shapes of operators that are not its own.
        """
        certain = self.certain(value)
        if certain is None:
            return None
        shape: list[int | str | None] = list(certain)
        firsts = tuple(trial[value][0] for trial in self.trials) if shape else ()
        if firsts == tuple(batch for batch, _ in TRIALS):
            shape[0] = self.batch
        return shape

    def of_sample(self, value: str) -> list[int]:
        """Sizes without those of the batch, which is the first axis.

        Raises:
            ValueError: They are not certain.
        """
        sizes = [size for size in (self.certain(value) or (None, None))[1:] if size is not None]
        if len(sizes) + 1 != self.rank(value):
            raise ValueError(value)
        return sizes

    def rank(self, value: str) -> int | None:
        """Number of axes; None if it is not known."""
        certain = self.certain(value)
        return None if certain is None else len(certain)

    def same(self, one: str, other: str) -> bool:
        """Whether two values have the same shape, whatever the inputs' sizes are."""
        pairs = [(trial.get(one), trial.get(other)) for trial in self.trials]
        return all(a is not None and a == b and None not in a for a, b in pairs)

    def per_sample(self, value: str, *, without: int) -> int | None:
        """Elements of a value for one sample, one axis left out; None if they are not certain.

        With a fixed batch, they are those of the whole batch.
        """
        counts = []
        for (batch, _), trial in zip(TRIALS, self.trials, strict=True):
            shape = list(trial.get(value, ()))
            if not shape or len(shape) <= without:
                return None
            del shape[without]
            if None in shape:
                return None
            counts.append((batch, math.prod(size for size in shape if size is not None)))
        (first, one), (second, other) = counts
        if one == other:
            return one
        return one // first if one * second == other * first else None


def shapes_at(proto: ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, PartialShape]:
    """Shapes of a graph's values for inputs of given shapes; `proto` is as before at the end."""
    batch = next((shape[0] for shape in inputs.values() if shape), 1)
    return dict(_inferred(proto, batch, lambda name, axis: inputs[name][axis]).shapes)


def at_batches(proto: ModelProto) -> dict[int, GraphFacts]:
    """What is known of all values for batches of several sizes, all else being equal."""
    other = TRIALS[0][1]
    sizes = (*(batch for batch, _ in TRIALS), *_MORE_BATCHES)
    return {batch: _inferred(proto, batch, _trial_size(batch, other)) for batch in sizes}


def _inferred(proto: ModelProto, batch: int, size: Callable[[str, int], int]) -> GraphFacts:
    """What is known of all values, with a size for every axis that an input leaves open."""
    before = []
    for value in proto.graph.input:
        kept = TypeProto()
        kept.CopyFrom(value.type)
        before.append(kept)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.dim_value = size(value.name, axis)
    try:
        return infer_facts(proto, batch)
    finally:
        for value, kept in zip(proto.graph.input, before, strict=True):
            value.type.CopyFrom(kept)


def _trial_size(batch: int, other: int) -> Callable[[str, int], int]:
    return lambda name, axis: batch if axis == 0 else other

"""A graph as plain data, as far as the structural closure has to know it.

Of every value of the graph there is a *profile*: a shape with as many axes as the value, in which
an axis has either its full size or 1. Along an axis of size 1 the elements of the value are not
told apart: what is said of one holds for all of them. The output of a convolution, for instance,
has the profile (1, channels, 1, 1), whatever the sizes of batch and image are.

Steps say how the elements of values follow from those of others. There are five kinds, and every
operator is described by a few of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Profile: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Link:
    """One rearrangement of a stored tensor: a reshape, then a permutation of its axes.

    Attributes:
        shape: What the tensor is reshaped to.
        axes: The axis of `shape` that each axis of the result is.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A stored tensor where a step reads it.

    Attributes:
        names: Names under which its values may be found, the best first: the name by which the
            node reads it, then that of the tensor. They differ where the file shares a tensor
            through aliases.
        view: How it is rearranged on the way.
    """

    names: tuple[str, ...]
    view: tuple[Link, ...]


@dataclass(frozen=True)
class Operand:
    """A value that is stored: a bias, a norm's parameters, a constant.

    Attributes:
        value: Name of the value.
        stored: Where it comes from.
        fixed: Its values as the file has them, for what training does not change; else None.
    """

    value: str
    stored: Stored
    fixed: np.ndarray | None = None


@dataclass(frozen=True)
class Move:
    """Elements are copied: reshape, transpose, slice, concat and the like.

    Attributes:
        inputs: Values whose flattened profiles, one after the other, are the source.
        output: The value that is made.
        index: For each element of the output's profile its place in the source; -1 for `fill`.
        fill: A constant that takes places without a source.
    """

    inputs: tuple[str, ...]
    output: str
    index: np.ndarray
    fill: float = 0.0


@dataclass(frozen=True)
class Pointwise:
    """A function of the elements at the same place, after broadcasting.

    Attributes:
        function: One of `onnxprune.cascade.pointwise.FUNCTIONS`.
        inputs: Its arguments.
        output: The value that is made.
        settings: Numbers that the function needs besides.
    """

    function: str
    inputs: tuple[str, ...]
    output: str
    settings: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reduce:
    """Elements along some axes are reduced to one; the axes stay, with size 1.

    Attributes:
        kind: What is known of the result where the elements are constant: `same` (equal ones stay
            as they are), `zero` (zeros stay zero), `mean`, `max`, `min`, `sum`, or `unknown`.
        input: The value.
        output: The value that is made.
        axes: Axes of the profile.
        count: For `sum`, number of elements of the value that one of its profile stands for along
            the axes; None if it is not known.
    """

    kind: str
    input: str
    output: str
    axes: tuple[int, ...]
    count: int | None = 1


@dataclass(frozen=True)
class Product:
    """Sums of products with a stored weight: convolution, Gemm, MatMul.

    Attributes:
        weight: The weight; its view ends in `form`.
        form: (groups, out_channels, in_channels, taps), the channels of one group.
        input: The value, whose profile holds all in channels, or one element for all of them.
        output: The value that is made, without bias; its profile holds all out channels.
        padded: Whether sums may run over the borders, so that a constant input does not give a
            constant output.
        takes: Name of the `Operand` that is added directly behind this product and nowhere else
            (a bias), or subtracted (a running mean), and so can take constants; else None.
        subtracted: Whether `takes` is subtracted.
    """

    weight: Stored
    form: tuple[int, int, int, int]
    input: str
    output: str
    padded: bool
    takes: str | None = None
    subtracted: bool = False


@dataclass(frozen=True)
class Opaque:
    """An operation that is not analysed: uses all of its inputs, and its outputs vary.

    Attributes:
        inputs: Values that it reads.
        outputs: Values that it makes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Step: TypeAlias = Move | Pointwise | Reduce | Product | Opaque


@dataclass(frozen=True)
class Flow:
    """What flows where in a graph.

    Attributes:
        profiles: The profile of every value.
        operands: Values that are stored.
        steps: How the other values are made, sources first.
        outputs: Values of which every element is used outside.
        uses: For each stored name the number of operator inputs that it feeds.
        held: Stored tensors that something else than a `Product` reads, so that none of their
            weights may go.
    """

    profiles: Mapping[str, Profile]
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    outputs: frozenset[str]
    uses: Mapping[str, int]
    held: frozenset[str]

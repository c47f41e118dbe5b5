"""Patterns of fx calls, written as formulas.

A pattern is built from `Var`, `Number`, `Stored` and `Call` with Python's arithmetic::

    x = Var()
    gelu = x * (Call(torch.erf, x / math.sqrt(2)) + 1) * 0.5

Products and sums match whatever the order and the grouping of their terms: `x * (erf * 0.5)`,
`0.5 * (x * erf)` and `x * erf / 2` are one product of two tensors and the number 0.5. A pattern
that occurs twice matches the same value in both places.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

Term = tuple[Any, int]
"""A value, and 1 if it is added or multiplied, -1 if it is subtracted or divided by."""


class Pattern:
    """What a value may look like."""

    def __add__(self, other: "Pattern | float") -> "Sum":
        return Sum(_terms(self, 1, Sum) + _terms(other, 1, Sum))

    def __sub__(self, other: "Pattern | float") -> "Sum":
        return Sum(_terms(self, 1, Sum) + _terms(other, -1, Sum))

    def __mul__(self, other: "Pattern | float") -> "Product":
        return Product(_terms(self, 1, Product) + _terms(other, 1, Product))

    def __truediv__(self, other: "Pattern | float") -> "Product":
        return Product(_terms(self, 1, Product) + _terms(other, -1, Product))


class Var(Pattern):
    """Any tensor."""


class Number(Pattern):
    """Any number."""


class Argument(Pattern):
    """Any argument at all, such as the axes of a reduction."""


class Rest(Pattern):
    """All further positional arguments, as a tuple."""


@dataclass(frozen=True, eq=False)
class Stored(Pattern):
    """A parameter or buffer with a number of axes."""

    rank: int


@dataclass(frozen=True, eq=False)
class Whole(Pattern):
    """A product or sum that is computed once and read several times, so that it is one value."""

    inner: Pattern


@dataclass(frozen=True, eq=False)
class Either(Pattern):
    """The first of several forms that fits."""

    forms: tuple[Pattern, ...]


class Call(Pattern):
    """A call of a function, or of a method given by name.

    Arguments that are no patterns have to be equal; numbers within the tolerance.
    """

    def __init__(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> None:
        self.target = target
        self.args = args
        self.kwargs = kwargs


@dataclass(frozen=True, eq=False)
class Module(Pattern):
    """A call of a module of some class."""

    kind: type[nn.Module]
    argument: Pattern


class Joined(Pattern):
    """Terms that are joined by an associative and commutative operator and its inverse."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = tuple(
            (value, sign)
            for value, sign in terms
            if isinstance(value, Pattern) and not isinstance(value, Number)
        )
        known = [(float(value), sign) for value, sign in terms if not isinstance(value, Pattern)]
        unknown = [value for value, _ in terms if isinstance(value, Number)]
        self.number: float | Number = unknown[0] if unknown else self.joined(known)

    @staticmethod
    def joined(numbers: list[Term]) -> float:
        """Value of the terms that are numbers."""
        raise NotImplementedError

    @staticmethod
    def operands(node: fx.Node) -> list[Term] | None:
        """What a node joins, None if it is no such operator."""
        raise NotImplementedError


class Sum(Joined):
    """Added and subtracted terms."""

    @staticmethod
    def joined(numbers: list[Term]) -> float:
        """Value of the terms that are numbers."""
        return math.fsum(value * sign for value, sign in numbers)

    @staticmethod
    def operands(node: fx.Node) -> list[Term] | None:
        """What a node adds and subtracts."""
        if node.target in (operator.add, torch.add) and not node.kwargs:
            return [(node.args[0], 1), (node.args[1], 1)]
        if node.target is operator.sub:
            return [(node.args[0], 1), (node.args[1], -1)]
        return None


class Product(Joined):
    """Multiplied terms, and terms divided by."""

    @staticmethod
    def joined(numbers: list[Term]) -> float:
        """Value of the terms that are numbers."""
        result = 1.0
        for value, sign in numbers:
            if value == 0 and sign < 0:
                return math.nan
            result = result * value if sign > 0 else result / value
        return result

    @staticmethod
    def operands(node: fx.Node) -> list[Term] | None:
        """What a node multiplies and divides by."""
        if node.target is operator.mul:
            return [(node.args[0], 1), (node.args[1], 1)]
        if node.target is operator.truediv:
            return [(node.args[0], 1), (node.args[1], -1)]
        if node.target is torch.reciprocal:
            return [(node.args[0], -1)]
        return None


def _terms(value: "Pattern | float", sign: int, kind: type[Joined]) -> tuple[Term, ...]:
    """The value as terms of a sum or product, which a sum or product is merged into."""
    if not isinstance(value, kind):
        return ((value, sign),)
    merged = [(term, sign * own) for term, own in value.terms]
    return (*merged, (value.number, sign))

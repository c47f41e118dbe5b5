"""How patterns are matched with the calls of a graph."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from onnxprune.importer.fusion.pattern import (
    Argument,
    Call,
    Either,
    Joined,
    Module,
    Number,
    Pattern,
    Rest,
    Stored,
    Term,
    Var,
    Whole,
)


@dataclass(frozen=True)
class Bound:
    """What patterns have matched so far, and the calls that were looked through for it."""

    values: dict[Pattern, Any] = field(default_factory=dict)
    inner: frozenset[fx.Node] = frozenset()

    def bind(self, pattern: Pattern, value: Any) -> "Bound | None":
        """With one more pattern, None if it matched another value before."""
        if pattern in self.values:
            known = self.values[pattern]
            same = known is value or (not isinstance(value, fx.Node) and known == value)
            return self if same else None
        return Bound({**self.values, pattern: value}, self.inner)

    def through(self, *nodes: fx.Node) -> "Bound":
        """With calls that the match replaces."""
        return Bound(self.values, self.inner.union(nodes))


class Matcher:
    """Matches patterns against the values of one graph.

    Args:
        root: Module whose parameters and buffers the graph reads.
        tolerance: Relative difference of numbers that are taken for equal.
    """

    def __init__(self, root: nn.Module, tolerance: float) -> None:
        self.root = root
        self.tolerance = tolerance

    def match(self, pattern: Any, value: Any, bound: Bound) -> Iterator[Bound]:
        """All ways in which a value fits a pattern."""
        if isinstance(pattern, Pattern) and pattern in bound.values:
            again = bound.bind(pattern, value)
            if again is not None:
                yield again
        elif isinstance(pattern, Var | Argument | Rest | Number | Stored):
            if self._fits(pattern, value):
                found = self.number(value) if isinstance(pattern, Number) else value
                yield from _one(bound.bind(pattern, found))
        elif isinstance(pattern, Either):
            for form in pattern.forms:
                yield from self.match(form, value, bound)
        elif isinstance(pattern, Whole):
            for found in self.match(pattern.inner, value, bound):
                yield from _one(found.bind(pattern, value))
        elif isinstance(pattern, Call | Module):
            for found in self._match_call(pattern, value, bound):
                yield from _one(found.bind(pattern, value))
        elif isinstance(pattern, Joined):
            yield from self._match_joined(pattern, value, bound)
        elif self._equal(pattern, value):
            yield bound

    def number(self, value: Any) -> float | None:
        """A number in the graph, or in a buffer without axes."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        stored = self.stored(value)
        if stored is None or isinstance(stored, nn.Parameter) or stored.ndim:
            return None
        return float(stored)

    def stored(self, value: Any) -> Tensor | None:
        """The parameter or buffer that a node reads."""
        if not isinstance(value, fx.Node):
            return None
        target = str(value.target) if value.op == "get_attr" else value.meta.get("stored")
        found = getattr(self.root, target) if target else None
        return found if isinstance(found, Tensor) else None

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.root.get_submodule(str(node.target))

    def _fits(self, pattern: Pattern, value: Any) -> bool:
        if isinstance(pattern, Var):
            return isinstance(value, fx.Node)
        if isinstance(pattern, Number):
            return self.number(value) is not None
        if isinstance(pattern, Stored):
            stored = self.stored(value)
            return stored is not None and stored.ndim == pattern.rank
        return True

    def _equal(self, expected: Any, value: Any) -> bool:
        if isinstance(expected, bool) or not isinstance(expected, int | float):
            return bool(expected == value)
        number = self.number(value)
        return number is not None and math.isclose(
            number, expected, rel_tol=self.tolerance, abs_tol=1e-12
        )

    def _match_call(self, pattern: Call | Module, value: Any, bound: Bound) -> Iterator[Bound]:
        if not isinstance(value, fx.Node):
            return
        if isinstance(pattern, Module):
            if value.op == "call_module" and isinstance(self.module(value), pattern.kind):
                yield from self.match(pattern.argument, value.args[0], bound.through(value))
            return
        if value.op not in ("call_function", "call_method") or value.target != pattern.target:
            return
        given = value.args
        if pattern.args and isinstance(pattern.args[-1], Rest):
            count = len(pattern.args) - 1
            given = (*given[:count], given[count:])
        if len(given) != len(pattern.args) or value.kwargs.keys() != pattern.kwargs.keys():
            return
        pairs = list(zip(pattern.args, given, strict=True))
        pairs += [(pattern.kwargs[key], value.kwargs[key]) for key in pattern.kwargs]
        yield from self._match_all(pairs, bound.through(value))

    def _match_all(self, pairs: list[tuple[Any, Any]], bound: Bound) -> Iterator[Bound]:
        if not pairs:
            yield bound
            return
        (pattern, value), *rest = pairs
        for found in self.match(pattern, value, bound):
            yield from self._match_all(rest, found)

    def _match_joined(self, pattern: Joined, value: Any, bound: Bound) -> Iterator[Bound]:
        operands = pattern.operands(value) if isinstance(value, fx.Node) else None
        if operands is None:
            if pattern.number == pattern.joined([]) and len(pattern.terms) == 1:
                term, sign = pattern.terms[0]
                yield from self.match(term, value, bound) if sign == 1 else ()
            return
        for terms, nodes in self._expansions(pattern, operands, (value,)):
            numbers = [(self.number(term), sign) for term, sign in terms]
            number = pattern.joined([(n, sign) for n, sign in numbers if n is not None])
            tensors = [t for t, (n, _) in zip(terms, numbers, strict=True) if n is None]
            for found in self.match(pattern.number, number, bound.through(*nodes)):
                yield from self._assign(pattern.terms, tensors, found)

    def _expansions(
        self, pattern: Joined, terms: list[Term], nodes: tuple[fx.Node, ...]
    ) -> Iterator[tuple[list[Term], tuple[fx.Node, ...]]]:
        """The terms of a value, with terms that are joined themselves taken apart or left whole."""
        tensors = sum(self.number(value) is None for value, _ in terms)
        if tensors > len(pattern.terms):
            return
        if tensors == len(pattern.terms):
            yield terms, nodes
        for index, (value, sign) in enumerate(terms):
            inner = pattern.operands(value) if isinstance(value, fx.Node) else None
            if inner is not None and len(value.users) == 1:
                taken = [(term, sign * own) for term, own in inner]
                parts = [*terms[:index], *taken, *terms[index + 1 :]]
                yield from self._expansions(pattern, parts, (*nodes, value))

    def _assign(
        self, patterns: tuple[Term, ...], terms: list[Term], bound: Bound
    ) -> Iterator[Bound]:
        """Match terms with patterns in any order."""
        if not patterns:
            yield bound
            return
        (pattern, sign), *rest = patterns
        for index, (value, own) in enumerate(terms):
            if own == sign:
                for found in self.match(pattern, value, bound):
                    yield from self._assign(tuple(rest), terms[:index] + terms[index + 1 :], found)


def _one(bound: Bound | None) -> Iterator[Bound]:
    if bound is not None:
        yield bound

"""Rules that replace a group of calls by one, and how they are applied."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto
from torch import Tensor, fx, nn

from onnxprune.importer.fusion.fold import is_size
from onnxprune.importer.fusion.matcher import Bound, Matcher
from onnxprune.importer.fusion.pattern import Pattern
from onnxprune.importer.fusion.sizes import Sizes
from onnxprune.importer.values import FLOAT_TYPES
from onnxprune.shapes import type_shape

_TOLERANCE = 1e-6
_TOLERANCES: dict[int, float] = {
    TensorProto.FLOAT16: 2e-3,
    TensorProto.BFLOAT16: 1e-2,
    TensorProto.DOUBLE: 1e-12,
}
"""Rounding of constants in files of other types than float32."""


class Match:
    """A group of calls that fits a pattern.

    Attributes:
        root: The last call of the group, whose value the new one takes over.
    """

    def __init__(self, root: fx.Node, bound: Bound, matcher: Matcher, sizes: Sizes) -> None:
        self.root = root
        self._bound = bound
        self._matcher = matcher
        self._sizes = sizes

    def __getitem__(self, pattern: Pattern) -> Any:
        return self._bound.values[pattern]

    def get(self, pattern: Pattern) -> Any:
        """What a pattern matched, None if it is in another form of the rule."""
        return self._bound.values.get(pattern)

    def another(self, pattern: Pattern, node: fx.Node) -> "Match | None":
        """A match of another pattern, which replaces nothing."""
        for bound in self._matcher.match(pattern, node, Bound()):
            return Match(self.root, bound, self._matcher, self._sizes)
        return None

    def module(self, pattern: Pattern) -> Any:
        """The module that a matched node calls."""
        return self._matcher.module(self[pattern])

    def stored(self, node: fx.Node) -> Tensor | None:
        """The parameter or buffer that a node reads."""
        return self._matcher.stored(node)

    def sizes(self, node: fx.Node) -> tuple[int | None, ...] | None:
        """Sizes that are certain, None for others; None for an unknown number of axes."""
        return self._sizes.of(node)

    def equal(self, a: float, b: float) -> bool:
        """Whether two numbers are the same up to the rounding of the model's type."""
        return math.isclose(a, b, rel_tol=self._matcher.tolerance)

    def rank(self, node: fx.Node) -> int | None:
        """Number of axes."""
        sizes = self.sizes(node)
        return None if sizes is None else len(sizes)

    def is_float(self, node: fx.Node) -> bool:
        """Whether a tensor is certain to be of a floating-point type."""
        value_type = node.meta.get("type")
        return value_type is not None and value_type.tensor_type.elem_type in FLOAT_TYPES

    def is_size(self, value: Any, x: fx.Node, axis: int) -> bool:
        """Whether a number is the size of a tensor along an axis."""
        if not isinstance(value, int):
            return is_size(value, x, axis)
        certain, stated = self.sizes(x), type_shape(x.meta.get("type"))
        return any(sizes is not None and sizes[axis] == value for sizes in (certain, stated))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Emit a function call before the group's last one."""
        return self.root.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        """Emit a method call on the first argument."""
        return self.root.graph.call_method(name, args)

    def in_place_of(self, pattern: Pattern, module: nn.Module, *args: Any) -> fx.Node:
        """Put a module in the place of the one that a matched node calls, and emit its call."""
        target = str(self[pattern].target)
        owner = self.root.graph.owning_module or self._matcher.root
        owner.add_module(target, module)
        return self.root.graph.call_module(target, args)


Build = Callable[[Match], fx.Node | None]
"""Emits the replacement; None if what the pattern cannot say does not fit."""


@dataclass(frozen=True)
class Rule:
    """Patterns, and what replaces whatever fits one of them."""

    patterns: tuple[Pattern, ...]
    build: Build


class Rules:
    """The rules of one family, in the order in which they are tried."""

    def __init__(self) -> None:
        self.all: list[Rule] = []

    def replace(self, *patterns: Pattern) -> Callable[[Build], Build]:
        """Declare the decorated function the replacement of the patterns."""

        def keep(build: Build) -> Build:
            self.all.append(Rule(patterns, build))
            return build

        return keep


def apply(rules: Sequence[Rule], root: nn.Module, graph: fx.Graph) -> None:
    """Replace what fits a rule, from the end of the graph to its beginning.

    Later calls come first, so that a rule sees the whole of what earlier ones would fit a part of.
    A group is replaced only where nothing else reads the values inside it. The new call takes the
    name and the type of the last one; replaced calls are erased.
    """
    sizes = Sizes(root, graph)
    for node in list(reversed(graph.nodes)):
        if node.op.startswith("call_") and node.users:
            _replace(node, rules, root, sizes)


def _replace(node: fx.Node, rules: Sequence[Rule], root: nn.Module, sizes: Sizes) -> None:
    value_type = node.meta.get("type")
    elem_type = value_type.tensor_type.elem_type if value_type is not None else 0
    matcher = Matcher(root, _TOLERANCES.get(elem_type, _TOLERANCE))
    for rule in rules:
        for pattern in rule.patterns:
            for bound in matcher.match(pattern, node, Bound()):
                if not _is_closed(bound.inner, node):
                    continue
                with node.graph.inserting_before(node):
                    new = rule.build(Match(node, bound, matcher, sizes))
                if new is not None:
                    _take_over(node, new, bound.inner)
                    sizes.forget(node, new)
                    return


def _is_closed(inner: frozenset[fx.Node], root: fx.Node) -> bool:
    """Whether nothing outside a group reads the values inside it."""
    return all(node is root or inner.issuperset(node.users) for node in inner)


def _take_over(old: fx.Node, new: fx.Node, inner: frozenset[fx.Node]) -> None:
    old.replace_all_uses_with(new)
    if new.op.startswith("call_") and "named" not in new.meta:
        new.meta = {**old.meta, **new.meta}
        old.name, new.name = new.name, old.name
    for node in sorted(inner | {old}, reverse=True):
        if not node.users and node.graph is new.graph and node is not new:
            node.graph.erase_node(node)

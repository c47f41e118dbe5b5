"""Arithmetic with sizes that the weights determine."""

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from onnxprune.importer.fusion.sizes import Sizes
from onnxprune.importer.hosts import choose, negate, trunc_div

_SCALAR: set[Callable[..., Any]] = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod),
    *(operator.pow, operator.neg, operator.eq, operator.lt, operator.le, operator.gt, operator.ge),
    *(trunc_div, choose, negate, math.floor, math.ceil, math.sqrt, math.trunc, min, max, bool),
}


def fold_sizes(root: nn.Module, graph: fx.Graph) -> None:
    """Put certain sizes in place of `x.size(axis)`, and compute what is computed from them alone.

    Reads of sizes, and calls that compute with numbers, are erased from the graph where their
    result is known.
    """
    sizes = Sizes(root, fx.Graph())
    for node in list(graph.nodes):
        value = _folded(node, sizes)
        if value is None:
            sizes.learn(node)
            continue
        for user in list(node.users):
            user.args = _substituted(user.args, node, value)
            user.kwargs = _substituted(user.kwargs, node, value)
        graph.erase_node(node)


def _substituted(arguments: Any, node: fx.Node, value: Any) -> Any:
    return fx.node.map_arg(arguments, lambda argument: value if argument is node else argument)


def _folded(node: fx.Node, sizes: Sizes) -> Any:
    """What a node is known to compute: a number, or an operand of its own; otherwise None."""
    if node.op == "call_method" and node.target == "size":
        x, axis = node.args[0], node.args[1]
        known = sizes.of(x) if isinstance(x, fx.Node) else None
        return known[axis] if known is not None and isinstance(axis, int) else None
    if node.op != "call_function" or node.target not in _SCALAR or node.kwargs:
        return None
    if node.target is choose and isinstance(node.args[0], bool):
        return node.args[1] if node.args[0] else node.args[2]
    if node.target is operator.eq and _never_equal(*node.args):
        return False
    if not all(isinstance(argument, int | float) for argument in node.args):
        return None
    try:
        return node.target(*node.args)
    except (ArithmeticError, ValueError):
        return None


def is_size(value: Any, x: fx.Node, axis: int) -> bool:
    """Whether a value is `x.size(axis)`."""
    if not isinstance(value, fx.Node) or value.op != "call_method":
        return False
    return value.target == "size" and value.args == (x, axis)


def _never_equal(a: Any, b: Any) -> bool:
    """Whether a size is compared with a negative number."""
    is_size = isinstance(a, fx.Node) and a.op == "call_method" and a.target == "size"
    return is_size and isinstance(b, int) and b < 0

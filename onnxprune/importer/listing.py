"""An fx graph as a text that reads like a PyTorch module written by hand."""

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

_WIDTH = 100
_INDENT = "    "
_SHORT = 24
"""Arguments below this length stay on the line, however long that is."""

_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
_INLINE_METHODS = frozenset({"size", "t", "numel"})


def listing(graph: fx.Graph) -> str:
    """The `forward` that a graph amounts to.

    Parameters, sizes and arithmetic with sizes stand where they are used, functions of
    `torch.nn.functional` are called `F`, those of this package go by their name alone, and numbers
    have the digits that float32 needs.
    """
    return _Listing(graph).text()


class _Listing:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.inlined: dict[fx.Node, str] = {}

    def text(self) -> str:
        names = [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]
        lines = [f"def forward({', '.join(['self', *names])}):"]
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.inlined[node] = str(node.target)
            elif node.op == "output":
                lines += _wrapped("return ", [self.value(node.args[0])], "")
            elif _is_inlined(node):
                self.inlined[node] = self.expression(node)
            else:
                lines += self.statement(node)
        return "\n".join([*lines, ""])

    def statement(self, node: fx.Node) -> list[str]:
        text = self.special(node)
        if text is not None:
            return _wrapped(f"{node.name} = ", [text], "")
        return _wrapped(f"{node.name} = {self.callee(node)}(", self.arguments(node), ")")

    def expression(self, node: fx.Node) -> str:
        """A value in the place of its use, with parentheses if it is an operation."""
        if node.op == "get_attr":
            return f"self.{node.target}"
        text = self.special(node)
        if text is not None:
            return f"({text})" if node.target in _INFIX else text
        return f"{self.callee(node)}({', '.join(self.arguments(node))})"

    def special(self, node: fx.Node) -> str | None:
        """What Python writes without a call, None for all else."""
        if node.op != "call_function":
            return None
        if node.target in _INFIX and len(node.args) == 2:
            left, right = (self.value(argument) for argument in node.args)
            return f"{left} {_INFIX[node.target]} {right}"
        if node.target is operator.getitem:
            return f"{self.value(node.args[0])}[{self.index(node.args[1])}]"
        if node.target is getattr:
            return f"{self.value(node.args[0])}.{node.args[1]}"
        if node.target is operator.neg:
            return f"-{self.value(node.args[0])}"
        return None

    def callee(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"self.{node.target}"
        if node.op == "call_method":
            return f"{self.value(node.args[0])}.{node.target}"
        return _function_name(node.target)

    def arguments(self, node: fx.Node) -> list[str]:
        positional = node.args[1:] if node.op == "call_method" else node.args
        named = [f"{key}={self.value(value)}" for key, value in node.kwargs.items()]
        return [self.outermost(value) for value in positional] + named

    def outermost(self, value: Any) -> str:
        """A value that needs no parentheses around it."""
        text = self.value(value)
        if isinstance(value, fx.Node) and value in self.inlined and text.startswith("("):
            return text[1:-1]
        return text

    def index(self, item: Any) -> str:
        if isinstance(item, tuple):
            return ", ".join(self.index(part) for part in item)
        if isinstance(item, slice):
            bounds = ["" if p is None else self.outermost(p) for p in (item.start, item.stop)]
            return ":".join([*bounds, *([] if item.step is None else [self.value(item.step)])])
        return self.outermost(item)

    def value(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.inlined.get(value, value.name)
        if isinstance(value, tuple | list):
            items = ", ".join(self.outermost(item) for item in value)
            if isinstance(value, list):
                return f"[{items}]"
            return f"({items},)" if len(value) == 1 else f"({items})"
        if isinstance(value, float):
            return _number(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        return repr(value)


def _is_inlined(node: fx.Node) -> bool:
    """Whether a value stands where it is used: parameters, and what the host computes for one."""
    if node.op == "get_attr" or node.target is getattr:
        return True
    if len(node.users) != 1:
        return False
    if node.op == "call_method":
        return node.target in _INLINE_METHODS
    return node.op == "call_function" and node.target in _INFIX and "type" not in node.meta


def _function_name(function: Any) -> str:
    name, module = function.__name__, getattr(function, "__module__", None) or ""
    if getattr(torch.nn.functional, name, None) is function:
        return f"F.{name}"
    if getattr(torch, name, None) is function:
        return f"torch.{name}"
    if module in ("builtins", "_operator") or module.startswith("onnxprune."):
        return str(name)
    return f"{module}.{name}"


def _number(value: float) -> str:
    """The shortest text that float32, in which the file holds it, reads as the same number."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return str(float(str(single))) if float(single) == value else repr(value)


def _wrapped(begin: str, parts: list[str], end: str) -> list[str]:
    """A statement in as many lines as its width takes, broken between arguments."""
    line = f"{_INDENT}{begin}{', '.join(parts)}{end}"
    if len(line) <= _WIDTH or not end or len(", ".join(parts)) < _SHORT:
        return [line]
    lines, current = [f"{_INDENT}{begin}"], ""
    for part in parts:
        longer = f"{current} {part}," if current else f"{part},"
        if current and len(longer) + 2 * len(_INDENT) > _WIDTH:
            lines.append(f"{_INDENT * 2}{current}")
            longer = f"{part},"
        current = longer
    return [*lines, f"{_INDENT * 2}{current}", f"{_INDENT}{end}"]

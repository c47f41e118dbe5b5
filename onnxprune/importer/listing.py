"""An fx graph as a text that reads like a PyTorch module written by hand."""

import math
import operator
import textwrap
from typing import Any

import numpy as np
import torch
from torch import fx, nn

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
_NAMESPACES = {
    "F": torch.nn.functional,
    "torch": torch,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
    "operator": operator,
}
"""Where functions are looked for, by the name that the text gives the module."""
_NAMES_OF_TEXT = frozenset({"self", "F", "torch", "operator", "float"})


def listing(graph: fx.Graph, name: str = "forward") -> str:
    """The function that a graph amounts to, as Python.

    Parameters, sizes and arithmetic with sizes stand where they are used, functions of
    `torch.nn.functional` are called `F`, those of this package go by their name alone, and numbers
    have the digits that float32 needs. A value whose name is also a function's has an underscore
    behind it.

    Args:
        graph: The graph.
        name: What to call the function.
    """
    return _Listing(graph).text(name)


def nested_listings(module: nn.Module) -> str:
    """The graphs inside a module, each a function under a line that says where it is."""
    texts: dict[str, str] = {}
    for path, inner in module.named_modules():
        if path and isinstance(inner, fx.GraphModule):
            around = max((other for other in texts if path.startswith(f"{other}.")), default="")
            name = path[len(around) :].lstrip(".").replace(".", "_")
            heading = f"# `self` is self.{path}"
            texts[path] = f"\n\n{heading}\n{listing(inner.graph, name)}"
    return "".join(texts.values())


class _Listing:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.inlined: dict[fx.Node, str] = {}
        self.names = _local_names(graph)

    def text(self, name: str) -> str:
        arguments = [self.names[node] for node in self.graph.nodes if node.op == "placeholder"]
        lines = _wrapped(f"def {name}(", ["self", *arguments], "):", indent="")
        for node in self.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                lines += self.result(node.args[0])
            elif _is_inlined(node):
                self.inlined[node] = self.expression(node)
            else:
                lines += self.statement(node)
        return "\n".join([*lines, ""])

    def result(self, value: Any) -> list[str]:
        if isinstance(value, tuple) and len(value) > 1:
            items = [self.outermost(item) for item in value]
            line = f"{_INDENT}return {', '.join(items)}"
            return [line] if len(line) <= _WIDTH else _wrapped("return (", items, ")")
        return [f"{_INDENT}return {self.value(value)}"]

    def statement(self, node: fx.Node) -> list[str]:
        text, name = self.special(node), self.names[node]
        if text is None:
            callee, arguments = self.callee(node), self.arguments(node)
            lines = _wrapped(f"{name} = {callee}(", arguments, ")")
            if len(lines[0]) <= _WIDTH:
                return lines
            text = f"{callee}({', '.join(arguments)})"
        line = f"{_INDENT}{name} = {text}"
        if len(line) <= _WIDTH:
            return [line]
        return [f"{_INDENT}{name} = (", *_filled(text), f"{_INDENT})"]

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
            if node.target is operator.pow and left.startswith("-"):
                left = f"({left})"
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
            return self.inlined.get(value) or self.names[value]
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


def _local_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Names of values, none of which hides what the text calls."""
    functions = [node.target for node in graph.nodes if node.op == "call_function"]
    called = {_function_name(function).partition(".")[0] for function in functions}
    own = {node: node.name for node in graph.nodes}
    own.update((n, str(n.target)) for n in graph.nodes if n.op == "placeholder")
    hidden, taken = _NAMES_OF_TEXT | called, set(own.values()) | called
    for node, name in own.items():
        if name in hidden:
            while name in taken or name in hidden:
                name += "_"
            taken.add(name)
            own[node] = name
    return own


def _function_name(function: Any) -> str:
    name, module = function.__name__, getattr(function, "__module__", None) or ""
    for place, namespace in _NAMESPACES.items():
        short = name.removeprefix(f"{place.removeprefix('torch.')}_")
        if getattr(namespace, short, None) is function:
            return f"{place}.{short}"
    if module == "builtins" or module.startswith("onnxprune."):
        return str(name)
    return f"{module}.{name}"


def _number(value: float) -> str:
    """The shortest text that float32, in which the file holds it, reads as the same number."""
    if not math.isfinite(value):
        return f"float('{value}')"
    with np.errstate(over="ignore"):
        single = np.float32(value)
    short = float(str(single))
    same = float(single) == value and abs(short) <= float(np.finfo(np.float32).max)
    return str(short) if same else repr(value)


def _wrapped(begin: str, parts: list[str], end: str, indent: str = _INDENT) -> list[str]:
    """A call in as many lines as its width takes, broken between arguments."""
    line = f"{indent}{begin}{', '.join(parts)}{end}"
    if len(line) <= _WIDTH or len(", ".join(parts)) < _SHORT:
        return [line]
    lines, current = [f"{indent}{begin}"], ""
    for part in parts:
        longer = f"{current} {part}," if current else f"{part},"
        if current and len(longer) + 2 * len(_INDENT) > _WIDTH:
            lines += _filled(current)
            longer = f"{part},"
        current = longer
    return [*lines, *_filled(current), f"{indent}{end}"]


def _filled(text: str) -> list[str]:
    """What stands within parentheses, in as many lines as it takes; strings stay whole."""
    indent = _INDENT * 2
    if "'" in text or '"' in text or len(indent + text) <= _WIDTH:
        return [f"{indent}{text}"]
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )

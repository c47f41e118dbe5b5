"""Which function turns which ONNX operator into PyTorch.

A builder is registered for an operator, a domain and a range of operator set versions::

    @register("LeakyRelu")
    def _leaky_relu(op: Op) -> Result:
        return op.call(F.leaky_relu, op.tensor(0), op.attr("alpha", 0.01))

`op` gives it the node's inputs and attributes and emits calls into the graph under construction. An
operator without a builder is expanded from its ONNX function body where it has one, and so is a
node whose builder raises `LeftToBody`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from onnxprune.importer.values import Value

if TYPE_CHECKING:
    from onnxprune.importer.op import Op

Result: TypeAlias = Value | Sequence[Value | None]
"""One output, or all outputs of a node in order."""

Builder: TypeAlias = Callable[["Op"], "Result"]


@dataclass(frozen=True)
class Entry:
    """A builder and the operator set versions that it is for.

    Attributes:
        domain: Operator domain; empty for standard ONNX.
        op_type: Operator.
        since: First operator set version that it handles.
        until: First one that it no longer handles; None if there is none.
        builder: The function.
        trains: Whether gradients pass; they do not where values are rounded to integers.
    """

    domain: str
    op_type: str
    since: int
    until: int | None
    builder: Builder
    trains: bool = True


class UnsupportedNode(Exception):
    """A builder cannot handle a node; the message says why."""


class LeftToBody(Exception):
    """A builder leaves a node to its ONNX function body."""


class UnsupportedInside(UnsupportedNode):
    """A node's sub-graph cannot be converted, for reasons that are listed already."""


_ENTRIES: dict[tuple[str, str], list[Entry]] = {}


def register(
    *op_types: str,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    trains: bool = True,
) -> Callable[[Builder], Builder]:
    """Declare the decorated function the builder of one or more operators.

    Args:
        op_types: Operators.
        domain: Their domain; empty for standard ONNX.
        since: First operator set version that the builder handles.
        until: First operator set version that it does not handle any more.
        trains: Whether gradients pass; they do not where values are rounded to integers.

    Raises:
        ValueError: One of the versions has a builder already.
    """

    def keep(builder: Builder) -> Builder:
        for op_type in op_types:
            entry = Entry(domain, op_type, since, until, builder, trains)
            known = _ENTRIES.setdefault((domain, op_type), [])
            if any(_overlap(entry, other) for other in known):
                kind = f"{domain}.{op_type}" if domain else op_type
                versions = f"versions {since} to {until}" if until else f"versions from {since} on"
                raise ValueError(f"{kind} has two builders for some of the {versions}")
            known.append(entry)
        return builder

    return keep


def _overlap(a: Entry, b: Entry) -> bool:
    return (b.until is None or a.since < b.until) and (a.until is None or b.since < a.until)


def find_entry(domain: str, op_type: str, version: int) -> Entry | None:
    """What is registered for an operator in one operator set version, or None."""
    for entry in _ENTRIES.get((domain, op_type), []):
        if entry.since <= version and (entry.until is None or version < entry.until):
            return entry
    return None


def entries() -> list[Entry]:
    """Everything that is registered, by domain and operator."""
    return [entry for key in sorted(_ENTRIES) for entry in _ENTRIES[key]]

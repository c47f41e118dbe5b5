"""Recognising what exporters decompose: one call of PyTorch in place of a group of calls."""

from torch import fx, nn

from onnxprune.importer.fusion import activation, attention, group_norm, layout, linear, norm
from onnxprune.importer.fusion.fold import fold_sizes
from onnxprune.importer.fusion.rule import apply

__all__ = ["fuse"]

_FAMILIES = (layout, attention, norm, group_norm, activation, linear)


def fuse(root: nn.Module, graph: fx.Graph) -> None:
    """Replace groups of calls in a graph by the PyTorch functions that they spell out.

    Parameters, buffers and their names stay as they are, and so does what the graph computes, up
    to rounding. A value inside a group goes with the group; the result keeps its name.

    Args:
        root: Module whose parameters, buffers and sub-modules the graph reads. Sub-graphs that it
            holds are changed, too, and dropout inside attention gives way to `DroppedAttention`.
        graph: Changed in place.
    """
    _fuse(root, graph)
    for module in list(root.modules()):
        if isinstance(module, fx.GraphModule):
            _fuse(root, module.graph)
            module.recompile()


def _fuse(root: nn.Module, graph: fx.Graph) -> None:
    fold_sizes(root, graph)
    for family in _FAMILIES:
        apply(family.RULES.all, root, graph)
        graph.eliminate_dead_code(_is_border)


def _is_border(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")

"""Further operators of com.microsoft: sums with biases, and variants of standard operators."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.standard import as_standard
from onnxprune.importer.registry import Result, UnsupportedNode, register


@register("BiasAdd", domain=CONTRIB_DOMAIN)
def _bias_add(op: Op) -> Result:
    return op.call(torch.add, op.call(torch.add, op.tensor(0), op.tensor(1)), op.tensor(2))


def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The first half of the last axis times the GELU of the second, after a bias."""
    value, gate = (x + bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@register("BiasSplitGelu", domain=CONTRIB_DOMAIN)
def _bias_split_gelu(op: Op) -> Result:
    return op.call(bias_split_gelu, op.tensor(0), op.tensor(1))


@register("Inverse", domain=CONTRIB_DOMAIN)
def _inverse(op: Op) -> Result:
    return op.call(torch.linalg.inv, op.tensor(0))


@register("ExpandDims", domain=CONTRIB_DOMAIN)
def _expand_dims(op: Op) -> Result:
    return op.call(torch.unsqueeze, op.tensor(0), op.integer(1))


@register("Trilu", "Pad", "GatherND", domain=CONTRIB_DOMAIN)
def _variant(op: Op) -> Result:
    return as_standard(op, op.node.op_type, op.inputs, op.input_types)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances of all rows; a: (m, size), b: (n, size)."""
    return (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(dim=-1)


@register("CDist", domain=CONTRIB_DOMAIN)
def _distances(op: Op) -> Result:
    metric = op.attr("metric", "sqeuclidean")
    if metric == "sqeuclidean":
        return op.call(squared_distances, op.tensor(0), op.tensor(1))
    if metric == "euclidean":
        return op.call(torch.cdist, op.tensor(0), op.tensor(1))
    raise UnsupportedNode(f"metric {metric!r}")

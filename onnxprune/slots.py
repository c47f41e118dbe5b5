"""What each operator's inputs hold: the slots in which learned values sit.

An operator that is not listed has no learned inputs. This is all that is needed to have the weights
of another operator trained, pruned and written back.
"""

from typing import Any

from onnx import NodeProto

from onnxprune.tensor_views import View, attribute_of

WEIGHT_ROLES = frozenset({"weight", "recurrent"})
"""Roles of tensors that products are summed over."""

STATISTICS_ROLES = frozenset({"running_mean", "running_var"})
"""Roles of tensors that training updates, but not by gradients."""

_CONTRIB = "com.microsoft"
SLOTS: dict[tuple[str, str], dict[int, str]] = {
    ("", "Conv"): {1: "weight", 2: "bias"},
    ("", "ConvTranspose"): {1: "weight", 2: "bias"},
    ("", "DeformConv"): {1: "weight", 3: "bias"},
    ("", "Gemm"): {0: "weight", 1: "weight", 2: "bias"},
    ("", "MatMul"): {0: "weight", 1: "weight"},
    ("", "BatchNormalization"): {1: "scale", 2: "shift", 3: "running_mean", 4: "running_var"},
    ("", "InstanceNormalization"): {1: "scale", 2: "shift"},
    ("", "LayerNormalization"): {1: "scale", 2: "shift"},
    ("", "GroupNormalization"): {1: "scale", 2: "shift"},
    ("", "RMSNormalization"): {1: "scale"},
    ("", "PRelu"): {1: "slope"},
    ("", "Gather"): {0: "embedding"},
    ("", "GatherND"): {0: "embedding"},
    ("", "GatherElements"): {0: "embedding"},
    ("", "LSTM"): {
        **{1: "recurrent", 2: "recurrent", 3: "bias"},
        **{5: "operand", 6: "operand", 7: "bias"},
    },
    ("", "GRU"): {1: "recurrent", 2: "recurrent", 3: "bias", 5: "operand"},
    ("", "RNN"): {1: "recurrent", 2: "recurrent", 3: "bias", 5: "operand"},
    (_CONTRIB, "FusedConv"): {1: "weight", 2: "bias"},
    (_CONTRIB, "NhwcConv"): {1: "weight", 2: "bias"},
    (_CONTRIB, "FusedMatMul"): {0: "weight", 1: "weight"},
    (_CONTRIB, "TransposeMatMul"): {0: "weight", 1: "weight"},
    (_CONTRIB, "FusedMatMulActivation"): {0: "weight", 1: "weight"},
    (_CONTRIB, "FusedGemm"): {0: "weight", 1: "weight", 2: "bias"},
    (_CONTRIB, "Attention"): {1: "weight", 2: "bias", 5: "operand"},
    (_CONTRIB, "MultiHeadAttention"): {3: "bias", 5: "operand"},
    (_CONTRIB, "BiasAdd"): {1: "bias"},
    (_CONTRIB, "BiasSplitGelu"): {1: "bias"},
    (_CONTRIB, "BiasGelu"): {1: "bias"},
    (_CONTRIB, "FastGelu"): {1: "bias"},
    (_CONTRIB, "LayerNormalization"): {1: "scale", 2: "shift"},
    (_CONTRIB, "SimplifiedLayerNormalization"): {1: "scale"},
    ("", "SimplifiedLayerNormalization"): {1: "scale"},
    (_CONTRIB, "SkipLayerNormalization"): {
        **{0: "operand", 1: "operand"},
        **{2: "scale", 3: "shift", 4: "bias"},
    },
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): {
        **{0: "operand", 1: "operand"},
        **{2: "scale", 3: "bias"},
    },
    (_CONTRIB, "GroupNorm"): {1: "scale", 2: "shift"},
    (_CONTRIB, "SkipGroupNorm"): {1: "scale", 2: "shift", 4: "bias"},
    (_CONTRIB, "EmbedLayerNormalization"): {
        2: "embedding",
        3: "embedding",
        4: "embedding",
        5: "scale",
        6: "shift",
    },
}
"""Role of each input that may hold learned values, by domain and operator.

Elementwise operators are not listed: whether their operands are learned depends on the graph.
"""

PRUNABLE_OPS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {"FusedConv", "NhwcConv", "FusedGemm", "Attention"}
    | {"FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"}
)
"""Operators whose weights are pruned by default."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv"})
PRODUCTS = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "FusedMatMulActivation"}
)
LINEAR_OPS = PRUNABLE_OPS | {"Einsum"}
ELEMENTWISE = frozenset({"Mul", "Add", "Sub", "Div"})
PASSING = frozenset({"Concat", "Expand"}) | frozenset(
    {"Exp", "Neg", "Abs", "Sqrt", "Sigmoid", "Tanh", "Softplus", "Softmax"}
    | {"Log", "Relu", "Clip", "Pow", "ScatterND", "ScatterElements"}
)
"""Operators of one operand through which learned values go on to where they are used."""


def reduction_axis(node: NodeProto, slot: int, view: View[Any]) -> int | None:
    """The stored axis along which a node sums products with the tensor that a slot holds."""
    if node.op_type in ("Conv", "FusedConv", "DeformConv"):
        return view.axis(1) if slot == 1 else None
    if node.op_type == "ConvTranspose":
        return view.axis(0) if slot == 1 else None
    if node.op_type == "NhwcConv":
        return view.axis(-1) if slot == 1 else None
    if node.op_type in PRODUCTS and slot < 2:
        return view.axis(_product_axes(node, slot, view)[0]) if view.shape else None
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return view.axis(2) if slot in (1, 2) else None
    if node.op_type == "Attention" and slot == 1:
        return view.axis(0)
    return None


def output_axis(node: NodeProto, slot: int, view: View[Any]) -> int | None:
    """The stored axis along which a node's outputs lie, each a sum over the reduction axis.

    Outputs are a convolution's output channels, the columns of a product (its rows, where the
    weight is the first operand), and the gates of a recurrent operator.
    """
    if node.op_type in ("Conv", "FusedConv", "DeformConv", "NhwcConv"):
        return view.axis(0) if slot == 1 else None
    if node.op_type == "ConvTranspose":
        return view.axis(1) if slot == 1 else None
    if node.op_type in PRODUCTS and slot < 2:
        return view.axis(_product_axes(node, slot, view)[1]) if len(view.shape) > 1 else None
    if node.op_type in ("LSTM", "GRU", "RNN", "Attention"):
        return view.axis(1) if reduction_axis(node, slot, view) is not None else None
    return None


def _product_axes(node: NodeProto, slot: int, view: View[Any]) -> tuple[int, int]:
    """Axes of a product's operand, as the node sees it: the one it sums over, and the other one."""
    if len(view.shape) < 2:
        return 0, 0
    operand = "B" if slot else "A"
    rows = 0 if attribute_of(node, f"transBatch{operand}", 0) else -2
    transposed = bool(attribute_of(node, f"trans{operand}", 0))
    return (-1, rows) if (slot == 1) == transposed else (rows, -1)


def channel_groups(node: NodeProto, slot: int, view: View[Any]) -> tuple[int, int] | None:
    """The stored axis that the groups of a convolution divide, and their number; None for one."""
    groups = int(attribute_of(node, "group", 1))
    grouped = node.op_type in CONVOLUTIONS or node.op_type == "DeformConv"
    axis = view.axis(0) if grouped and slot == 1 and groups > 1 else None
    return None if axis is None else (axis, groups)


def is_depthwise(node: NodeProto, view: View[Any]) -> bool:
    """Whether a view is the weight of a convolution with one input channel a group."""
    if node.op_type not in CONVOLUTIONS or len(view.shape) < 2:
        return False
    inputs = view.shape[-1 if node.op_type == "NhwcConv" else 1]
    return int(attribute_of(node, "group", 1)) > 1 and inputs == 1

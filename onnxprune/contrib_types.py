"""Types of the results of com.microsoft operators.

The `onnx` package has no schemas for them, so each borrows the inference of the standard operator
that it is a variant of.
"""

from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, TypeProto

from onnxprune.shapes import Schema, find_schema, infer_node, tensor_type, type_shape

CONTRIB_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class _Like:
    """A standard operator whose output has the same sizes.

    Attributes:
        op_type: The standard operator; empty for one that keeps the sizes of its first input,
            `Attention` for (batch, sequence, new), `Linear` for a new last axis.
        slots: Inputs that stand for the standard operator's, in order.
        elem_slot: Input whose element type the output has.
        same_outputs: Outputs of the type of the first one.
    """

    op_type: str = ""
    slots: tuple[int, ...] = (0,)
    elem_slot: int = 0
    same_outputs: tuple[int, ...] = (0,)


_SAME = _Like()
_LIKE = {
    **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasAdd"), _SAME),
    **dict.fromkeys(("RotaryEmbedding", "GroupNorm", "Trilu", "Inverse"), _SAME),
    **dict.fromkeys(("SimplifiedLayerNormalization", "LayerNormalization"), _SAME),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), _SAME),
    "SkipLayerNormalization": _Like(same_outputs=(0, 3)),
    "SkipSimplifiedLayerNormalization": _Like(same_outputs=(0, 3)),
    "SkipGroupNorm": _Like(same_outputs=(0, 1)),
    "DequantizeLinear": _Like(elem_slot=1),
    "QuantizeLinear": _Like(elem_slot=2),
    "FusedConv": _Like("Conv", (0, 1)),
    "FusedGemm": _Like("Gemm", (0, 1)),
    "FusedMatMul": _Like("MatMul", (0, 1)),
    "TransposeMatMul": _Like("MatMul", (0, 1)),
    "FusedMatMulActivation": _Like("MatMul", (0, 1)),
    "MatMulIntegerToFloat": _Like("MatMul", (0, 1), elem_slot=2),
    "DynamicQuantizeMatMul": _Like("MatMul", (0, 1)),
    "QGemm": _Like("Gemm", (0, 3)),
    "QLinearAdd": _Like("Add", (0, 3)),
    "QLinearMul": _Like("Mul", (0, 3)),
    "QLinearWhere": _Like("Where", (0, 1, 4), elem_slot=1),
    "QLinearConv": _Like("Conv", (0, 3), elem_slot=7),
    "QLinearConcat": _Like("Concat", (), elem_slot=1),
    "QLinearReduceMean": _Like("ReduceMean"),
    "QLinearAveragePool": _Like("AveragePool"),
    "QLinearGlobalAveragePool": _Like("GlobalAveragePool"),
    "GatherND": _Like("GatherND", (0, 1)),
    "Pad": _Like("Pad"),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _Like("Attention")),
    "QAttention": _Like("Attention", elem_slot=3),
    "EmbedLayerNormalization": _Like("Attention", elem_slot=2, same_outputs=(0, 2)),
    "MatMulNBits": _Like("Linear"),
    "BiasSplitGelu": _Like("Linear"),
}
_TRANSPOSING = ("transA", "transB", "transBatchA", "transBatchB")
_VERSION = 17
"""Operator set version whose schemas are borrowed."""


def infer_contrib(node: NodeProto, types: list[TypeProto | None]) -> dict[str, TypeProto]:
    """Types of the outputs of a com.microsoft node as far as they are known.

    Args:
        node: The node.
        types: Types of its inputs, None for those that are left out or unknown.
    """
    if node.op_type == "DynamicQuantizeLSTM":
        return _lstm_types(node, types)
    like = _LIKE.get(node.op_type)
    if like is None:
        return {}
    elem_type = _elem_type(types, like.elem_slot)
    if elem_type == 0:
        return {}
    if node.op_type == "QGemm" and len(types) > 8 and types[8] is None:
        elem_type = TensorProto.FLOAT
    result = tensor_type(elem_type, _sizes(node, like, types))
    return {
        node.output[index]: result
        for index in like.same_outputs
        if index < len(node.output) and node.output[index]
    }


def _lstm_types(node: NodeProto, types: list[TypeProto | None]) -> dict[str, TypeProto]:
    schema: Schema = find_schema("", "LSTM", _VERSION)
    twin = NodeProto(op_type="LSTM", input=node.input[:8], output=node.output)
    twin.attribute.extend(a for a in node.attribute if a.name in schema.attributes)
    known = {node.input[0]: types[0]} if types and types[0] is not None else {}
    try:
        return infer_node(schema, twin, known, {}, {"": _VERSION})
    except onnx.checker.ValidationError:
        return {}


def _elem_type(types: list[TypeProto | None], slot: int) -> int:
    value_type = types[slot] if slot < len(types) else None
    return 0 if value_type is None else int(value_type.tensor_type.elem_type)


def _sizes(
    node: NodeProto, like: _Like, types: list[TypeProto | None]
) -> tuple[int | None, ...] | None:
    first = type_shape(types[0]) if types else None
    if not like.op_type or first is None:
        return first
    if like.op_type == "Attention":
        return (*first[:2], None)
    if like.op_type == "Linear":
        return (*first[:-1], None)
    if like.op_type == "Pad":
        return (None,) * len(first)
    attributes = {a.name: a for a in node.attribute}
    batch_product = like.op_type == "MatMul" and any(
        name in attributes and attributes[name].i for name in _TRANSPOSING
    )
    channels_last = "channels_last" in attributes and attributes["channels_last"].i
    if batch_product or channels_last:
        return None
    schema: Schema = find_schema("", like.op_type, _VERSION)
    borrowed = NodeProto(op_type=like.op_type, output=["y"])
    borrowed.attribute.extend(a for a in node.attribute if a.name in schema.attributes)
    known: dict[str, TypeProto] = {}
    slots = range(2, len(types), 3) if like.op_type == "Concat" else like.slots
    for slot in slots:
        shape = type_shape(types[slot]) if slot < len(types) else None
        if shape is None:
            return None
        borrowed.input.append(f"x{slot}")
        first_of_where = like.op_type == "Where" and not known
        integer = like.op_type == "GatherND" and bool(known)
        elem_type = TensorProto.BOOL if first_of_where else TensorProto.FLOAT
        known[f"x{slot}"] = tensor_type(TensorProto.INT64 if integer else elem_type, shape)
    try:
        results = infer_node(schema, borrowed, known, {}, {"": _VERSION})
    except onnx.checker.ValidationError:
        return None
    return type_shape(results.get("y"))

"""What an ONNX file holds: tensors, sparsity and patterns in fact, cost, and metadata against fact.

Works without PyTorch and looks at one tensor at a time.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune import model
from onnxprune.export.truth import MetadataCheck, verify
from onnxprune.runtime import is_compiled
from onnxprune.runtime.dense_view import dense_view
from onnxprune.runtime.record_check import RecordCheck, verify_record
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.validate.flops import count_flops
from onnxprune.validate.observed_pattern import observed_pattern


@dataclass(frozen=True)
class TensorInspection:
    """Facts about one stored tensor.

    Attributes:
        name: ONNX name.
        op_type: Operator that uses it, empty if none.
        role: What the operator takes it for (weight, bias, scale, running_mean, …).
        dtype: Element type.
        shape: Stored shape.
        size: Number of values.
        zeros: Values that are exactly zero.
        sparsity: zeros / size.
        prunable: Whether pruning takes it by default.
        trainable: Whether fine-tuning changes it.
        pattern: See `observed_pattern`.
        reduction_axis: Axis along which products are summed, and N:M groups lie; None if there is
            none.
        output_axis: Axis along which the outputs lie, None if there is none.
        flops: Operations for one sample by the operators that it feeds, None if not known.
        aliases: Other names under which nodes read the same values (`Identity`).
    """

    name: str
    op_type: str
    role: str
    dtype: str
    shape: list[int]
    size: int
    zeros: int
    sparsity: float
    prunable: bool
    trainable: bool
    pattern: str
    reduction_axis: int | None
    output_axis: int | None
    flops: int | None
    aliases: list[str]


@dataclass(frozen=True)
class Inspection:
    """Facts about a model file.

    Attributes:
        path: The file; None for a model in memory.
        sha256: Digest of the file with its external data.
        size_bytes: Size of the file with its external data.
        opset: Version of the default operator set.
        ir_version: Version of the ONNX format.
        domains: Version of every imported operator set.
        nodes: Number of nodes, sub-graphs included.
        operators: Number of nodes of each operator, the most frequent first.
        inputs: Graph inputs as `{name, dtype, shape}`.
        outputs: Graph outputs in the same form.
        parameters: Number of trainable values.
        prunable_parameters: Number of values that pruning takes by default.
        sparsity: zeros / size over the prunable tensors.
        flops: Operations for one sample, None if shapes are not known.
        tensors: Every tensor that holds learned values or running statistics, in graph order.
        metadata: The file's own sparsity metadata against fact.
        compiled: What a compiled model says of how it was made, against fact. `tensors` and what is
            counted over them are of the weights that its operators hold.
    """

    path: str | None
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    domains: dict[str, int]
    nodes: int
    operators: dict[str, int]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    parameters: int
    prunable_parameters: int
    sparsity: float
    flops: int | None
    tensors: list[TensorInspection]
    metadata: MetadataCheck
    compiled: RecordCheck

    def to_json(self) -> dict[str, Any]:
        """The object that `inspect --json` prints."""
        values = asdict(self)
        check = values.pop("metadata")
        values["metadata"] = check["metadata"]
        values["metadata_true"] = check["true"]
        values["metadata_problems"] = check["problems"]
        compiled = values.pop("compiled")
        values["compiled"] = compiled["record"]
        values["compiled_true"] = compiled["true"]
        values["compiled_problems"] = compiled["problems"]
        return values


def inspect_model(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | model.OnnxModel,
) -> Inspection:
    """Inspect a model file.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
    """
    loaded = model.read(source)
    proto = loaded.proto
    layers = dense_view(proto) if is_compiled(proto) else proto
    stored = find_tensors(layers)
    check = verify(proto)
    claimed = _claimed_patterns(check.metadata)
    aliases = _aliases(layers)
    flops = count_flops(layers, stored)
    tensors = [
        _inspect_tensor(
            tensor, claimed.get(name), flops.by_tensor.get(name), aliases.get(tensor.name, [])
        )
        for name, tensor in stored.items()
        if tensor.role is not None
    ]
    prunable = [tensor for tensor in tensors if tensor.prunable]
    prunable_parameters = sum(tensor.size for tensor in prunable)
    zeros = sum(tensor.zeros for tensor in prunable)
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for _, graph in model.iter_graphs(proto)
        for node in graph.node
    )
    return Inspection(
        path=None if loaded.path is None else str(loaded.path),
        sha256=loaded.sha256,
        size_bytes=loaded.size_bytes,
        opset=loaded.opset,
        ir_version=int(proto.ir_version),
        domains={opset.domain or "ai.onnx": int(opset.version) for opset in proto.opset_import},
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        inputs=[_describe(value) for value in loaded.inputs],
        outputs=[_describe(value) for value in loaded.outputs],
        parameters=sum(tensor.size for tensor in tensors if tensor.trainable),
        prunable_parameters=prunable_parameters,
        sparsity=zeros / prunable_parameters if prunable_parameters else 0.0,
        flops=flops.total,
        tensors=tensors,
        metadata=check,
        compiled=verify_record(proto),
    )


def _inspect_tensor(
    tensor: GraphTensor, claimed: str | None, flops: int | None, aliases: list[str]
) -> TensorInspection:
    values = tensor.array()
    nonzeros = int(np.count_nonzero(values))
    return TensorInspection(
        name=tensor.name,
        op_type=tensor.op_type,
        role=tensor.role or "",
        dtype=tensor.dtype.name,
        shape=list(tensor.shape),
        size=tensor.size,
        zeros=tensor.size - nonzeros,
        sparsity=(tensor.size - nonzeros) / tensor.size if tensor.size else 0.0,
        prunable=tensor.prunable,
        trainable=tensor.trainable,
        pattern=observed_pattern(tensor, values, nonzeros, claimed),
        reduction_axis=tensor.reduction_axis,
        output_axis=tensor.output_axis,
        flops=flops,
        aliases=aliases,
    )


def _claimed_patterns(metadata: dict[str, Any] | None) -> dict[str, str]:
    """Patterns by tensor name, as far as metadata that nobody has checked yet have them."""
    entries = metadata.get("tensors") if metadata else None
    claims = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            name, pattern = entry.get("name"), entry.get("pattern")
            if isinstance(name, str) and isinstance(pattern, str):
                claims[name] = pattern
    return claims


def _aliases(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Names that `Identity` nodes of the main graph give to stored tensors, by stored name."""
    origin = {tensor.name: tensor.name for tensor in proto.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output:
            origin[node.output[0]] = node.output[0]
        elif node.op_type == "Identity" and node.input and node.input[0] in origin:
            root = origin[node.output[0]] = origin[node.input[0]]
            found.setdefault(root, []).append(node.output[0])
    return found


def _describe(value: model.ValueSpec) -> dict[str, Any]:
    return {
        "name": value.name,
        "dtype": None if value.dtype is None else value.dtype.name,
        "shape": None if value.shape is None else list(value.shape),
    }

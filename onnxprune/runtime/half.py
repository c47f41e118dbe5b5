"""Values of sparse operators stored as float16, which halves what they take in the file."""

from dataclasses import replace
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.runtime.compiler import CompiledModel
from onnxprune.runtime.graph import label
from onnxprune.runtime.library import DOMAIN
from onnxprune.runtime.record import write_record
from onnxprune.runtime.rewriting import PARTS
from onnxprune.runtime.samples import working_graph
from onnxprune.stored import stored_array

StoredValues = Literal["float32", "float16"]
"""How values that are not zero are stored. The operators always compute in float32."""


def with_half_values(compiled: CompiledModel) -> CompiledModel:
    """Round the values of sparse operators to float16; changes `compiled.proto`.

    They are expanded when a session is created, so time and memory stay as they were. A weight
    with a value beyond float16's range keeps float32, and the record says so. What was measured of
    the difference to the source no longer holds, so the record forgets it.

    Args:
        compiled: A compiled model.
    """
    stored = {tensor.name: tensor for tensor in working_graph(compiled.proto).initializer}
    rounded = {name for name in _values(compiled.proto) if _round(stored[name])}
    operators = {
        label(node) for node in working_graph(compiled.proto).node if set(node.input[1:2]) & rounded
    }
    layers = [
        layer.model_copy(update={"values": "float16"})
        if layer.sparse and layer.name in operators
        else layer
        for layer in compiled.record.layers
    ]
    update = {"layers": layers, "largest_difference": None}
    record = compiled.record.model_copy(update=update)
    if record.replaced:
        write_record(compiled.proto, record)
    return replace(compiled, record=record)


def _values(proto: ModelProto) -> list[str]:
    """Tensors that hold the values of sparse operators."""
    suffix = f".{PARTS[0]}"
    return list(
        dict.fromkeys(
            node.input[1]
            for node in working_graph(proto).node
            if node.domain == DOMAIN and node.input[1].endswith(suffix)
        )
    )


def _round(tensor: TensorProto) -> bool:
    """Make a float32 tensor float16, unless its range is too small."""
    values = stored_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(values)):
        return False
    tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    return True

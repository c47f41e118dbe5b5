"""Sparsity metadata: what a pruned file says about itself. `truth` says whether it is true."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import onnx
from pydantic import Field

from onnxprune.export.claims import (
    HEX64,
    VERSION_TEXT,
    Claims,
    Count,
    SchemaVersion,
    drop_entries,
    json_text,
    only_entry,
)
from onnxprune.model import iter_graphs, iter_tensors
from onnxprune.pattern_text import PATTERN_FORMS, PATTERN_TEXT
from onnxprune.tensors import GraphTensor, find_tensors

KEY = "onnxprune.sparsity"
"""Key of the entry in `ModelProto.metadata_props` and in `TensorProto.metadata_props`."""

TENSOR_METADATA_IR_VERSION = 10
"""First IR version in which tensors have metadata of their own."""


class TensorMetadata(Claims):
    """What the metadata say of one prunable tensor."""

    name: str = Field(min_length=1, description="ONNX name of the stored tensor.")
    shape: list[Count] = Field(description="Stored shape.")
    nonzeros: Count = Field(description="Number of values that are not zero.")
    sparsity: float = Field(ge=0, le=1, description="zeros / size.")
    pattern: str = Field(pattern=PATTERN_TEXT, description=f"{PATTERN_FORMS}.")
    mask_sha256: str = Field(
        pattern=HEX64,
        description="SHA-256 of the mask (1 where a value is not zero), row-major, eight to a "
        "byte, the first in the highest bit.",
    )


class DataMetadata(Claims):
    """What the metadata say of data that were used."""

    samples: int = Field(ge=1, description="Number of samples.")
    digest: str = Field(pattern=HEX64, description="Digest of their content and order.")
    labelled: bool = Field(description="Whether they have labels.")
    held_out: bool | None = Field(
        None, description="Of `eval`: whether it was held out of `train`; null for `train`."
    )


class SparsityMetadata(Claims):
    """The metadata of a pruned model, stored as JSON under `onnxprune.sparsity`."""

    schema_version: SchemaVersion = Field(description="Version of this schema.")
    tool_version: str = Field(
        pattern=VERSION_TEXT, description="Version of onnxprune that wrote the file."
    )
    method: str = Field(description="Pruning method.")
    target_sparsity: float = Field(ge=0, lt=1, description="The sparsity that was asked for.")
    sparsity: float = Field(ge=0, le=1, description="zeros / size over all of `tensors`.")
    pattern: str = Field(pattern=PATTERN_TEXT, description=f"{PATTERN_FORMS}.")
    source_sha256: str = Field(pattern=HEX64, description="Digest of the dense model's file.")
    payload_sha256: str = Field(
        pattern=HEX64,
        description="Digest over name, element type, shape and values of every tensor in the file.",
    )
    recipe: dict[str, Any] = Field(description="The resolved recipe, without paths.")
    data: dict[Annotated[str, Field(pattern="^(train|eval)$")], DataMetadata] = Field(
        description="The data that were used: number of samples and content digest."
    )
    tensors: list[TensorMetadata] = Field(
        min_length=1, description="Every tensor that pruning could touch."
    )
    zeros_elsewhere: dict[str, Count] | None = Field(
        None,
        description="Zeros of each tensor that is prunable by default, not in `tensors`, and has "
        "any, by name; null in files that do not state it.",
    )


def schema() -> dict[str, Any]:
    """JSON Schema of the model-level metadata."""
    return SparsityMetadata.model_json_schema()


def mask_sha256(values: np.ndarray) -> str:
    """Digest of where a tensor is not zero; see `TensorMetadata.mask_sha256`."""
    return hashlib.sha256(np.packbits(values.ravel() != 0).tobytes()).hexdigest()


def describe_tensors(
    tensors: Iterable[GraphTensor], patterns: Mapping[str, str]
) -> list[TensorMetadata]:
    """Metadata of stored tensors, computed from their values.

    Args:
        tensors: The tensors.
        patterns: The pattern of each by name; `unstructured` where none is named.
    """
    described = []
    for tensor in tensors:
        values = tensor.array()
        nonzeros = int(np.count_nonzero(values))
        described.append(
            TensorMetadata(
                name=tensor.name,
                shape=list(tensor.shape),
                nonzeros=nonzeros,
                sparsity=share(values.size - nonzeros, values.size),
                pattern=patterns.get(tensor.name, "unstructured"),
                mask_sha256=mask_sha256(values),
            )
        )
    return described


def zeros_elsewhere(proto: onnx.ModelProto, listed: Iterable[str]) -> dict[str, int]:
    """Zeros of the tensors that are prunable by default, not listed, and have any, by name.

    Args:
        proto: The model.
        listed: Names of the tensors that the metadata list.
    """
    listed = set(listed)
    counts = {
        name: tensor.size - int(np.count_nonzero(tensor.array()))
        for name, tensor in find_tensors(proto).items()
        if tensor.prunable and name not in listed
    }
    return {name: count for name, count in counts.items() if count}


def overall_sparsity(tensors: Iterable[TensorMetadata]) -> float:
    """Zeros / size over all tensors; 0 without any."""
    tensors = list(tensors)
    total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    return share(total - sum(tensor.nonzeros for tensor in tensors), total)


def share(part: int, total: int) -> float:
    """A part of a total; 0 of nothing."""
    return part / total if total else 0.0


def write_metadata(proto: onnx.ModelProto, metadata: SparsityMetadata) -> None:
    """Store metadata in a model and, where its IR version allows, in its tensors.

    Changes `proto`; older entries under the same key are removed, wherever they are.
    """
    for _, holder in holders(proto):
        drop_entries(holder, KEY)
    proto.metadata_props.add(key=KEY, value=json_text(metadata.model_dump(mode="json")))
    if proto.ir_version < TENSOR_METADATA_IR_VERSION:
        return
    stored = {name: own_message(tensor) for name, tensor in find_tensors(proto).items()}
    for tensor in metadata.tensors:
        message = stored[tensor.name]
        if message is not None:
            message.metadata_props.add(key=KEY, value=own_text(tensor))


def holders(proto: onnx.ModelProto) -> Iterator[tuple[str, Any]]:
    """Every message of a file that can hold metadata, with where it is."""
    yield "the model", proto
    for path, graph in iter_graphs(proto):
        place = f"graph {path}" if path else "the main graph"
        yield place, graph
        for node in graph.node:
            yield f"{place}, node {node.name or list(node.output)}", node
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield f"{place}, value {value.name}", value
    for function in proto.functions:
        place = f"function {function.domain}::{function.name}"
        yield place, function
        for node in function.node:
            yield f"{place}, node {node.name or list(node.output)}", node
        for value in function.value_info:
            yield f"{place}, value {value.name}", value
    for tensor in iter_tensors(proto):
        yield f"tensor {tensor.name}", tensor


def own_message(tensor: GraphTensor) -> onnx.TensorProto | None:
    """The message that holds a tensor's metadata; plain numbers in a node have none."""
    proto = tensor.proto
    if isinstance(proto, onnx.AttributeProto):
        return None
    return proto if isinstance(proto, onnx.TensorProto) else proto.values


def own_text(claim: TensorMetadata) -> str:
    """What a tensor's own entry says."""
    return json_text(claim.model_dump(mode="json", exclude={"name", "shape"}))


def read_metadata(proto: onnx.ModelProto) -> dict[str, Any] | None:
    """The model-level metadata as they stand; None if there are none, or no single JSON object.

    Nor are they where a key stands twice: readers differ in which of its values they take.
    """
    return only_entry(proto, KEY, lambda fault: None)

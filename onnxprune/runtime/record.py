"""What a compiled model says of itself, under `onnxprune.compiled` in its metadata."""

import json
from typing import Any, Literal

from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune.export.metadata import KEY as SPARSITY_KEY

KEY = "onnxprune.compiled"
"""Key of the entry in `ModelProto.metadata_props`."""


class LayerRecord(BaseModel):
    """What became of one layer."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="The node's name, or that of its first output.")
    op_type: str = Field(description="Operator before compiling.")
    weight: str = Field("", description="The stored weight.")
    shape: list[int] = Field(default_factory=list, description="Its stored shape.")
    sparsity: float | None = Field(None, ge=0, le=1, description="zeros / size of the weight.")
    block: int = Field(1, description="Neighbouring outputs that share their zeros.")
    sparse: bool = Field(description="Whether a sparse operator took its place.")
    reason: str = Field("", description="Why it stays dense; empty where it does not.")
    fused: list[str] = Field(default_factory=list, description="What the operator also computes.")
    values: Literal["float32", "float16"] = Field(
        "float32", description="How a sparse operator's values are stored."
    )
    x_layout: str = Field("plain", description="Layout of what it reads.")
    y_layout: str = Field("plain", description="Layout of what it makes.")
    dense_ms: float | None = Field(None, description="Measured time of the dense layer.")
    sparse_ms: float | None = Field(None, description="Measured time of the sparse one.")


class CompiledRecord(BaseModel):
    """The metadata of a compiled model."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    tool_version: str = Field(description="Version of onnxprune that wrote the file.")
    source_sha256: str = Field(description="Digest of the file that was compiled.")
    replaced: int = Field(description="Number of layers with sparse operators.")
    layers: list[LayerRecord] = Field(description="Every layer with a weight.")
    largest_difference: float | None = Field(
        None,
        description="Largest difference of the outputs to those of the source on random inputs, as "
        "a share of the output's root mean square; null where it was not measured.",
    )
    sparsity: dict[str, Any] | None = Field(
        None, description="What the source said of itself under `onnxprune.sparsity`."
    )


def schema() -> dict[str, Any]:
    """JSON Schema of the metadata."""
    return CompiledRecord.model_json_schema()


def write_record(proto: ModelProto, record: CompiledRecord) -> None:
    """Put the record into a model, in place of statements about tensors that it no longer has."""
    for holder in (proto, *proto.graph.initializer):
        for place in reversed(range(len(holder.metadata_props))):
            if holder.metadata_props[place].key in (KEY, SPARSITY_KEY):
                del holder.metadata_props[place]
    text = json.dumps(
        record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    proto.metadata_props.add(key=KEY, value=text)


def read_record(proto: ModelProto) -> CompiledRecord | None:
    """The record of a model; None if it has none that can be read."""
    for entry in proto.metadata_props:
        if entry.key == KEY:
            try:
                return CompiledRecord.model_validate_json(entry.value)
            except ValidationError:
                return None
    return None

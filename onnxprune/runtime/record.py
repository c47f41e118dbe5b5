"""What a compiled model says of itself, under `onnxprune.compiled` in its metadata."""

from typing import Any, Literal

from onnx import ModelProto
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
    read_claims,
)
from onnxprune.export.metadata import KEY as SPARSITY_KEY
from onnxprune.export.metadata import holders

Layout = Literal["plain", "tiled"]

KEY = "onnxprune.compiled"
"""Key of the entry in `ModelProto.metadata_props`."""


class LayerRecord(Claims):
    """What became of one layer."""

    name: str = Field(description="The node's name, or that of its first output.")
    op_type: str = Field(description="Operator before compiling.")
    weight: str = Field("", description="The stored weight.")
    shape: list[Count] = Field(default_factory=list, description="Its stored shape.")
    sparsity: float | None = Field(None, ge=0, le=1, description="zeros / size of the weight.")
    block: int = Field(1, ge=1, description="Neighbouring outputs that share their zeros.")
    sparse: bool = Field(description="Whether a sparse operator took its place.")
    reason: str = Field("", description="Why it stays dense; empty where it does not.")
    fused: list[str] = Field(default_factory=list, description="What the operator also computes.")
    within: str = Field(
        "", description="The layer whose sparse operator also computes this one; else empty."
    )
    values: Literal["float32", "float16"] = Field(
        "float32", description="How a sparse operator's values are stored."
    )
    x_layout: Layout = Field("plain", description="Layout of what it reads.")
    y_layout: Layout = Field("plain", description="Layout of what it makes.")
    dense_ms: float | None = Field(None, ge=0, description="Measured time of the dense layer.")
    sparse_ms: float | None = Field(None, ge=0, description="Measured time of the sparse one.")


class CompiledRecord(Claims):
    """The metadata of a compiled model."""

    schema_version: SchemaVersion = Field(description="Version of this schema.")
    tool_version: str = Field(
        pattern=VERSION_TEXT, description="Version of onnxprune that wrote the file."
    )
    source_sha256: str = Field(pattern=HEX64, description="Digest of the file that was compiled.")
    replaced: Count = Field(description="Number of layers with sparse operators.")
    layers: list[LayerRecord] = Field(description="Every layer with a weight.")
    samples: Literal["together", "split"] = Field(
        "together", description="Whether the samples of a batch are computed one after the other."
    )
    samples_reason: str = Field(
        "", description="Why they are computed together; empty where they are not."
    )
    largest_difference: float | None = Field(
        None,
        ge=0,
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
    for _, holder in holders(proto):
        drop_entries(holder, KEY, SPARSITY_KEY)
    proto.metadata_props.add(key=KEY, value=json_text(record.model_dump(mode="json")))


def read_record(proto: ModelProto) -> CompiledRecord | None:
    """The record of a model; None if it has none that can be read."""
    raw = only_entry(proto, KEY, lambda fault: None)
    return None if raw is None else read_claims(CompiledRecord, raw)[0]

"""Sparsity metadata: what a pruned file says about itself, and whether that is true."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune.export.pattern_check import pattern_holds
from onnxprune.export.recipe_check import list_problems, recipe_problems
from onnxprune.model import payload_sha256
from onnxprune.pattern_text import PATTERN_FORMS, PATTERN_TEXT
from onnxprune.tensors import GraphTensor, find_tensors

KEY = "onnxprune.sparsity"
"""Key of the entry in `ModelProto.metadata_props` and in `TensorProto.metadata_props`."""

TENSOR_METADATA_IR_VERSION = 10
"""First IR version in which tensors have metadata of their own."""

_TOLERANCE = 1e-9
"""How far shares may be from what is computed, for the sake of other languages' arithmetic."""

_HEX64 = r"^[0-9a-f]{64}$"


class TensorMetadata(BaseModel):
    """What the metadata say of one prunable tensor."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="ONNX name of the stored tensor.")
    shape: list[int] = Field(description="Stored shape.")
    nonzeros: int = Field(ge=0, description="Number of values that are not zero.")
    sparsity: float = Field(ge=0, le=1, description="zeros / size.")
    pattern: str = Field(pattern=PATTERN_TEXT, description=f"{PATTERN_FORMS}.")
    mask_sha256: str = Field(
        pattern=_HEX64,
        description="SHA-256 of the mask (1 where a value is not zero), row-major, eight to a "
        "byte, the first in the highest bit.",
    )


class SparsityMetadata(BaseModel):
    """The metadata of a pruned model, stored as JSON under `onnxprune.sparsity`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    tool_version: str = Field(description="Version of onnxprune that wrote the file.")
    method: str = Field(description="Pruning method.")
    target_sparsity: float = Field(ge=0, lt=1, description="The sparsity that was asked for.")
    sparsity: float = Field(ge=0, le=1, description="zeros / size over all of `tensors`.")
    pattern: str = Field(pattern=PATTERN_TEXT, description=f"{PATTERN_FORMS}.")
    source_sha256: str = Field(pattern=_HEX64, description="Digest of the dense model's file.")
    payload_sha256: str = Field(
        pattern=_HEX64,
        description="Digest over name, element type, shape and values of every tensor in the file.",
    )
    recipe: dict[str, Any] = Field(description="The resolved recipe, without paths.")
    data: dict[str, Any] = Field(
        default_factory=dict, description="Content digests of the data that were used."
    )
    tensors: list[TensorMetadata] = Field(description="Every tensor that pruning could touch.")


@dataclass(frozen=True)
class MetadataCheck:
    """Metadata against fact.

    Attributes:
        metadata: The metadata as parsed from JSON; None if the model has none or they are no JSON.
        true: Whether every statement holds; None if the model has no metadata.
        problems: One line for each statement that does not.
    """

    metadata: dict[str, Any] | None
    true: bool | None
    problems: list[str]


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
                sparsity=_share(values.size - nonzeros, values.size),
                pattern=patterns.get(tensor.name, "unstructured"),
                mask_sha256=mask_sha256(values),
            )
        )
    return described


def overall_sparsity(tensors: Iterable[TensorMetadata]) -> float:
    """Zeros / size over all tensors; 0 without any."""
    tensors = list(tensors)
    total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    return _share(total - sum(tensor.nonzeros for tensor in tensors), total)


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def write_metadata(proto: onnx.ModelProto, metadata: SparsityMetadata) -> None:
    """Store metadata in a model and, where its IR version allows, in its tensors.

    Changes `proto`; older entries under the same key are removed, wherever they are.
    """
    stored = {name: _message(tensor) for name, tensor in find_tensors(proto).items()}
    _remove_entry(proto)
    for message in stored.values():
        if message is not None:
            _remove_entry(message)
    proto.metadata_props.add(key=KEY, value=_json(metadata.model_dump(mode="json")))
    if proto.ir_version < TENSOR_METADATA_IR_VERSION:
        return
    for tensor in metadata.tensors:
        entry = tensor.model_dump(mode="json", exclude={"name", "shape"})
        message = stored[tensor.name]
        if message is not None:
            message.metadata_props.add(key=KEY, value=_json(entry))


def _message(tensor: GraphTensor) -> onnx.TensorProto | None:
    """The message that holds a tensor's metadata; plain numbers in a node have none."""
    proto = tensor.proto
    if isinstance(proto, onnx.AttributeProto):
        return None
    return proto if isinstance(proto, onnx.TensorProto) else proto.values


def _remove_entry(holder: onnx.ModelProto | onnx.TensorProto) -> None:
    for index in reversed(range(len(holder.metadata_props))):
        if holder.metadata_props[index].key == KEY:
            del holder.metadata_props[index]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def read_metadata(proto: onnx.ModelProto) -> dict[str, Any] | None:
    """The model-level metadata as they stand; None if there are none or they are no JSON object.

    Nor are they where a key stands twice: readers differ in which of its values they take.
    """
    for entry in proto.metadata_props:
        if entry.key == KEY:
            try:
                value = json.loads(entry.value, object_pairs_hook=_object)
            except (ValueError, RecursionError):
                return None
            return value if isinstance(value, dict) else None
    return None


def verify(proto: onnx.ModelProto) -> MetadataCheck:
    """Recompute every statement of a model's metadata from the file's own tensors."""
    entries = sum(entry.key == KEY for entry in proto.metadata_props)
    if not entries:
        return MetadataCheck(None, None, [])
    if entries > 1:
        return MetadataCheck(None, False, [f"the model has {entries} entries of this kind"])
    raw = read_metadata(proto)
    if raw is None:
        return MetadataCheck(None, False, ["the metadata are no JSON object, or have a key twice"])
    try:
        claimed = SparsityMetadata.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        return MetadataCheck(raw, False, problems)
    problems = _false_statements(proto, claimed)
    return MetadataCheck(raw, not problems, problems)


def _false_statements(proto: onnx.ModelProto, claimed: SparsityMetadata) -> list[str]:
    problems = []
    stored = find_tensors(proto)
    counts = Counter(tensor.name for tensor in claimed.tensors)
    problems += [f"{name}: listed {count} times" for name, count in counts.items() if count > 1]
    known = [tensor for tensor in claimed.tensors if tensor.name in stored]
    problems += [
        f"{tensor.name}: the model stores no such tensor"
        for tensor in claimed.tensors
        if tensor.name not in stored
    ]
    facts = describe_tensors((stored[t.name] for t in known), {t.name: t.pattern for t in known})
    for claim, fact in zip(known, facts, strict=True):
        for key in ("shape", "nonzeros", "sparsity", "mask_sha256"):
            said, found = getattr(claim, key), getattr(fact, key)
            if not _equal(said, found):
                problems.append(f"{claim.name}: {key} is {found}, the metadata say {said}")
        for pattern in sorted({claim.pattern, claimed.pattern}):
            if not pattern_holds(stored[claim.name], pattern):
                problems.append(f"{claim.name}: the pattern {pattern} does not hold")
    claims = {claim.name: claim for claim in known}
    for name, tensor in stored.items():
        problems += _tensor_entry_problems(tensor, claims.get(name))
    problems += recipe_problems(claimed.recipe, claimed.method, claimed.target_sparsity)
    problems += list_problems(proto, stored, set(counts), claimed.recipe)
    overall = overall_sparsity(facts)
    if overall < claimed.target_sparsity - _TOLERANCE:
        problems.append(f"target_sparsity is {claimed.target_sparsity}, but sparsity {overall}")
    if not _equal(overall, claimed.sparsity):
        problems.append(f"sparsity is {overall}, the metadata say {claimed.sparsity}")
    payload = payload_sha256(proto)
    if payload != claimed.payload_sha256:
        problems.append("payload_sha256: a tensor of the file was changed after it was written")
    return problems


def _tensor_entry_problems(tensor: GraphTensor, claim: TensorMetadata | None) -> list[str]:
    """A tensor's own entry has to say what the model's says of it; it need not be there."""
    expected = claim and _json(claim.model_dump(mode="json", exclude={"name", "shape"}))
    message = _message(tensor)
    return [
        f"{tensor.name}: its own metadata differ from the model's"
        for entry in (message.metadata_props if message is not None else ())
        if entry.key == KEY and entry.value != expected
    ]


def _equal(said: object, found: object) -> bool:
    if isinstance(said, float) and isinstance(found, float):
        return abs(said - found) <= _TOLERANCE
    return said == found

"""Whether sparsity metadata are true: every statement that the file can answer, computed again."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from onnxprune.export.claims import brief, entries_of, only_entry, read_claims, shown
from onnxprune.export.metadata import (
    KEY,
    SparsityMetadata,
    TensorMetadata,
    describe_tensors,
    holders,
    overall_sparsity,
    own_message,
    own_text,
    zeros_elsewhere,
)
from onnxprune.export.pattern_check import ZERO_BY_CHANCE, pattern_holds
from onnxprune.export.recipe_check import recipe_problems
from onnxprune.model import payload_sha256
from onnxprune.tensors import GraphTensor, find_tensors

TOLERANCE = 1e-9
"""How far shares may be from what is computed, for the sake of other languages' arithmetic."""


@dataclass(frozen=True)
class MetadataCheck:
    """Metadata against fact.

    Attributes:
        metadata: The metadata as parsed from JSON; None if the model has none or they are no JSON.
        true: Whether every statement holds that the file can answer; None if the model has no
            metadata.
        problems: One line for each statement that does not.
    """

    metadata: dict[str, Any] | None
    true: bool | None
    problems: list[str]


def verify(proto: onnx.ModelProto, dense: onnx.ModelProto | None = None) -> MetadataCheck:
    """Recompute the statements of a model's metadata from the file's own tensors.

    Of what only the run knew, form and contradictions are looked at: data, tool version, and the
    settings of the recipe that leave no trace. `source_sha256` is for the caller to compare.

    Args:
        proto: The model.
        dense: The dense model, which excuses zeros that it has itself.
    """
    problems: list[str] = []
    raw = only_entry(proto, KEY, problems.append)
    places = [place for place, holder in holders(proto) if entries_of(holder, KEY)]
    if raw is None:
        if not problems and places:
            problems.append(f"{places[0]}: it has metadata of its own, and the model has none")
        return MetadataCheck(None, False if problems else None, problems)
    claimed, problems = read_claims(SparsityMetadata, raw)
    if claimed is not None:
        problems = list(_false_statements(proto, claimed, dense))
    return MetadataCheck(raw, not problems, problems)


def _false_statements(
    proto: onnx.ModelProto, claimed: SparsityMetadata, dense: onnx.ModelProto | None
) -> Iterator[str]:
    stored = find_tensors(proto)
    counts = Counter(tensor.name for tensor in claimed.tensors)
    yield from (f"{name}: listed {count} times" for name, count in counts.items() if count > 1)
    known = [tensor for tensor in claimed.tensors if tensor.name in stored]
    for name in counts:
        if name not in stored:
            yield f"{name}: the model stores no such tensor"
    patterns = {tensor.name: tensor.pattern for tensor in known}
    facts = describe_tensors((stored[tensor.name] for tensor in known), patterns)
    for claim, fact in zip(known, facts, strict=True):
        yield from _tensor_problems(claim, fact, stored[claim.name], claimed.pattern)
    yield from _own_entry_problems(proto, stored, {claim.name: claim for claim in known})
    yield from recipe_problems(proto, stored, claimed)
    yield from _elsewhere_problems(proto, claimed, dense)
    yield from _data_problems(claimed)
    overall = overall_sparsity(facts)
    if overall < claimed.target_sparsity - TOLERANCE:
        yield f"target_sparsity is {claimed.target_sparsity}, but sparsity {overall}"
    if not equal(overall, claimed.sparsity):
        yield f"sparsity is {overall}, the metadata say {claimed.sparsity}"
    if payload_sha256(proto) != claimed.payload_sha256:
        yield "payload_sha256: a tensor of the file was changed after it was written"


def _tensor_problems(
    claim: TensorMetadata, fact: TensorMetadata, tensor: GraphTensor, pattern: str
) -> Iterator[str]:
    """What is said of a tensor against what it is; the model's pattern has to hold in it, too."""
    for key in ("shape", "nonzeros", "sparsity", "mask_sha256"):
        said, found = getattr(claim, key), getattr(fact, key)
        if not equal(said, found):
            yield f"{claim.name}: {key} is {found}, the metadata say {said}"
    for said in sorted({claim.pattern, pattern}):
        if not pattern_holds(tensor, said):
            yield f"{claim.name}: the pattern {brief(said)} does not hold"


def _own_entry_problems(
    proto: onnx.ModelProto,
    stored: Mapping[str, GraphTensor],
    claims: Mapping[str, TensorMetadata],
) -> Iterator[str]:
    """Tensors' own entries have to say what the model's says of them, and stand nowhere else.

    A tool may have dropped all of them; some but not all is no way to lose them.
    """
    messages = {name: own_message(tensor) for name, tensor in stored.items()}
    found = {
        name: entries_of(message, KEY) for name, message in messages.items() if message is not None
    }
    for name, entries in found.items():
        expected = own_text(claims[name]) if name in claims else None
        if len(entries) > 1:
            yield f"{name}: it has {len(entries)} entries of its own"
        if any(entry != expected for entry in entries):
            yield f"{name}: its own metadata differ from the model's"
    told = [name for name in claims if found.get(name)]
    silent = [name for name in claims if name in found and not found[name]]
    if told and silent:
        yield from (f"{name}: it has no entry of its own, as {told[0]} has" for name in silent)
    of_tensors = {id(message) for message in messages.values()}
    for place, holder in holders(proto):
        if holder is not proto and id(holder) not in of_tensors and entries_of(holder, KEY):
            yield f"{place}: it has metadata of its own, where no file of ours has any"


def _elsewhere_problems(
    proto: onnx.ModelProto, claimed: SparsityMetadata, dense: onnx.ModelProto | None
) -> Iterator[str]:
    """Zeros in prunable tensors that the metadata do not list."""
    listed = {tensor.name for tensor in claimed.tensors}
    found = zeros_elsewhere(proto, listed)
    said = claimed.zeros_elsewhere
    if said is not None:
        for name in sorted(found.keys() | said.keys()):
            if found.get(name, 0) != said.get(name, 0):
                count, claim = found.get(name, 0), said.get(name, 0)
                yield f"zeros_elsewhere: {name} has {count} zeros, the metadata say {claim}"
        return
    before = {} if dense is None else zeros_elsewhere(dense, listed)
    stored = find_tensors(proto)
    for name, count in found.items():
        size = stored[name].size
        if count > max(before.get(name, 0), ZERO_BY_CHANCE * size):
            yield (
                f"{name}: {count} of {size} values are zero, of which the metadata say nothing"
                + ("" if dense is not None else "; the dense model may have them, too: give it")
            )


def _data_problems(claimed: SparsityMetadata) -> Iterator[str]:
    """What data of a run cannot be."""
    train, evaluation = claimed.data.get("train"), claimed.data.get("eval")
    if train is not None and train.held_out is not None:
        yield f"data.train.held_out: found {shown(train.held_out)}, expected null"
    if evaluation is None:
        return
    if evaluation.held_out is None:
        yield "data.eval.held_out: it is missing, and no file may leave it out"
    elif evaluation.held_out and train is None:
        yield "data.eval.held_out: found true, and no training data that it was held out of"


def equal(said: object, found: object) -> bool:
    """Whether a statement is what was computed; shares may differ by rounding."""
    if isinstance(said, float) and isinstance(found, float):
        return abs(said - found) <= TOLERANCE
    return said == found

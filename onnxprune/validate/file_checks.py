"""Checks of a policy that the files answer: sparsity, patterns, metadata, signature, size."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxprune.export.liveness import is_needed
from onnxprune.export.pattern_check import count_blocks, nm_groups, pattern_fits, pattern_holds
from onnxprune.globs import matches
from onnxprune.model import OnnxModel
from onnxprune.pattern_text import block_of, nm_of
from onnxprune.runtime import read_record
from onnxprune.runtime.library import DOMAIN
from onnxprune.runtime.samples import working_graph
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.validate.computed_weights import ComputedWeight
from onnxprune.validate.graph_identity import graph_differences
from onnxprune.validate.policy_tables import SparsityPolicy
from onnxprune.validate.subject import Subject, Verdict, counted, listed


def sparsity_min(subject: Subject, least: float) -> Verdict:
    """Zeros / weights over all tensors in scope, as operators multiply with them."""
    computed = _computed_scope(subject)
    unknown = [_uncounted(weight) for weight in computed if weight.zeros is None]
    if unknown:
        return Verdict(False, listed(unknown) + _EXCLUDE)
    tensors = _read_whole(subject, _scope(subject), computed)
    size = sum(tensor.size for tensor in tensors) + sum(weight.size for weight in computed)
    if not size:
        return Verdict(False, "no prunable weight is in scope")
    zeros = sum(_zeros(tensor) for tensor in tensors)
    zeros += sum(weight.zeros or 0 for weight in computed)
    text = f"{zeros:,} of {size:,} weights in {counted(len(tensors), 'tensor')}"
    if computed:
        text += f" and {counted(len(computed), 'computed weight')}"
    text += f" are zero, {zeros / size:.4%} where {least:.4%} are demanded"
    if added := _added_weights(subject, size):
        return Verdict(False, f"{text}; {added}", zeros / size)
    return Verdict(zeros / size >= least, text, zeros / size)


_EXCLUDE = "; name such a node, or its value, in [sparsity] exclude to pass over it"


def _uncounted(weight: ComputedWeight) -> str:
    return f"{weight.value}: {weight.by} computes it for {weight.op_type}, so it cannot be counted"


def _computed_scope(subject: Subject) -> list[ComputedWeight]:
    """The computed weights that `[sparsity]` is about, by the names of nodes and values."""
    settings = subject.policy.sparsity or SparsityPolicy()

    def named(weight: ComputedWeight, globs: Sequence[str]) -> bool:
        names = {weight.value, *(node for node, *_ in weight.readings)}
        return any(matches(name, weight.op_type, glob) for name in names for glob in globs)

    return [
        weight
        for weight in subject.computed_weights
        if named(weight, settings.include) and not named(weight, settings.exclude)
    ]


def _read_whole(
    subject: Subject, tensors: Sequence[GraphTensor], computed: Sequence[ComputedWeight]
) -> list[GraphTensor]:
    """The tensors that some operator multiplies with as they are stored, or rearranged."""
    readings = {reading for weight in computed for reading in weight.readings}
    return [tensor for tensor in tensors if is_needed(tensor, subject.needed - readings)]


def _added_weights(subject: Subject, size: int) -> str:
    """That there are more weights than the dense model has, whose zeros are for nobody."""
    operators = (node.domain == DOMAIN for node in working_graph(subject.model.proto).node)
    if subject.baseline is None or any(operators):  # compiling gives shared weights to each layer
        return ""
    dense = replace(subject, model=subject.baseline, baseline=None)
    computed = _computed_scope(dense)
    theirs = sum(tensor.size for tensor in _read_whole(dense, _scope(dense), computed))
    theirs += sum(weight.size for weight in computed)
    if size <= theirs:
        return ""
    return f"the baseline has {theirs:,} weights, so {size - theirs:,} were added"


def sparsity_per_tensor_min(subject: Subject, least: Mapping[str, float]) -> Verdict:
    """Zeros / weights of each tensor; of several globs that match, the last holds."""
    counts = {
        tensor.name: (tensor.op_type, _zeros(tensor), tensor.size) for tensor in _scope(subject)
    }
    computed = [weight for weight in _computed_scope(subject) if not weight.selected]
    counts |= {w.value: (w.op_type, w.zeros, w.size) for w in computed if w.zeros is not None}
    unused = [
        f"{glob!r} matches no tensor in scope"
        for glob in least
        if not any(matches(name, op_type, glob) for name, (op_type, *_) in counts.items())
    ]
    found, low = {}, []
    for name, (op_type, zeros, size) in counts.items():
        bounds = [value for glob, value in least.items() if matches(name, op_type, glob)]
        if bounds and size:
            found[name] = zeros / size
            if found[name] < bounds[-1]:
                low.append(f"{name}: {found[name]:.4%}, demanded {bounds[-1]:.4%}")
    for weight in computed:
        matched = any(matches(weight.value, weight.op_type, glob) for glob in least)
        if weight.zeros is None and matched:
            low.append(_uncounted(weight))
    if unused or low:
        return Verdict(False, listed([*unused, *low]), found)
    return Verdict(True, f"{counted(len(found), 'tensor')} with at least what is demanded", found)


def sparsity_pattern(subject: Subject, pattern: str) -> Verdict:
    """Every tensor in scope keeps to the pattern, as far as its size allows one."""
    tensors = _scope(subject)
    hidden = [weight for weight in _computed_scope(subject) if not weight.selected]
    if hidden:
        broken = [
            f"{weight.value}: {weight.by} computes it for {weight.op_type}, so its pattern is not "
            "known"
            for weight in hidden
        ]
        return Verdict(False, listed(broken) + _EXCLUDE)
    fitting = [tensor for tensor in tensors if pattern_fits(tensor, pattern)]
    if not fitting:
        return Verdict(False, f"the size of no tensor in scope allows {pattern}")
    broken = [_break(tensor, pattern) for tensor in fitting if not pattern_holds(tensor, pattern)]
    if broken:
        remedy = "; tensors that are meant to stay dense belong into [sparsity] exclude"
        kept = len(fitting) - len(broken)
        return Verdict(False, listed(broken) + remedy, kept / len(fitting))
    if not any(_zeros(tensor) for tensor in fitting):
        return Verdict(False, f"no weight is zero, so nothing shows the pattern {pattern}", 0.0)
    rest = [tensor.name for tensor in tensors if tensor not in fitting]
    unfit = f"; the size does not allow it in {listed(rest, separator=', ')}" if rest else ""
    return Verdict(True, f"{pattern} holds in {counted(len(fitting), 'tensor')}{unfit}", 1.0)


def _break(tensor: GraphTensor, pattern: str) -> str:
    """Where a tensor breaks a pattern that its size allows."""
    nonzero = tensor.array() != 0
    nm, block = nm_of(pattern), block_of(pattern)
    if nm is not None:
        groups = nm_groups(tensor, nonzero, nm[1])
        over = np.flatnonzero(groups.sum(axis=1) > nm[0])
        return (
            f"{tensor.name}: {len(over)} of {len(groups)} groups of {nm[1]} have more than "
            f"{nm[0]} non-zeros, the first is group {over[0]}"
        )
    counts = None if block is None else count_blocks(tensor, nonzero, *block)
    assert counts is not None
    return f"{tensor.name}: {counts.outside} of {counts.zeros} zeros lie outside of whole blocks"


def _scope(subject: Subject) -> list[GraphTensor]:
    """The tensors that `[sparsity]` is about; zeros that no output depends on count for nothing."""
    settings = subject.policy.sparsity or SparsityPolicy()
    return [
        tensor
        for tensor in subject.tensors.values()
        if (tensor.prunable or (tensor.trainable and tensor.name in settings.include))
        and any(matches(tensor.name, tensor.op_type, glob) for glob in settings.include)
        and not any(matches(tensor.name, tensor.op_type, glob) for glob in settings.exclude)
        and is_needed(tensor, subject.needed)
    ]


def _zeros(tensor: GraphTensor) -> int:
    return tensor.size - int(np.count_nonzero(tensor.array()))


def metadata_required(subject: Subject, _: bool) -> Verdict:
    """The file has metadata that can be read."""
    if subject.metadata.metadata is None:
        return Verdict(False, listed(subject.metadata.problems) or _without_metadata(subject))
    return Verdict(True, "the model has sparsity metadata")


def metadata_true_to_file(subject: Subject, _: bool) -> Verdict:
    """Every statement of the metadata holds that the file can answer."""
    problems = [*subject.metadata.problems, *subject.record.problems]
    if subject.metadata.true is None:
        problems.insert(0, f"{_without_metadata(subject)}, so nothing is true")
    if subject.baseline is not None and subject.metadata.metadata is not None:
        claimed = (subject.metadata.metadata or {}).get("source_sha256")
        if claimed != subject.baseline.sha256:
            problems.append(_other_source(claimed, subject.baseline.sha256, "the baseline has"))
    if problems:
        return Verdict(False, listed(problems), False)
    compared = "" if subject.baseline is None else ", and the baseline is the source"
    return Verdict(
        True, f"every statement of the metadata that the file can answer holds{compared}", True
    )


def _without_metadata(subject: Subject) -> str:
    """That there is nothing to check, and for a compiled model where it is."""
    record = read_record(subject.model.proto)
    if record is None:
        return "no sparsity metadata"
    return f"a compiled model has no sparsity metadata, its source {record.source_sha256} may"


def metadata_source_sha256(subject: Subject, demanded: str) -> Verdict:
    """The metadata name the dense model."""
    if subject.baseline is not None:
        if demanded not in ("baseline", subject.baseline.sha256):
            text = f"the baseline given is another file: {subject.baseline.sha256}"
            return Verdict(False, text, subject.baseline.sha256)
        demanded = subject.baseline.sha256
    elif demanded == "baseline":
        demanded = subject.need_baseline().sha256
    claimed = (subject.metadata.metadata or {}).get("source_sha256")
    if claimed != demanded:
        return Verdict(False, _other_source(claimed, demanded, "the policy demands"), claimed)
    return Verdict(True, f"the source is {demanded}", claimed)


def _other_source(claimed: object, demanded: str, by: str) -> str:
    if claimed is None:
        return f"there is no sparsity metadata that names a source, {by} {demanded}"
    return f"source_sha256: the metadata say {claimed}, {by} {demanded}"


def signature_same_as_baseline(subject: Subject, _: bool) -> Verdict:
    """Inputs, outputs and operator sets are those of the dense model."""
    baseline = subject.need_baseline()
    wanted, found = _signature(baseline), _signature(subject.model)
    problems = [
        f"{part}: {_difference(found[part], wanted[part])}"
        for part in wanted
        if found[part] != wanted[part]
    ]
    ours, theirs = subject.model.proto.ir_version, baseline.proto.ir_version
    if ours > theirs:
        problems.append(f"IR version: {ours}, newer than the baseline's {theirs}")
    if problems:
        return Verdict(False, listed(problems), False)
    count = len(wanted["inputs"]) + len(wanted["outputs"])
    return Verdict(True, f"{count} inputs and outputs and the operator sets are the same", True)


def _signature(model: OnnxModel) -> dict[str, list[str]]:
    """Inputs, outputs, and operator sets, as text that can be compared."""
    return {
        "inputs": [_value_text(value) for value in model.proto.graph.input],
        "outputs": [_value_text(value) for value in model.proto.graph.output],
        "operator sets": sorted(
            f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.proto.opset_import
        ),
    }


def _value_text(value: onnx.ValueInfoProto) -> str:
    """`x: FLOAT[N, 3, 224, 224]`, with the whole type where that is no tensor."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name}: {' '.join(str(value.type).split())}"
    known = onnx.TensorProto.DataType.values()
    element = onnx.TensorProto.DataType.Name(kind.elem_type) if kind.elem_type in known else "?"
    if not kind.HasField("shape"):
        return f"{value.name}: {element}[...]"
    sizes = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in kind.shape.dim
    ]
    return f"{value.name}: {element}[{', '.join(sizes)}]"


def _difference(found: list[str], wanted: list[str]) -> str:
    """What two lists of texts have not in common, or that it is their order."""
    if sorted(found) == sorted(wanted):
        return f"another order, {', '.join(found)} where the baseline has {', '.join(wanted)}"
    ours = (Counter(found) - Counter(wanted)).elements()
    theirs = (Counter(wanted) - Counter(found)).elements()
    return f"{', '.join(ours) or 'less'} where the baseline has {', '.join(theirs) or 'less'}"


def signature_same_graph(subject: Subject, _: bool) -> Verdict:
    """Only trained values differ from the dense model."""
    baseline = subject.need_baseline()
    problems = graph_differences(
        subject.model.proto, baseline.proto, subject.tensors, find_tensors(baseline.proto)
    )
    if problems:
        return Verdict(False, listed(problems), False)
    return Verdict(
        True,
        "nodes, types and shapes, and all values but trained ones, are those of the baseline",
        True,
    )


def size_max_bytes(subject: Subject, most: int) -> Verdict:
    """Size of the file with its external data."""
    size = subject.model.size_bytes
    return Verdict(size <= most, f"{size:,} bytes where at most {most:,} are allowed", size)


def size_max_ratio(subject: Subject, most: float) -> Verdict:
    """Size against that of the dense model."""
    size, dense = subject.model.size_bytes, subject.need_baseline().size_bytes
    ratio = size / dense
    text = f"{size:,} bytes of the baseline's {dense:,}, {ratio:.4f} where {most:g} is allowed"
    return Verdict(ratio <= most, text, ratio)


FILE_CHECKS: dict[str, Any] = {
    "sparsity.min": sparsity_min,
    "sparsity.per_tensor_min": sparsity_per_tensor_min,
    "sparsity.pattern": sparsity_pattern,
    "metadata.required": metadata_required,
    "metadata.true_to_file": metadata_true_to_file,
    "metadata.source_sha256": metadata_source_sha256,
    "signature.same_as_baseline": signature_same_as_baseline,
    "signature.same_graph": signature_same_graph,
    "size.max_bytes": size_max_bytes,
    "size.max_ratio": size_max_ratio,
}

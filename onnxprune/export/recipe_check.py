"""What sparsity metadata say of a run against the recipe that they hold, and the file against it.

The recipe is part of an untrusted file: nothing in it needs to be there, or of the right type.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from pydantic import BaseModel, ValidationError

from onnxprune.export.claims import brief, problem_text, shown
from onnxprune.export.liveness import is_needed, needed_readings
from onnxprune.export.metadata import SparsityMetadata
from onnxprune.export.pattern_check import ZERO_BY_CHANCE, pattern_fits, pattern_holds
from onnxprune.globs import matches
from onnxprune.recipe import Recipe, SparsityTable
from onnxprune.tensors import GraphTensor

_TABLES = ("model", "data", "preprocess", "sparsity", "schedule", "finetune", "distill", "export")
"""The tables that every version has written."""

_KEYS = (
    *("method", "scope", "pattern", "include", "exclude"),
    *("min_density", "min_density_per_tensor"),
)
"""The keys of `[sparsity]` that every version has written; `target` may follow from others."""

_NUMBERS = ("int_type", "float_type")
"""Errors about something else in the place of a number."""


def recipe_problems(
    proto: onnx.ModelProto, stored: Mapping[str, GraphTensor], claimed: SparsityMetadata
) -> Iterator[str]:
    """Where recipe, metadata and file contradict each other, one line each.

    Args:
        proto: The model.
        stored: Its tensors by name.
        claimed: Its metadata.
    """
    settings, problems = _read(claimed.recipe)
    yield from problems
    if settings is None:
        return
    for key, wanted, said in (
        ("method", settings.method, claimed.method),
        ("target_sparsity", settings.resolved_target, claimed.target_sparsity),
    ):
        if wanted != said:
            yield f"{key}: the recipe says {wanted}, the metadata say {brief(str(said))}"
    listed = {claim.name: claim.pattern for claim in claimed.tensors if claim.name in stored}
    yield from _list_problems(proto, stored, listed, settings)
    yield from _pattern_problems(stored, listed, claimed.pattern, settings.pattern)
    for name in listed:
        zeros = stored[name].size - int(np.count_nonzero(stored[name].array()))
        yield from _share_problems(stored[name], zeros, settings)


def _read(raw: Mapping[str, Any]) -> tuple[SparsityTable | None, list[str]]:
    """The recipe's `[sparsity]`, and what is wrong with the form of the recipe.

    Other tables leave no trace in the file, and their keys and choices change from version to
    version. What was a number has stayed one.
    """
    missing = [f"recipe.{name}" for name in _TABLES if name not in raw]
    settings = raw.get("sparsity")
    if isinstance(settings, Mapping):
        missing += [f"recipe.sparsity.{key}" for key in _KEYS if key not in settings]
    problems = [f"{name}: it is missing, and no file may leave it out" for name in missing]
    for name, table in raw.items():
        if name not in Recipe.model_fields:
            problems.append(f"recipe.{brief(name)}: there is no such table")
        elif not isinstance(table, Mapping):
            problems.append(f"recipe.{name}: found {shown(table)}, expected an object")
    others = {name: table for name, table in raw.items() if name != "sparsity"}
    problems += _form_problems(Recipe, others, "recipe", _NUMBERS)
    if not isinstance(settings, Mapping):
        return None, problems
    wrong = _form_problems(SparsityTable, settings, "recipe.sparsity")
    table = None if wrong else SparsityTable.model_validate(settings)
    return table, problems + wrong


def _form_problems(
    kind: type[BaseModel],
    values: Mapping[str, Any],
    where: str,
    only: Collection[str] | None = None,
) -> list[str]:
    """What is wrong with the form of a recipe, or of a table, a line a key; or some kinds of it."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        items = error.errors(include_url=False)
        found = [item for item in items if only is None or item["type"] in only]
        return [problem_text(item, where) for item in found]
    return []


def _list_problems(
    proto: onnx.ModelProto,
    stored: Mapping[str, GraphTensor],
    listed: Iterable[str],
    settings: SparsityTable,
) -> Iterator[str]:
    """Prunable tensors in the recipe's scope that are not listed, and listed ones outside of it.

    A tensor that no output depends on is not pruned, and not listed.
    """
    listed = set(listed)
    needed = needed_readings(proto)
    for name, tensor in stored.items():
        named = tensor.prunable or name in settings.include
        in_scope = (
            named
            and any(matches(name, tensor.op_type, glob) for glob in settings.include)
            and not any(matches(name, tensor.op_type, glob) for glob in settings.exclude)
            and pattern_fits(tensor, settings.pattern)
        )
        used = is_needed(tensor, needed)
        if name in listed and not in_scope:
            yield f"{name}: listed, and not in the recipe's scope"
        elif name in listed and not used:
            yield f"{name}: listed, and no output depends on it"
        missed = in_scope and (tensor.prunable or tensor.trainable) and used
        if name not in listed and missed:
            yield f"{name}: prunable, in the recipe's scope, and not listed"


def _pattern_problems(
    stored: Mapping[str, GraphTensor], listed: Mapping[str, str], whole: str, asked: str
) -> Iterator[str]:
    """A tensor has the recipe's pattern, or is unstructured because that one does not hold."""
    for name, said in listed.items():
        wanted = asked if pattern_holds(stored[name], asked) else "unstructured"
        if said != wanted:
            yield (
                f"{name}: the recipe's pattern is {asked}, which makes the tensor's {wanted}, the "
                f"metadata say {brief(said)}"
            )
    kinds = set(listed.values())
    wanted = kinds.pop() if len(kinds) == 1 else "unstructured"
    if whole != wanted:
        yield f"pattern: the tensors make it {wanted}, the metadata say {brief(whole)}"


def _share_problems(tensor: GraphTensor, zeros: int, settings: SparsityTable) -> Iterator[str]:
    """A tensor keeps its minimum density, and with scope `layerwise` it has its share of the zeros.

    Patterns round that share, dead weights that cascade-gmp takes out move it, and tensors that
    keep more than their share leave it to others. Kept weights of the dense model may be zero, too,
    as those of a new layer are.
    """
    slack = max(1, ZERO_BY_CHANCE * tensor.size)
    density = settings.min_density_of(tensor.name)
    if zeros < tensor.size and tensor.size - zeros < math.floor(density * tensor.size - slack):
        yield (
            f"{tensor.name}: {tensor.size - zeros} of {tensor.size} values are not zero, and the "
            f"recipe's minimum density is {density:g}"
        )
    uneven = settings.pattern != "unstructured" or settings.method == "cascade-gmp"
    if settings.scope != "layerwise" or uneven:
        return
    share = min(settings.resolved_target, 1 - density)
    if zeros < math.floor(share * tensor.size - slack):
        yield (
            f"{tensor.name}: {zeros} of {tensor.size} values are zero, which is not the share of "
            f"{share:g} that the recipe's scope, layerwise, gives it"
        )

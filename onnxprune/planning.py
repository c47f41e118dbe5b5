"""What a recipe means for a model: which tensors are pruned, how far, and when."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.cascade import Rounds
from onnxprune.errors import TargetError
from onnxprune.globs import matches
from onnxprune.recipe import Recipe, SparsityTable
from onnxprune.sparsity import (
    NM,
    Axes,
    Pattern,
    Schedule,
    min_kept,
    parse_pattern,
    prunable_limit,
    target_zeros,
    whole_blocks,
)
from onnxprune.sparsity.patterns import check_pattern
from onnxprune.tensors import GraphTensor


@dataclass(frozen=True)
class PruningPlan:
    """What is pruned, and how far.

    Attributes:
        tensors: The tensors in scope, in graph order.
        skipped: Weights that stay dense, name -> why.
        zeros: Number of zeros at the end, exactly `ceil(target * size)`.
        floors: Name -> number of weights that are kept at least.
        pattern: Pattern of all tensors in scope.
        schedule: When weights go.
        rounds: The rounds of method `iterative`, which then say when; None for other methods.
    """

    tensors: dict[str, GraphTensor]
    skipped: dict[str, str]
    zeros: int
    floors: dict[str, int]
    pattern: Pattern
    schedule: Schedule
    rounds: Rounds | None = None

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def axes(self) -> dict[str, Axes]:
        """Axes of every tensor that products are summed over."""
        return _axes(self.tensors)

    def events(self, total_steps: int) -> dict[int, int]:
        """Step -> number of zeros from then on; the last is exactly `zeros`."""
        if self.rounds is not None:
            fractions = self.rounds.event_steps(total_steps, self.zeros / self.size)
        else:
            fractions = self.schedule.event_steps(total_steps)
        return {
            step: self.zeros if fraction == 1.0 else math.floor(fraction * self.zeros)
            for step, fraction in fractions.items()
        }

    def skipped_notes(self, limit: int = 6) -> list[str]:
        """A line for each reason why weights stay dense."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        return [
            f"{len(names)} weights stay dense, {reason}: {', '.join(names[:limit])}"
            + (" ..." if len(names) > limit else "")
            for reason, names in by_reason.items()
        ]

    def to_json(self, total_steps: int) -> dict[str, Any]:
        """The plan as JSON values, for `--dry-run` and the run directory."""
        return {
            "prunable_parameters": self.size,
            "target_zeros": self.zeros,
            "target_sparsity": self.zeros / self.size,
            "pattern": str(self.pattern or "unstructured"),
            "tensors": [
                {
                    "name": tensor.name,
                    "op_type": tensor.op_type,
                    "shape": list(tensor.shape),
                    "size": tensor.size,
                    "min_kept": self.floors[tensor.name],
                }
                for tensor in self.tensors.values()
            ],
            "skipped": self.skipped,
            "steps": total_steps,
            "schedule": [
                {"step": step, "zeros": zeros, "sparsity": zeros / self.size}
                for step, zeros in self.events(total_steps).items()
            ],
        }


def make_plan(tensors: Iterable[GraphTensor], recipe: Recipe) -> PruningPlan:
    """Apply a recipe to the stored tensors of a model.

    Raises:
        TargetError: Nothing is left to prune, the pattern fits nothing, or the target cannot be
            reached.
    """
    settings = recipe.sparsity
    tensors = list(tensors)
    chosen, skipped = _in_scope(tensors, settings)
    if not chosen:
        raise TargetError(
            "no tensor is left to prune",
            got=f"include = {settings.include}, exclude = {settings.exclude}",
            expected="at least one weight of Conv, ConvTranspose, Gemm, MatMul or a recurrent "
            "operator, with two or more dimensions",
            remedy="`onnxprune inspect MODEL` lists the tensors",
        )
    pattern = parse_pattern(settings.pattern)
    shapes = {name: tensor.group_shape for name, tensor in chosen.items()}
    fitting, unfit = check_pattern(pattern, shapes, _axes(chosen))
    for name in unfit:
        skipped[name] = f"does not divide into groups for the pattern {pattern}"
    chosen = {name: chosen[name] for name in fitting}
    sizes = {name: tensor.size for name, tensor in chosen.items()}
    zeros = target_zeros(settings.resolved_target, sum(sizes.values()))
    floors = {name: _floor(name, size, settings) for name, size in sizes.items()}
    floors = whole_blocks(pattern, floors)
    if isinstance(pattern, NM):
        _check_pattern_floors(pattern, sizes, floors)
    prunable_limit(sizes, floors, zeros, what=f"sparsity {settings.resolved_target:g}")
    one_shot = settings.method == "one-shot"
    schedule = Schedule(
        "one-shot" if one_shot else recipe.schedule.kind,
        recipe.schedule.begin,
        recipe.schedule.end,
        recipe.schedule.events,
    )
    rounds = _rounds(recipe) if settings.method == "iterative" else None
    return PruningPlan(chosen, skipped, zeros, floors, pattern, schedule, rounds)


def _rounds(recipe: Recipe) -> Rounds:
    settings, epochs = recipe.schedule, recipe.finetune.epochs
    if settings.rewind == "none" or settings.rewind_epoch == 0:
        return Rounds(settings.rounds)
    if settings.rewind_epoch >= epochs:
        raise TargetError(
            "the rewinding point lies beyond the end of training",
            where="[schedule] rewind_epoch",
            got=settings.rewind_epoch,
            expected=f"below [finetune] epochs, {epochs:g}",
        )
    return Rounds(settings.rounds, settings.rewind_epoch / epochs)


def _check_pattern_floors(pattern: NM, sizes: Mapping[str, int], floors: Mapping[str, int]) -> None:
    """A pattern holds only in tensors that may lose all that it removes."""
    for name, size in sizes.items():
        if floors[name] * pattern.m > size * pattern.n:
            raise TargetError(
                f"the minimum density of a tensor rules out the pattern {pattern}",
                where=name,
                got=f"{floors[name]} of {size} weights are kept at least",
                expected=f"at most {size * pattern.n // pattern.m}",
                remedy="lower its `min_density`, or exclude the tensor",
            )


def _axes(tensors: Mapping[str, GraphTensor]) -> dict[str, Axes]:
    return {
        name: Axes(tensor.reduction_axis, tensor.output_axis)
        for name, tensor in tensors.items()
        if tensor.reduction_axis is not None
    }


def _in_scope(
    tensors: list[GraphTensor], settings: SparsityTable
) -> tuple[dict[str, GraphTensor], dict[str, str]]:
    chosen: dict[str, GraphTensor] = {}
    skipped: dict[str, str] = {}
    for tensor in tensors:
        if not tensor.prunable and not _named(tensor, settings.include):
            if tensor.trainable and len(tensor.shape) >= 2:
                skipped[tensor.name] = "not prunable by default (depthwise, embedding or operand)"
            continue
        if not any(_matches(tensor, glob) for glob in settings.include):
            skipped[tensor.name] = "not in `include`"
        elif any(_matches(tensor, glob) for glob in settings.exclude):
            skipped[tensor.name] = "in `exclude`"
        else:
            chosen[tensor.name] = tensor
    return chosen, skipped


def _named(tensor: GraphTensor, globs: list[str]) -> bool:
    """Whether a trainable tensor is included by its exact name, against the default rule."""
    return tensor.trainable and tensor.name in globs


def _matches(tensor: GraphTensor, glob: str) -> bool:
    return matches(tensor.name, tensor.op_type, glob)


def _floor(name: str, size: int, settings: SparsityTable) -> int:
    return min(size, min_kept(settings.min_density_of(name), size))

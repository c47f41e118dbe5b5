"""What a run cost in training operations, so that methods are compared at equal budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

PASSES = 3
"""A training step counts as three forward passes: forward, and the gradients of inputs and of
weights, each as large (Evci et al., "Rigging the Lottery", arXiv 1911.11134, appendix H)."""


@dataclass(frozen=True)
class Budget:
    """What a run cost.

    Attributes:
        epochs: Passes over the training samples.
        steps: Optimizer steps.
        samples: Samples that passed, all steps together.
        mean_density: Mean over the steps of kept / prunable weights, in [0, 1].
        mean_density_planned: The same as the schedule alone would have it. What closure and harvest
            took ahead of it is the difference; events that waited raise the first.
        training_flops_dense: As if nothing were pruned; None where the graph's are not known.
        training_flops: At the density that each tensor had at each step. In theory only: dense
            hardware multiplies zeros, too.
    """

    epochs: float
    steps: int
    samples: int
    mean_density: float
    mean_density_planned: float
    training_flops_dense: int | None
    training_flops: int | None


def training_budget(
    events: Sequence[tuple[int, Mapping[str, int]]],
    sizes: Mapping[str, int],
    steps: int,
    batch_size: int,
    steps_per_epoch: int,
    flops: Mapping[str, int],
    total_flops: int | None,
    planned: Mapping[int, int],
) -> Budget:
    """Add up the operations of a run over its pruning events.

    Args:
        events: (step, kept weights by tensor from then on), rising; before the first all are kept.
        sizes: Weights of each pruned tensor.
        steps: Optimizer steps of the run.
        batch_size: Samples a step.
        steps_per_epoch: At least 1.
        flops: Operations of a forward pass of one sample, by pruned tensor.
        total_flops: The same of the whole graph; None if not known.
        planned: Step -> zeros from then on, as the schedule says; rising.
    """
    stretches = [(0, dict(sizes)), *((step, dict(kept)) for step, kept in events), (steps, {})]
    lengths = {
        number: max(0, min(steps, after[0]) - min(steps, here[0]))
        for number, (here, after) in enumerate(pairwise(stretches))
    }
    size = sum(sizes.values())
    kept_steps = {
        name: sum(
            length * stretches[number][1].get(name, sizes[name])
            for number, length in lengths.items()
        )
        for name in sizes
    }
    samples = steps * batch_size
    dense = sparse = None
    if total_flops is not None and all(name in flops for name in sizes):
        saved = sum(
            flops[name] * (steps - kept_steps[name] / sizes[name]) for name in sizes if sizes[name]
        )
        dense = PASSES * samples * total_flops
        sparse = dense - round(PASSES * batch_size * saved)
    return Budget(
        steps / steps_per_epoch,
        steps,
        samples,
        sum(kept_steps.values()) / (size * steps) if size and steps else 1.0,
        _planned_density(planned, size, steps),
        dense,
        sparse,
    )


def _planned_density(planned: Mapping[int, int], size: int, steps: int) -> float:
    if not size or not steps:
        return 1.0
    zeros = 0.0
    for (start, count), (end, _) in pairwise([*planned.items(), (steps, 0)]):
        zeros += count * max(0, min(steps, end) - min(steps, start))
    return 1 - zeros / (size * steps)

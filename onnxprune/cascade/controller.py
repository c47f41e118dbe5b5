"""Cascade-aware gradual magnitude pruning: how many weights go at an event, and which go first.

The cubic schedule of gradual magnitude pruning is the floor. At an event the mask takes, in this
order, weights on no path from an input to an output (structural closure), shed weights (harvest),
and then the smallest magnitudes up to the floor. What closure and harvest take beyond the floor
advances the schedule, and the training that is no longer needed for pruning goes into recovery.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onnxprune.sparsity import Score


@dataclass(frozen=True)
class Policy:
    """What the controller may do.

    Attributes:
        wait: Events at most, one after another, in which magnitude pruning is put off while the
            shed rate still rises: the ranking has not settled then.
        pressure: Factor on weight decay until the target is reached, at least 0.
        hold_lr: Whether the learning rate stays at its peak until the target is reached, and falls
            in what is left of the run.
    """

    wait: int = 0
    pressure: float = 1.0
    hold_lr: bool = False


@dataclass
class Controller:
    """Decides, event by event; its state is what a checkpoint has to keep.

    Attributes:
        policy: What it may do.
        events: Step -> zeros that the schedule asks for from then on, rising.
        target: Zeros at the end.
        settled_at: Step at which the target was reached; None before.
        has_pruned: Whether an event has taken weights.
        waited: Events that magnitude pruning was put off, one after another.
        pressure: Factor on weight decay now; brakes lower it towards 1.
        observed: (step, shed weights) since weights were last taken; none are shed at the first.
    """

    policy: Policy
    events: Mapping[int, int]
    target: int
    settled_at: int | None = None
    has_pruned: bool = False
    waited: int = 0
    pressure: float = 1.0
    observed: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pressure = self.policy.pressure

    def began(self, step: int) -> None:
        """From here on shed weights are counted."""
        self.observed = [(step, 0)]

    def observe(self, step: int, shed: int) -> None:
        """Note how many weights are shed at a step, counted since `began`."""
        self.observed.append((step, shed))

    def rises(self, waiting: int) -> bool:
        """Whether more weights were shed in the later half of the time since weights were taken.

        By more than twice the spread that two counts of independent events would have, since a few
        weights more or less are no trend; and by enough to matter. Before anything was pruned
        nothing is shed because of it.

        Args:
            waiting: Weights that would be put off. A hundredth of them is enough to matter.
        """
        if not self.has_pruned or len(self.observed) < 3:
            return False
        (first, at_first), (last, at_last) = self.observed[0], self.observed[-1]
        middle = (first + last) / 2
        step, at_middle = min(self.observed, key=lambda point: abs(point[0] - middle))
        if not first < step < last:
            return False
        late = at_last - at_middle
        as_before = (at_middle - at_first) * (last - step) / (step - first)
        spread = math.sqrt(max(0, late) + max(0, as_before))
        return late - as_before > max(2 * spread, waiting / 100)

    def zeros(self, step: int, masked: int, first: int) -> int:
        """How many weights are zero after the event at `step`.

        Args:
            step: A step of `events`.
            masked: Zeros so far.
            first: Weights that closure and harvest would take beyond them.
        """
        taken = min(self.target, masked + first)
        due = max(taken, min(self.target, self.events[step]))
        last = step == max(self.events)
        if last:
            return self.target
        if due > taken and self.waited < self.policy.wait and self.rises(due - taken):
            self.waited += 1
            return taken
        self.waited = 0
        return due

    def pruned(self, step: int, zeros: int) -> None:
        """The event at `step` is done."""
        self.has_pruned = True
        if zeros >= self.target and self.settled_at is None:
            self.settled_at = step

    def brake(self) -> None:
        """A harvest would have cost loss: halve what weight decay is raised by."""
        self.pressure = 1 + (self.pressure - 1) / 2 if self.pressure > 1 else self.pressure

    def decay_factor(self) -> float:
        """Factor on weight decay for the next step."""
        return self.pressure if self.settled_at is None else 1.0

    def progress(self, step: float, total_steps: int, warmup: float) -> float:
        """Progress through the course of the learning rate at a step, in [0, 1].

        With `hold_lr` it rises to the end of the warm-up, stays there until the target is reached,
        and then takes what is left of the run for the rest of the course.

        Args:
            step: In [0, total_steps].
            total_steps: Of the run.
            warmup: Progress that warm-up takes, in [0, 1).
        """
        plain = step / total_steps
        if not self.policy.hold_lr:
            return plain
        if self.settled_at is None:
            return min(plain, warmup)
        start = max(self.settled_at, warmup * total_steps)
        if step <= start or start >= total_steps:
            return min(plain, warmup)
        return warmup + (1 - warmup) * (step - start) / (total_steps - start)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {
            "settled_at": self.settled_at,
            "has_pruned": self.has_pruned,
            "waited": self.waited,
            "pressure": self.pressure,
            "observed": [list(point) for point in self.observed],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.settled_at = state["settled_at"]
        self.has_pruned = state.get("has_pruned", True)  # not in older checkpoints
        self.waited = state["waited"]
        self.pressure = state["pressure"]
        self.observed = [(step, shed) for step, shed in state["observed"]]


class Foremost:
    """A score under which chosen weights go before all others.

    Args:
        score: What ranks the others.
        first: Tensor name -> boolean tensor, or the part of it on this rank: True goes first.
        starts: Position of each part in its whole tensor; None for whole tensors.
    """

    def __init__(
        self,
        score: Score,
        first: Mapping[str, Tensor],
        starts: Mapping[str, int] | None = None,
    ) -> None:
        self.score = score
        self.first = {name: mask.reshape(-1) for name, mask in first.items()}
        self.starts = starts or {}

    def of(self, name: str, weights: Tensor, start: int) -> Tensor:
        """See `Score.of`."""
        scores = self.score.of(name, weights, start)
        own = start - self.starts.get(name, 0)
        # A product, since a fill by mask is ten times slower on a CPU. Scores are finite.
        return scores.mul_(~self.first[name][own : own + len(weights)])


def union(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that either chooses."""
    return {name: mask | second[name] for name, mask in first.items()}


def nothing(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A choice of no weight, like `masks`."""
    return {name: torch.zeros_like(mask) for name, mask in masks.items()}

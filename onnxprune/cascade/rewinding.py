"""Iterative pruning with learning-rate and weight rewinding: rounds, and courses of training.

A round prunes and then trains; rewinding lets it begin with the learning rate, or with the learning
rate and the weights, of an earlier point.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Rounds:
    """Rounds that each remove the same share of the weights that are left, and then train.

    Frankle and Carbin, "The Lottery Ticket Hypothesis", arXiv 1803.03635, section 1, for iterative
    pruning; Frankle et al., arXiv 1912.05671, for rewinding to a point early in training; Renda et
    al., arXiv 2003.02389, for restarting the learning rate from there.

    Attributes:
        count: Number of rounds, at least 1.
        rewind_progress: Progress in [0, 1) at the point that rounds go back to. Above 0, a stretch
            without pruning comes first, which passes that point and is as much longer than a round.
    """

    count: int
    rewind_progress: float = 0.0

    def rewind_steps(self, total_steps: int) -> int:
        """Steps from the beginning of training to the point that rounds go back to."""
        return round(self.rewind_progress * total_steps)

    def starts(self, total_steps: int) -> list[int]:
        """First step of every round; with a stretch without pruning the first is above 0."""
        first = self.rewind_steps(total_steps)
        if first == 0:
            return [round(total_steps * number / self.count) for number in range(self.count)]
        length = (total_steps - first) / (self.count + 1)
        return [round(first + length * number) for number in range(1, self.count + 1)]

    def event_steps(self, total_steps: int, sparsity: float) -> dict[int, float]:
        """The steps before which weights are removed, with the share of the zeros due at each.

        Args:
            total_steps: Optimizer steps of the whole run.
            sparsity: At the end, in [0, 1).

        Returns:
            Step -> fraction in (0, 1]; the last fraction is always 1.
        """
        starts = self.starts(total_steps)
        fractions = {
            step: (1 - (1 - sparsity) ** (number / self.count)) / sparsity if sparsity else 1.0
            for number, step in enumerate(starts, start=1)
        }
        fractions[starts[-1]] = 1.0
        return fractions


@dataclass(frozen=True)
class Course:
    """A stretch of training with a course of the learning rate of its own.

    Attributes:
        start: Its first step.
        steps: Its length, at least 1.
        skipped: Steps at the beginning of the course that are left out, as rewinding to a later
            point than its beginning does.
    """

    start: int
    steps: int
    skipped: int = 0

    def progress(self, step: float) -> float:
        """Progress through the course at a step of the run, in [0, 1]."""
        return (self.skipped + step - self.start) / (self.skipped + self.steps)


def courses_of(starts: list[int], total_steps: int, rewind_steps: int) -> tuple[Course, ...]:
    """A course of the learning rate for every round, and one for what comes before the first.

    Args:
        starts: First step of every round, rising.
        total_steps: Steps of the run.
        rewind_steps: Steps from the beginning of a course to the point that rounds go back to.
    """
    edges = [*([0] if starts[0] else []), *starts, total_steps]
    return tuple(
        Course(start, end - start, 0 if start == 0 else rewind_steps)
        for start, end in pairwise(edges)
        if end > start
    )

"""Pruning schedules: sparsity as a pure function of progress through training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How sparsity rises from 0 to its target.

    Attributes:
        kind: `"cubic"` (Zhu and Gupta, arXiv 1710.01878, equation 1), `"linear"`, or `"one-shot"`
            (all at `begin`).
        begin: Progress in [0, 1) at which pruning begins.
        end: Progress in (begin, 1] at which the target is reached.
        events: Number of pruning events, at least 1.
    """

    kind: str
    begin: float
    end: float
    events: int

    def fraction(self, progress: float) -> float:
        """Share of the target sparsity that is due at `progress` in [0, 1]; never falls."""
        if progress < self.begin:
            return 0.0
        if self.kind == "one-shot" or progress >= self.end:
            return 1.0
        done = (progress - self.begin) / (self.end - self.begin)
        return done if self.kind == "linear" else 1 - (1 - done) ** 3

    def event_steps(self, total_steps: int) -> dict[int, float]:
        """The steps before which weights are removed, with the share of the target due at each.

        Args:
            total_steps: Optimizer steps of the whole run, at least 0.

        Returns:
            Step index in [0, total_steps] -> fraction in (0, 1]. The last fraction is always 1, so
            the target is met however short the run is.
        """
        if self.kind == "one-shot":
            return {round(self.begin * total_steps): 1.0}
        width = self.end - self.begin
        steps: dict[int, float] = {}
        for event in range(1, self.events + 1):
            progress = self.begin + width * event / self.events
            steps[round(progress * total_steps)] = self.fraction(progress)
        last = max(steps)
        steps[last] = 1.0
        return steps


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

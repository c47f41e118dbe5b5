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

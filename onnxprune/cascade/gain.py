"""Cascade gain: net shed weights for each weight that was pruned, and what can be said of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

Verdict = Literal["present", "weak", "absent", "inconclusive"]

ABSENT_BELOW = 0.1
"""A gain that is below this with 95 % confidence counts as no cascade."""


@dataclass(frozen=True)
class Gain:
    """The cascade gain over seeds, with its 95 % interval (Student's t).

    Attributes:
        mean: Mean over the seeds.
        low: Lower end of the interval; minus infinity with one seed.
        high: Upper end; infinity with one seed.
        values: One gain for each seed.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        """`present` if low > 1, `weak` if low > 0, `absent` if high < 0.1, else `inconclusive`."""
        if self.low > 1:
            return "present"
        if self.low > 0:
            return "weak"
        if self.high < ABSENT_BELOW:
            return "absent"
        return "inconclusive"

    def seeds_needed(self, most: int = 1000) -> int | None:
        """About how many seeds would decide, if mean and spread stay as they are.

        Returns:
            A number above that of the seeds so far; None if even `most` would not, or if there is
            only one seed, which tells no spread.
        """
        if len(self.values) < 2:
            return None
        spread = statistics.stdev(self.values)
        for seeds in range(len(self.values) + 1, most + 1):
            half = _t_quantile(seeds - 1) * spread / math.sqrt(seeds)
            if Gain(self.mean, self.mean - half, self.mean + half, ()).verdict != "inconclusive":
                return seeds
        return None


def cascade_gain(treated: int, control: int, pruned: int) -> float:
    """Net shed weights for each weight pruned, of one seed.

    Args:
        treated: Shed weights of the arm that was pruned.
        control: Shed weights of the control arm, counted only on the positions that the treated arm
            kept: magnitude pruning takes the small weights from the treated arm, and counting them
            in the control would hide the effect.
        pruned: Weights that the event masked, without those that were zero already; 0 gives 0.
    """
    return (treated - control) / pruned if pruned else 0.0


def gain_over_seeds(values: Sequence[float]) -> Gain:
    """Mean and 95 % interval of gains; with one seed the interval is unbounded."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Gain(mean, -math.inf, math.inf, tuple(values))
    half = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Gain(mean, mean - half, mean + half, tuple(values))


def _t_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t distribution."""
    return float(stdtrit(degrees, 0.975))

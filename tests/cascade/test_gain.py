"""Gain, interval and verdict."""

import math

import pytest
import scipy.stats

from onnxprune.cascade import Gain, cascade_gain, gain_over_seeds


def test_the_gain_is_net_of_the_control() -> None:
    assert cascade_gain(treated=120, control=20, pruned=50) == 2.0
    assert cascade_gain(treated=20, control=120, pruned=50) == -2.0
    assert cascade_gain(treated=5, control=0, pruned=0) == 0.0


def test_the_interval_is_that_of_students_t() -> None:
    values = [0.5, 1.25, 0.75, 2.0]
    gain = gain_over_seeds(values)
    low, high = scipy.stats.t.interval(0.95, 3, scipy.stats.tmean(values), scipy.stats.sem(values))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1.125, low, high))


def test_one_seed_proves_nothing() -> None:
    gain = gain_over_seeds([50.0])
    assert (gain.low, gain.high) == (-math.inf, math.inf)
    assert gain.verdict == "inconclusive"
    assert gain.seeds_needed() is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 3.0, "present"),
        (1.0, 3.0, "weak"),
        (0.01, 0.05, "weak"),
        (0.0, 0.09, "absent"),
        (-5.0, 0.0999, "absent"),
        (-0.1, 0.1, "inconclusive"),
        (-1.0, 4.0, "inconclusive"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert Gain((low + high) / 2, low, high, ()).verdict == verdict


def test_the_seeds_that_would_decide_do_decide() -> None:
    gain = gain_over_seeds([1.0, 3.0, 2.5, 0.2])
    assert gain.verdict == "inconclusive"
    needed = gain.seeds_needed()
    assert needed is not None

    def half(seeds: int) -> float:
        spread = scipy.stats.tstd(gain.values)
        return float(scipy.stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds))

    assert gain.mean - half(needed) > 0
    assert gain.mean - half(needed - 1) <= 0

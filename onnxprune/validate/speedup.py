"""What a speedup is, with an interval: the statistics of `bench`.

Times come as `timing.measure` returns them, a list of openings `(rounds, models, calls)`.

The ratio of a round compares calls a moment apart; the median of an opening's rounds ignores
rounds that something else disturbed; and since a session keeps the luck of its memory while it is
open, openings and not calls are the independent observations. The estimate is the Hodges-Lehmann
estimator of the openings' log ratios (the median of the means of all pairs; Hodges and Lehmann
1963), which a minority of odd openings cannot carry off. The interval is its percentile bootstrap
over openings (a cluster bootstrap), with the percentiles moved outwards for the small number of
openings (the expanded percentile interval of Hesterberg 2015, "What Teachers Should Know About the
Bootstrap", section 5.4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

EQUAL_WITHIN = 0.03
"""Ratios within this of 1 make no difference worth the name."""

CONFIDENCE = 0.95
_RESAMPLES = 2000
_CHUNK = 2**21


@dataclass(frozen=True)
class Speedup:
    """Latency of the baseline divided by that of a model; above 1 the model is faster.

    Attributes:
        ratio: The estimate, see the module.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`same`, `faster`, `slower` or `unclear`.

        The same is what lies within `EQUAL_WITHIN` of 1 with its whole interval, and an interval
        that includes 1 and is narrower than ±`EQUAL_WITHIN`.
        """
        if self.low >= 1 - EQUAL_WITHIN and self.high <= 1 + EQUAL_WITHIN:
            return "same"
        if self.low > 1:
            return "faster"
        if self.high < 1:
            return "slower"
        return "same" if self.conclusive else "unclear"

    @property
    def conclusive(self) -> bool:
        """Whether the interval excludes 1 or is narrower than ±3 %."""
        narrow = self.high - self.low <= 2 * EQUAL_WITHIN
        return self.low > 1 or self.high < 1 or narrow


def speedup(openings: Sequence[np.ndarray], model: int, seed: int) -> Speedup:
    """The speedup of a model over the first one.

    Args:
        openings: Milliseconds, each `(rounds, models, calls)`.
        model: Index of the model.
        seed: Seed of the bootstrap.
    """
    logs = [np.median(np.log(round_ratios([times], model))) for times in openings]
    ratio, low, high = np.exp(estimate(np.array(logs), seed))
    return Speedup(float(ratio), float(low), float(high))


def round_ratios(openings: Sequence[np.ndarray], model: int) -> np.ndarray:
    """Latency of the first model over that of another, in each round; of its bursts the medians.

    Args:
        openings: Milliseconds, each `(rounds, models, calls)`.
        model: Index of the other model.
    """
    return np.concatenate(
        [np.median(times[:, 0], axis=1) / np.median(times[:, model], axis=1) for times in openings]
    )


def half_width(openings: Sequence[np.ndarray], seed: int) -> float:
    """The largest half-width of an interval as a share of its estimate.

    The intervals are those of the speedups; with one model, that of its median latency.
    """
    models = openings[0].shape[1]
    if models == 1:
        logs = np.array([np.log(np.median(times)) for times in openings])
        ratio, low, high = np.exp(estimate(logs, seed))
        return float((high - low) / 2 / ratio)
    results = [speedup(openings, model, seed) for model in range(1, models)]
    return max((result.high - result.low) / 2 / result.ratio for result in results)


def estimate(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Hodges-Lehmann estimate of the centre and its interval, see the module.

    Args:
        values: One value an opening, `(openings,)`; at least two.
        seed: Seed of the resampling.
    """
    count = len(values)
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(count)
    rows = max(1, _CHUNK // len(first))
    centres = np.concatenate(
        [
            _centres(values[rng.integers(count, size=(size, count))], first, second)
            for size in _chunks(_RESAMPLES, rows)
        ]
    )
    tail = NormalDist().cdf(
        -math.sqrt(count / (count - 1)) * student_t((1 + CONFIDENCE) / 2, count - 1)
    )
    low, high = np.quantile(centres, [tail, 1 - tail])
    return float(_centres(values[None], first, second)[0]), float(low), float(high)


def _centres(samples: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.median((samples[:, first] + samples[:, second]) / 2, axis=1)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution, to 1 % from 4 degrees of freedom on.

    The expansion of Abramowitz and Stegun 1964, equation 26.7.5; SciPy is not among the packages
    that validation needs.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))

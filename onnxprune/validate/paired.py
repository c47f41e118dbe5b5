"""What can be said with confidence of shares of samples, and of the difference of two models.

Both models see the same samples, so what decides is the samples on which they differ: those that
only the dense model gets right (lost) and those that only the other one does (gained).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_HALVINGS = 60


@dataclass(frozen=True)
class PairedDrop:
    """How much worse one model is than another on the same samples.

    Attributes:
        samples: Number of samples.
        lost: Samples that only the first model gets right.
        gained: Samples that only the second one does.
        drop: (lost - gained) / samples, in [-1, 1].
        lower: Lower bound of the drop with the asked one-sided confidence.
        upper: Upper bound.
        p_value: Of the exact McNemar test, two-sided: how likely a difference of this size is by
            chance between models that are equally good.
    """

    samples: int
    lost: int
    gained: int
    drop: float
    lower: float
    upper: float
    p_value: float


def paired_drop(first: np.ndarray, second: np.ndarray, confidence: float) -> PairedDrop:
    """Compare what two models get right on the same samples.

    Args:
        first: Whether the first (dense) model is right, `(samples,)`.
        second: Whether the second one is, `(samples,)`.
        confidence: One-sided, in (0.5, 1).
    """
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    samples = len(first)
    return PairedDrop(
        samples,
        lost,
        gained,
        (lost - gained) / samples,
        -drop_upper_bound(gained, lost, samples, confidence),
        drop_upper_bound(lost, gained, samples, confidence),
        mcnemar_p_value(lost, gained),
    )


def drop_upper_bound(lost: int, gained: int, samples: int, confidence: float) -> float:
    """Upper bound of the difference of two paired shares.

    The score interval of Tango (1998), "Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design", Statistics in Medicine 17:891. It keeps close to
    its confidence also with few samples, and where none of them differ.

    Args:
        lost: Samples that only the first model gets right.
        gained: Samples that only the second one does.
        samples: All samples, at least 1.
        confidence: One-sided, in (0.5, 1).
    """
    z = NormalDist().inv_cdf(confidence)

    def is_within(drop: float) -> bool:
        """Whether a true drop of this size is no surprise, given what was seen."""
        restricted = _restricted_gain(lost, gained, samples, drop)
        variance = samples * (2 * restricted + drop * (1 - drop))
        distance = samples * drop - (lost - gained)
        return distance <= z * math.sqrt(max(variance, 0.0))

    return _boundary((lost - gained) / samples, 1.0, is_within)


def _restricted_gain(lost: int, gained: int, samples: int, drop: float) -> float:
    """Most likely share of gained samples if the true drop has this size (Tango's q)."""
    a = 2 * samples
    b = -lost - gained + (2 * samples - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def _boundary(inside: float, outside: float, is_within: Callable[[float], bool]) -> float:
    """Where a condition that holds at `inside` ends on the way to `outside`."""
    if is_within(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if is_within(middle):
            inside = middle
        else:
            outside = middle
    return outside


def share_lower_bound(hits: int, samples: int, confidence: float) -> float:
    """Lower bound of a share of samples: the score interval of Wilson (1927).

    Args:
        hits: Samples that count.
        samples: All samples, at least 1.
        confidence: One-sided, in (0.5, 1).
    """
    z = NormalDist().inv_cdf(confidence)
    share = hits / samples
    centre = share + z * z / (2 * samples)
    reach = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, (centre - reach) / (1 + z * z / samples))


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact test of McNemar (1947).

    Among the samples on which two equally good models differ, either is right with probability 1/2.
    """
    differing = lost + gained
    log_half = differing * math.log(0.5)
    tail = sum(
        math.exp(_log_comb(differing, count) + log_half) for count in range(min(lost, gained) + 1)
    )
    return min(1.0, 2 * tail)


def _log_comb(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

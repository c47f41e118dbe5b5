"""From entries to figures: means with intervals, differences over seeds, fronts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

# 0.975 quantiles of Student's t for 1 to 30 degrees of freedom, and of the normal distribution.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_NORMAL = 1.9600

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval by Student's t.

    Attributes:
        mean: Of the values.
        low: Lower end; the mean itself for one value, whose spread is not known.
        high: Upper end.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def to_json(self, digits: int = 5) -> dict[str, float]:
        """Rounded JSON values."""
        return {key: round(value, digits) for key, value in asdict(self).items()}


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval.

    Raises:
        ValueError: There are no values.
    """
    numbers = list(values)
    if not numbers:
        raise ValueError("no values, so no mean")
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return Interval(mean, mean, mean, 1)
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (count - 1)
    quantile = _T[count - 2] if count - 1 <= len(_T) else _NORMAL
    half = quantile * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Interval of the differences of what has the same seed; None if no seed is in both."""
    seeds = sorted(ours.keys() & theirs.keys())
    return interval(ours[seed] - theirs[seed] for seed in seeds) if seeds else None


def front(
    points: Iterable[Item], cost: Callable[[Item], float], gain: Callable[[Item], float]
) -> list[Item]:
    """Those points that no other beats at equal or lower cost, by rising cost."""
    best: list[Item] = []
    for point in sorted(points, key=lambda item: (cost(item), -gain(item))):
        if not best or gain(point) > gain(best[-1]):
            best.append(point)
    return best


def by(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Items in groups, in the order in which the groups first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's rho; None where one of the two does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    a, b = _ranks(xs), _ranks(ys)
    middle = (len(a) - 1) / 2
    top = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    below = (
        math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b)
    ) ** 0.5
    return top / below


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    groups = by(sorted(range(len(values)), key=values.__getitem__), values.__getitem__)
    ranks, first = [0.0] * len(values), 0
    for group in groups.values():
        for index in group:
            ranks[index] = first + (len(group) - 1) / 2
        first += len(group)
    return ranks

"""From entries to figures: means with intervals, differences over seeds, fronts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from scipy.special import stdtrit
from scipy.stats import spearmanr

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval by Student's t.

    Attributes:
        mean: Of the values.
        low: Lower end; minus infinity for one value, whose spread is not known.
        high: Upper end; infinity for one value.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def to_json(self, digits: int = 5) -> dict[str, float | None]:
        """Rounded JSON values; None for an end that is not known."""
        return {
            key: round(value, digits) if math.isfinite(value) else None
            for key, value in asdict(self).items()
        }


def seed_rows(values: Mapping[int, float]) -> dict[str, float]:
    """Values by seed as JSON, so that others can work out means and intervals again."""
    return {str(seed): round(value, 5) for seed, value in sorted(values.items())}


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
        return Interval(mean, -math.inf, math.inf, 1)
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (count - 1)
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
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
    return float(spearmanr(xs, ys).statistic)

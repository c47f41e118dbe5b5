"""Sizes of axes, and which axes a reshape turns into which.

The batch size of a graph is mostly open. So that nothing holds by chance for one sample only, a
size is kept for two batch sizes at once: as a pair of numbers, which differ if it depends on the
batch. Sizes of which nothing is known are None.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

Size: TypeAlias = tuple[int, int] | None
Sizes: TypeAlias = tuple[Size, ...]
Group: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

BATCHES = (1, 2)
"""The batch sizes that sizes are known for."""

ONE = (1, 1)


def fixed(size: Size) -> int | None:
    """A size that does not depend on the batch; None for others."""
    return size[0] if size is not None and size[0] == size[1] else None


def paired(first: Sequence[int | None], second: Sequence[int | None]) -> Sizes | None:
    """The sizes of a value from its shapes for both batch sizes; None if these do not fit."""
    if len(first) != len(second):
        return None
    pairs = zip(first, second, strict=True)
    return tuple(None if a is None or b is None else (a, b) for a, b in pairs)


def aligned(inner: Sizes, outer: Sizes) -> list[Group]:
    """Groups of neighbouring axes of which a reshape makes each other, first to last.

    Args:
        inner: Sizes before the reshape.
        outer: Sizes after it.

    Returns:
        Axes before and axes after, for each group; together they are all axes in order. At most
        one group has axes whose sizes are not known to be equal in product.
    """
    front = _matched(inner, outer)
    start = (sum(len(a) for a, _ in front), sum(len(b) for _, b in front))
    rest, target = inner[start[0] :], outer[start[1] :]
    back = _matched(rest[::-1], target[::-1])
    ends = (len(inner), len(outer))
    groups: list[Group] = []
    for before, after in back:
        last = (
            tuple(sorted(ends[0] - 1 - axis for axis in before)),
            tuple(sorted(ends[1] - 1 - axis for axis in after)),
        )
        groups.insert(0, last)
    used = (sum(len(a) for a, _ in back), sum(len(b) for _, b in back))
    middle = (
        tuple(range(start[0], ends[0] - used[0])),
        tuple(range(start[1], ends[1] - used[1])),
    )
    return [*front, *([middle] if any(middle) else []), *groups]


def _matched(inner: Sizes, outer: Sizes) -> list[Group]:
    """Groups of equal products from the first axis on, as far as sizes are known."""
    groups: list[Group] = []
    i = j = 0
    while i < len(inner) and j < len(outer):
        a, b = i + 1, j + 1
        while (order := _compared(inner[i:a], outer[j:b])) is not None and order != 0:
            if order < 0:
                a += 1
            else:
                b += 1
            if a > len(inner) or b > len(outer):
                return groups
        if order is None:
            return groups
        groups.append((tuple(range(i, a)), tuple(range(j, b))))
        i, j = a, b
    return groups


def _compared(inner: Sizes, outer: Sizes) -> int | None:
    """-1, 0 or 1 as one product is less than, equal to or more than the other; None if unclear."""
    if any(size is None or 0 in size for size in (*inner, *outer)):
        return None
    products = [
        tuple(math.prod(size[k] for size in sizes if size is not None) for k in range(2))
        for sizes in (inner, outer)
    ]
    (a, b), (c, d) = products
    if (a, b) == (c, d):
        return 0
    if a <= c and b <= d:
        return -1
    return 1 if a >= c and b >= d else None

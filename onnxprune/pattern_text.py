"""Patterns as recipes and metadata write them: `unstructured`, `N:M` or `block:RxC`."""

import re

PATTERN_TEXT = r"^(unstructured|[1-9][0-9]*:[1-9][0-9]*|block:[1-9][0-9]*x[1-9][0-9]*)$"
PATTERN_FORMS = "`unstructured`, `N:M` or `block:RxC`"
MAX_SIDE = 64
"""Largest side of a block."""

_NM = re.compile(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})")
_BLOCK = re.compile(r"block:([1-9][0-9]?)x([1-9][0-9]?)")


def nm_of(text: str) -> tuple[int, int] | None:
    """N and M of an `N:M` with 1 <= N < M; None for any other text."""
    match = _NM.fullmatch(text)
    if match is None:
        return None
    n, m = int(match[1]), int(match[2])
    return (n, m) if n < m else None


def block_of(text: str) -> tuple[int, int] | None:
    """R and C of a `block:RxC` with sides in [1, 64] that is not 1x1; None for any other text."""
    match = _BLOCK.fullmatch(text)
    if match is None:
        return None
    rows, columns = int(match[1]), int(match[2])
    return (rows, columns) if rows * columns > 1 and max(rows, columns) <= MAX_SIDE else None


def pattern_sparsity(pattern: str) -> float:
    """Sparsity that a pattern alone means: 1 - N/M, or 0 for blocks and `unstructured`."""
    nm = nm_of(pattern)
    return 0.0 if nm is None else 1 - nm[0] / nm[1]

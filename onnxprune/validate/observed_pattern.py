"""The pattern that a tensor's zeros have in fact."""

import math
from dataclasses import replace

import numpy as np

from onnxprune.export.pattern_check import BlockCounts, count_blocks, nm_holds, pattern_holds
from onnxprune.tensors import GraphTensor

_PATTERNS = ((1, 4), (2, 4), (4, 8))
"""N:M patterns that are looked for, the sparsest first."""

_SIDES = (64, 32, 16, 8, 4, 2)
_BLOCKS = sorted(
    [shape for side in _SIDES for shape in ((side, side), (side, 1), (1, side))],
    key=lambda shape: -shape[0] * shape[1],
)
"""Blocks that are looked for, the largest first; their sides are powers of two."""

_FULL = 0.9
_CHANCE = 0.05


def observed_pattern(
    tensor: GraphTensor, values: np.ndarray, nonzeros: int, claimed: str | None = None
) -> str:
    """The pattern that a tensor's zeros have in fact.

    - `dense`: no zeros.
    - `channel`: the zeros are whole output channels and nothing else (prunable tensors).
    - the pattern that the file claims, if it holds.
    - `block:RxC`: the zeros lie in whole blocks, see `pattern_holds`, and not just as well in whole
      outputs or inputs; the largest of squares, rows and columns with sides of 2 to 64, powers of
      two.
    - `N:M`: every group of M values along the reduction axis has at most N non-zeros, for one of
      1:4, 2:4 and 4:8.
    - `unstructured`: any other zeros.

    A pattern that is not claimed must also be more than chance: a tensor of a few per cent density
    keeps to 4:8 wherever its zeros lie, and a single zero to any block. So zeros placed at random
    would keep to it with a probability below 5 %, or the groups of N:M are full (90 % of the
    non-zeros that it allows).

    Args:
        tensor: The tensor.
        values: Its values.
        nonzeros: How many of them are not zero.
        claimed: What the file claims; None for nothing.
    """
    if nonzeros == tensor.size:
        return "dense"
    if not tensor.prunable:
        return "unstructured"
    if _only_whole_channels(tensor, values, nonzeros):
        return "channel"
    if claimed is not None and claimed != "unstructured" and pattern_holds(tensor, claimed):
        return claimed
    nonzero = values != 0
    return _observed_block(tensor, nonzero) or _observed_nm(tensor, nonzero, nonzeros)


def _observed_nm(tensor: GraphTensor, nonzero: np.ndarray, nonzeros: int) -> str:
    for n, m in _PATTERNS:
        few = nonzeros * m <= tensor.size * n
        if few and nm_holds(tensor, nonzero, n, m) and _is_no_chance(tensor, n, m, nonzeros):
            return f"{n}:{m}"
    return "unstructured"


def _is_no_chance(tensor: GraphTensor, n: int, m: int, nonzeros: int) -> bool:
    if nonzeros * m >= _FULL * tensor.size * n:
        return True
    density = nonzeros / tensor.size
    kept = _binomial_cdf(n, m, density)
    return kept ** (tensor.size // m) < _CHANCE


def _binomial_cdf(n: int, m: int, density: float) -> float:
    """Probability of at most `n` non-zeros among `m` values."""
    return sum(math.comb(m, k) * density**k * (1 - density) ** (m - k) for k in range(n + 1))


def _observed_block(tensor: GraphTensor, nonzero: np.ndarray) -> str | None:
    """The largest block that the zeros keep to; None for none.

    A block with an even side consists of pairs along it, in which its zeros lie, too. So most
    blocks are ruled out by a look at pairs.
    """
    tall, wide = (count_blocks(tensor, nonzero, *pair) for pair in ((2, 1), (1, 2)))
    for rows, columns in _BLOCKS:
        pairs = [pair for side, pair in ((rows, tall), (columns, wide)) if side > 1]
        if any(pair is None or not _may_hold(pair, rows * columns) for pair in pairs):
            continue
        counts = count_blocks(tensor, nonzero, rows, columns)
        if counts is not None and counts.hold and _blocks_are_no_chance(counts):
            lines = _outside_whole_lines(tensor, nonzero)
            return f"block:{rows}x{columns}" if counts.outside < lines else None
    return None


def _outside_whole_lines(tensor: GraphTensor, nonzero: np.ndarray) -> int:
    """Zeros outside of outputs, or of inputs, that are zero as a whole; the smaller number."""
    assert tensor.output_axis is not None
    assert tensor.reduction_axis is not None
    outputs, inputs = (tensor.group_shape[a] for a in (tensor.output_axis, tensor.reduction_axis))
    lines = (count_blocks(tensor, nonzero, *line) for line in ((outputs, 1), (1, inputs)))
    return min(counts.outside for counts in lines if counts is not None)


def _may_hold(pairs: BlockCounts, size: int) -> bool:
    """Whether zeros outside of pairs are few enough for blocks of a larger size."""
    return replace(pairs, size=size).hold


def _blocks_are_no_chance(counts: BlockCounts) -> bool:
    """Whether zeros at random would have as many outside of whole blocks with less than 5 %.

    The probability is the share of the ways to place the zeros: first the kept blocks, then the
    zeros in them.
    """
    size = counts.blocks * counts.size
    ways = _log_comb(counts.blocks, counts.kept)
    ways += _log_comb(counts.kept * counts.size, counts.outside)
    return ways - _log_comb(size, counts.zeros) < math.log(_CHANCE)


def _log_comb(n: int, k: int) -> float:
    """Logarithm of the number of ways to choose `k` of `n`."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _only_whole_channels(tensor: GraphTensor, values: np.ndarray, nonzeros: int) -> bool:
    axis = tensor.output_axis
    if axis is None or tensor.role != "weight":
        return False
    others = tuple(index for index in range(values.ndim) if index != axis)
    alive = int(np.any(values, axis=others).sum())
    return nonzeros == alive * (tensor.size // tensor.shape[axis])

"""Whether the zeros of a stored tensor keep to a pattern."""

from dataclasses import dataclass

import numpy as np

from onnxprune.pattern_text import block_of, nm_of
from onnxprune.tensors import GraphTensor

ZERO_BY_CHANCE = 0.01
"""Share of a tensor's zeros that may lie in blocks that were kept."""


def pattern_holds(tensor: GraphTensor, pattern: str) -> bool:
    """Whether a stored tensor keeps to a pattern.

    - `unstructured`: always.
    - `N:M`: at most N of M values in each group along the reduction axis are not zero.
    - `block:RxC`: all zeros lie in blocks that are zero as a whole, but for a remainder: fewer than
      R*C, as a number of zeros that is no multiple of the block leaves them, or at most 1 % of all
      zeros, as kept weights can be zero in half precision.

    A pattern other than these holds in no tensor.
    """
    if pattern == "unstructured":
        return True
    nm, block = nm_of(pattern), block_of(pattern)
    nonzero = tensor.array() != 0
    if nm is not None:
        return nm_holds(tensor, nonzero, *nm)
    counts = None if block is None else count_blocks(tensor, nonzero, *block)
    return counts is not None and counts.hold


def nm_holds(tensor: GraphTensor, nonzero: np.ndarray, n: int, m: int) -> bool:
    """Whether at most `n` of `m` values in each group along the reduction axis are not zero.

    Args:
        tensor: The tensor.
        nonzero: Where its values are not zero.
        n: At least 1.
        m: Above `n`.
    """
    if not _fits_nm(tensor, m):
        return False
    return bool((nm_groups(tensor, nonzero, m).sum(axis=1) <= n).all())


def nm_groups(tensor: GraphTensor, nonzero: np.ndarray, m: int) -> np.ndarray:
    """Groups `(groups, m)` along the reduction axis of a tensor that consists of whole ones."""
    axis = tensor.reduction_axis
    assert axis is not None
    return np.moveaxis(nonzero, axis, -1).reshape(-1, m)


def pattern_fits(tensor: GraphTensor, pattern: str) -> bool:
    """Whether a tensor consists of whole groups or blocks of a pattern."""
    nm, block = nm_of(pattern), block_of(pattern)
    if nm is not None:
        return _fits_nm(tensor, nm[1])
    return pattern == "unstructured" or (block is not None and _fits_block(tensor, *block))


def _fits_nm(tensor: GraphTensor, m: int) -> bool:
    axis = tensor.reduction_axis
    return axis is not None and tensor.group_shape[axis] % m == 0


def _fits_block(tensor: GraphTensor, rows: int, columns: int) -> bool:
    output, reduction, shape = tensor.output_axis, tensor.reduction_axis, tensor.group_shape
    if output is None or reduction is None:
        return False
    return shape[output] % rows == 0 and shape[reduction] % columns == 0


@dataclass(frozen=True)
class BlockCounts:
    """How the zeros of a tensor lie in blocks.

    Attributes:
        size: Number of weights in a block.
        blocks: Number of blocks.
        kept: Blocks with a value that is not zero.
        outside: Zeros in kept blocks.
        zeros: All zeros.
    """

    size: int
    blocks: int
    kept: int
    outside: int
    zeros: int

    @property
    def hold(self) -> bool:
        """Whether the zeros keep to the blocks; see `pattern_holds`."""
        return self.outside < self.size or self.outside <= ZERO_BY_CHANCE * self.zeros


def count_blocks(
    tensor: GraphTensor, nonzero: np.ndarray, rows: int, columns: int
) -> BlockCounts | None:
    """Count the blocks of a tensor; None if it does not consist of whole ones.

    Args:
        tensor: The tensor.
        nonzero: Where its values are not zero.
        rows: Outputs in a block.
        columns: Entries of the reduction axis in a block.
    """
    output, reduction = tensor.output_axis, tensor.reduction_axis
    if output is None or reduction is None or not _fits_block(tensor, rows, columns):
        return None
    matrix = np.moveaxis(nonzero, (output, reduction), (0, 1))
    outer, inner = matrix.shape[:2]
    split = matrix.reshape(outer // rows, rows, inner // columns, columns, -1)
    alive = split.any(axis=(1, 3))
    kept, size = int(np.count_nonzero(alive)), rows * columns
    nonzeros = int(np.count_nonzero(nonzero))
    return BlockCounts(size, alive.size, kept, kept * size - nonzeros, nonzero.size - nonzeros)

"""Sparse matrices as the operators store them."""

import numpy as np

BLOCK = 4
_LEAST_FILL = 0.9


def compressed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix in compressed rows.

    Args:
        weight: `(rows, columns)`, at most 65,536 columns.

    Returns:
        values (float32) and columns (uint16), one entry for each non-zero, and row starts (int32),
        `(rows + 1,)`.
    """
    kept = weight != 0
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return weight[kept].astype(np.float32), np.nonzero(kept)[1].astype(np.uint16), starts


def block_rows(weight: np.ndarray) -> int:
    """How many neighbouring rows of a matrix share their columns: 4, or 1.

    Rows share them if at least 90 % of the entries that they have in common are not zero.
    """
    rows, columns = weight.shape
    if rows % BLOCK:
        return 1
    kept = weight.reshape(rows // BLOCK, BLOCK, columns) != 0
    union = int(kept.any(axis=1).sum()) * BLOCK
    return BLOCK if union and int(kept.sum()) >= _LEAST_FILL * union else 1

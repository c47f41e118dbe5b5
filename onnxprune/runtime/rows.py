"""Weight matrices in compressed rows, as the sparse operators read them."""

from dataclasses import dataclass
from functools import reduce

import numpy as np

MOST_COLUMNS = 2**16
"""Columns are numbered in 16 bits."""

BLOCK_ROWS = 4
BLOCK_FILL = 0.9
"""Least share of a group's rows that is not zero, over the columns that any of them uses."""


@dataclass(frozen=True)
class SparseRows:
    """A matrix `(rows, columns)` in compressed sparse rows.

    Attributes:
        values: float32 `(nonzeros,)`, row after row.
        columns: uint16 `(nonzeros,)`, rising within a row.
        row_starts: int32 `(rows + 1,)`, where each row begins in `values`.
        width: Number of columns.
    """

    values: np.ndarray
    columns: np.ndarray
    row_starts: np.ndarray
    width: int

    @classmethod
    def of(cls, matrix: np.ndarray) -> "SparseRows":
        """Compress a float32 matrix `(rows, columns)` of at most `MOST_COLUMNS` columns."""
        nonzero = np.ascontiguousarray(matrix != 0)
        counts = np.count_nonzero(nonzero, axis=1)
        columns = np.flatnonzero(nonzero)  # far faster than np.nonzero
        columns -= np.repeat(np.arange(len(matrix)) * matrix.shape[1], counts)
        return cls(
            np.ascontiguousarray(matrix[np.repeat(np.arange(len(matrix)), counts), columns]),
            columns.astype(np.uint16),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            matrix.shape[1],
        )

    def dense(self) -> np.ndarray:
        """The whole matrix."""
        counts = np.diff(self.row_starts)
        matrix = np.zeros((len(counts), self.width), np.float32)
        matrix[np.repeat(np.arange(len(counts)), counts), self.columns] = self.values
        return matrix


def block_rows(matrix: np.ndarray) -> int:
    """4 where groups of four neighbouring rows share their columns, else 1."""
    if len(matrix) % BLOCK_ROWS:
        return 1
    nonzero = matrix != 0
    places = (nonzero[first::BLOCK_ROWS] for first in range(BLOCK_ROWS))
    union = np.count_nonzero(reduce(np.logical_or, places))
    fill = np.count_nonzero(nonzero) / (BLOCK_ROWS * union) if union else 0.0
    return BLOCK_ROWS if fill >= BLOCK_FILL else 1

"""Weight matrices in compressed rows, as the sparse operators read them."""

from dataclasses import dataclass

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
        rows, columns = np.nonzero(matrix)
        counts = np.bincount(rows, minlength=len(matrix))
        return cls(
            np.ascontiguousarray(matrix[rows, columns], np.float32),
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
    rows, columns = matrix.shape
    if rows % BLOCK_ROWS:
        return 1
    nonzero = matrix != 0
    union = nonzero.reshape(-1, BLOCK_ROWS, columns).any(axis=1).sum()
    fill = nonzero.sum() / (BLOCK_ROWS * union) if union else 0.0
    return BLOCK_ROWS if fill >= BLOCK_FILL else 1

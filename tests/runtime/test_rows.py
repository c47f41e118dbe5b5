"""Compressed rows, and rows in groups of four."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.runtime.rows import SparseRows, block_rows

from .helpers import sparse
from .reference import weight


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_compressed_rows_hold_the_matrix(rows: int, columns: int, density: float, seed: int):
    matrix = sparse(rows, columns, density=density, seed=seed)
    found = SparseRows.of(matrix)
    np.testing.assert_array_equal(
        weight(found.values, found.columns, found.row_starts, columns), matrix
    )
    np.testing.assert_array_equal(found.dense(), matrix)


def test_the_widest_matrix_that_16_bits_can_number():
    matrix = np.zeros((2, 2**16), np.float32)
    matrix[1, -1] = 3
    found = SparseRows.of(matrix)
    assert (found.columns.tolist(), found.row_starts.tolist()) == ([65535], [0, 0, 1])


def test_blocks_are_found_where_neighbouring_rows_share_their_columns():
    assert block_rows(sparse(16, 50, block=4)) == 4
    assert block_rows(sparse(16, 50)) == 1
    assert block_rows(sparse(14, 50, block=2)) == 1, "rows are no multiple of four"
    assert block_rows(np.zeros((16, 8), np.float32)) == 1


@pytest.mark.parametrize(("missing", "rows"), [(3, 4), (5, 1)])
def test_a_block_may_have_few_zeros_inside(missing: int, rows: int):
    matrix = np.ones((4, 10), np.float32)
    matrix.ravel()[:missing] = 0
    assert block_rows(matrix) == rows, "nine tenths of 40 are 36"

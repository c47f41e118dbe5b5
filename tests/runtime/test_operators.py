"""Each operator computes what is described, as exactly as float32 allows."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import drawn
from .helpers import (
    LARGEST_ERROR,
    LEAST_SCALE,
    compressed,
    error,
    normal,
    operator,
    runtime_outputs,
    sparse,
)
from .reference import run


def check(case: drawn.Case, kernels: bool) -> None:
    """What the kernels compute is what float64 does."""
    (expected,) = run(case.proto, case.feeds)
    if kernels:
        (found,) = runtime_outputs(case.proto, case.feeds, case.threads)
        assert error(expected, found, LEAST_SCALE) <= LARGEST_ERROR


@pytest.mark.parametrize("cases", drawn.EVERY)
@given(data=st.data())
def test_with_the_best_instructions(
    kernels: bool, cases: Callable[[], st.SearchStrategy[drawn.Case]], data: st.DataObject
):
    check(data.draw(cases()), kernels)


_IN_ANOTHER_PROCESS = """
from hypothesis import given, settings
from tests.runtime import drawn
from tests.runtime.test_operators import check
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
for cases in drawn.EVERY:
    few(given(cases())(lambda case: check(case, True)))()
"""


@pytest.mark.parametrize("instructions", ["avx2", "portable"])
def test_with_other_instructions(instructions: str, need_kernels: None):
    """Where the processor lacks them, its best ones are tested once more."""
    environment = {**os.environ, "ONNXPRUNE_KERNELS": instructions}
    subprocess.run([sys.executable, "-c", _IN_ANOTHER_PROCESS], env=environment, check=True)


@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("kind", ["SparseConv", "SparseMatMul"])
def test_sums_of_thousands(kind: str, density: float, need_kernels: None):
    """Rounding grows with the length of a row: these are as long as those of large models."""
    matrix = sparse(64, 4608, density=density)
    window = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "kernel_shape": [3, 3]}
    if kind == "SparseConv":
        x, attributes = normal(1, 512, 14, 14), {"in_channels": 512, **window}
    else:
        x, attributes = normal(128, 4608), {"in_features": 4608}
    proto = operator(kind, compressed(matrix), x.ndim, **attributes)
    (expected,), (found,) = run(proto, {"x": x}), runtime_outputs(proto, {"x": x})
    assert error(expected, found) <= LARGEST_ERROR

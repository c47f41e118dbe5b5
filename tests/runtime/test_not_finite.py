"""What NaN and infinity in an input reach."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import drawn
from .helpers import runtime_outputs
from .reference import run


def reached(case: drawn.Case, spoiled: np.ndarray, matrix: np.ndarray | None = None) -> np.ndarray:
    """The outputs whose windows hold a spoiled number; of a matrix, those with a weight for it."""
    ones = {"taps": np.ones_like(case.tensors["taps"])} if "taps" in case.tensors else {}
    if case.matrix is not None:
        ones["matrix"] = (
            np.ones_like(case.matrix) if matrix is None else matrix != 0
        ) * np.float32(1)
    linear = case.linear(spoiled.astype(np.float32), **ones)
    return run(linear.proto, linear.feeds)[0] > 0


def computed_together(case: drawn.Case) -> np.ndarray | None:
    """The weights with those that a group of four rows shares: zeros in it are not left out."""
    if case.matrix is None or case.attributes["block"] == 1:
        return case.matrix
    groups = case.matrix.reshape(-1, 4, case.matrix.shape[1])
    return np.repeat((groups != 0).any(axis=1), 4, axis=0)


def check(case: drawn.Case, number: float, seed: int) -> None:
    """Spoil some numbers of the input, and one of what is added."""
    rng = np.random.default_rng(seed)
    spoiled = np.zeros(case.x.shape, bool)
    spoiled.flat[rng.integers(0, case.x.size, int(rng.integers(1, 4)))] = True
    feeds = {"x": np.where(spoiled, np.float32(number), case.x)}
    (clean,) = runtime_outputs(case.proto, case.feeds, case.threads)
    added = np.zeros(clean.shape, bool)
    if case.residual is not None:
        added.flat[rng.integers(0, added.size)] = True
        feeds["residual"] = np.where(added, np.float32(number), case.residual)
    (found,) = runtime_outputs(case.proto, feeds, case.threads)
    window = reached(case, spoiled) | added
    some = reached(case, spoiled, computed_together(case)) | added
    assert not (some & ~window).any()
    np.testing.assert_array_equal(found[~some], clean[~some])
    if np.isnan(number):
        weighted = reached(case, spoiled, case.matrix) | added
        assert np.isnan(found[weighted]).all(), "no activation hides it"


NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf])
SEEDS = st.integers(0, 99)


@pytest.mark.parametrize("cases", drawn.EVERY)
@pytest.mark.usefixtures("need_kernels")
@settings(max_examples=60)
@given(data=st.data(), number=NUMBERS, seed=SEEDS)
def test_with_the_best_instructions(
    cases: Callable[[], st.SearchStrategy[drawn.Case]],
    data: st.DataObject,
    number: float,
    seed: int,
):
    """No other pixel, no other sample, and no output without a weight for it."""
    check(data.draw(cases()), number, seed)


_IN_ANOTHER_PROCESS = """
from hypothesis import given, settings
from tests.runtime import drawn
from tests.runtime.test_not_finite import NUMBERS, SEEDS, check
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
for cases in drawn.EVERY:
    few(given(cases(), NUMBERS, SEEDS)(check))()
"""


@pytest.mark.parametrize("instructions", ["avx2", "portable"])
def test_with_other_instructions(instructions: str, need_kernels: None):
    """Where the processor lacks them, its best ones are tested once more."""
    environment = {**os.environ, "ONNXPRUNE_KERNELS": instructions}
    subprocess.run([sys.executable, "-c", _IN_ANOTHER_PROCESS], env=environment, check=True)

"""Bounds of shares and of paired differences: coverage, known values, and limits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.validate.paired import (
    drop_upper_bound,
    mcnemar_p_value,
    paired_drop,
    share_lower_bound,
)

Z_95 = 1.6448536269514722


def test_what_is_lost_and_gained() -> None:
    first = np.array([True, True, True, False, False])
    second = np.array([True, False, False, True, False])
    result = paired_drop(first, second, 0.95)
    assert (result.samples, result.lost, result.gained) == (5, 2, 1)
    assert result.drop == pytest.approx(0.2)
    assert result.upper == drop_upper_bound(2, 1, 5, 0.95)
    assert result.p_value == 1.0


@pytest.mark.parametrize(
    ("lost", "gained", "samples"), [(12, 2, 50), (3, 3, 40), (0, 4, 30), (7, 0, 300)]
)
def test_the_bound_is_where_the_score_test_turns(lost: int, gained: int, samples: int) -> None:
    """With the restricted likelihood maximised on a grid, not by Tango's formula."""
    bound = drop_upper_bound(lost, gained, samples, 0.95)
    shares = np.linspace(1e-9, (1 - max(bound, 0)) / 2, 400_001)
    shares = shares[(shares + bound > 0) & (2 * shares + bound < 1)]
    same = samples - lost - gained
    likelihood = (
        gained * np.log(shares)
        + lost * np.log(shares + bound)
        + same * np.log(1 - 2 * shares - bound)
    )
    q = shares[likelihood.argmax()]
    deviation = math.sqrt(samples * (2 * q + bound * (1 - bound)))
    assert (samples * bound - (lost - gained)) / deviation == pytest.approx(Z_95, abs=2e-3)


def test_where_no_sample_differs_the_bound_follows_the_number_of_samples() -> None:
    for samples in (20, 64, 1000):
        expected = Z_95**2 / (samples + Z_95**2)
        assert drop_upper_bound(0, 0, samples, 0.95) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("lost", "gained", "samples"), [(0.05, 0.02, 200), (0.02, 0.0, 300), (0.1, 0.1, 100)]
)
def test_the_bound_holds_as_often_as_it_says(lost: float, gained: float, samples: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(samples, [lost, gained, 1 - lost - gained], size=1500)
    held = [drop_upper_bound(int(a), int(b), samples, 0.95) >= lost - gained for a, b, _ in draws]
    assert 0.93 <= np.mean(held) <= 0.975


@given(st.integers(1, 200), st.data())
def test_bounds_lie_on_their_side(samples: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, samples))
    gained = data.draw(st.integers(0, samples - lost))
    narrow, wide = (drop_upper_bound(lost, gained, samples, level) for level in (0.6, 0.99))
    assert (lost - gained) / samples - 1e-12 <= narrow <= wide <= 1
    assert 0 <= share_lower_bound(lost, samples, 0.99) <= lost / samples + 1e-12


def test_the_lower_bound_of_a_share() -> None:
    bound = share_lower_bound(50, 100, 0.95)
    assert (0.5 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(Z_95)
    assert share_lower_bound(64, 64, 0.95) == pytest.approx(64 / (64 + Z_95**2))
    assert share_lower_bound(0, 10, 0.95) == 0


def test_the_exact_test_of_mcnemar() -> None:
    assert mcnemar_p_value(0, 0) == 1
    assert mcnemar_p_value(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar_p_value(2, 12) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert mcnemar_p_value(4000, 3000) < 1e-30

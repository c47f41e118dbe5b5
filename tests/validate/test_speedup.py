import numpy as np
import pytest

from onnxprune.validate import Speedup
from onnxprune.validate.speedup import estimate, half_width, speedup, student_t


def simulated(rng, ratio, openings, *, luck=0.03, noise=0.05, rounds=20):
    """Times of two models: a load that both share, luck of each session, and noise of each call."""
    made = []
    for _ in range(openings):
        shared = 1 + rng.gamma(2.0, 0.1, (rounds, 1))
        lucky = rng.lognormal(0, luck, 2) * [ratio, 1]
        times = shared * lucky * rng.lognormal(0, noise, (rounds, 2))
        made.append(times[:, :, None])
    return made


@pytest.mark.parametrize("openings", [6, 12, 24])
@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_the_interval_covers_the_truth(ratio, openings):
    covered = 0
    for seed in range(150):
        result = speedup(simulated(np.random.default_rng(seed), ratio, openings), 1, seed)
        assert result.low <= result.ratio <= result.high
        covered += result.low <= ratio <= result.high
    assert 0.92 <= covered / 150 <= 1.0


def test_the_interval_covers_the_truth_where_sessions_come_in_two_kinds():
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        made = [
            times * np.array([1.0, 1.08 if rng.random() < 0.5 else 1.0])[None, :, None]
            for times in simulated(rng, 1.04, 12, luck=0.0, noise=0.01)
        ]
        result = speedup(made, 1, seed)
        covered += result.low <= 1.04 / np.sqrt(1.08) <= result.high
    assert covered / 150 >= 0.92


def test_openings_count_and_not_rounds():
    """Many rounds within an opening must not narrow what differs between openings."""
    few = simulated(np.random.default_rng(0), 1.0, 10, rounds=10)
    many = simulated(np.random.default_rng(0), 1.0, 10, rounds=1000)
    assert half_width(many, 0) > 0.5 * half_width(few, 0)
    assert half_width(many, 0) > 0.015


def test_stopping_early_keeps_the_coverage():
    """Looking again and again until the interval is narrow makes it too narrow, but not by much."""
    covered = 0
    for seed in range(60):
        made = simulated(np.random.default_rng(seed), 1.0, 30)
        count = next((n for n in range(10, 30, 2) if half_width(made[:n], seed) <= 0.023), 30)
        result = speedup(made[:count], 1, seed)
        covered += result.low <= 1.0 <= result.high
    assert covered / 60 >= 0.88


def test_odd_openings_do_not_carry_the_estimate_off():
    made = simulated(np.random.default_rng(0), 1.0, 20, luck=0.002, noise=0.01)
    for opening in made[:3]:
        opening[:, 1] *= 3
    assert speedup(made, 1, 0).ratio == pytest.approx(1, abs=0.01)


def test_the_models_are_told_apart():
    made = [np.array([[[10.0], [5.0], [20.0]]] * 4)] * 6
    assert speedup(made, 1, 0) == Speedup(pytest.approx(2), pytest.approx(2), pytest.approx(2))
    assert speedup(made, 2, 0).ratio == pytest.approx(0.5)
    assert half_width(made, 0) == pytest.approx(0)


def test_the_widest_interval_counts():
    made = simulated(np.random.default_rng(0), 1.0, 10)
    calm = [np.concatenate([times[:, :1], times[:, :1], times[:, 1:]], axis=1) for times in made]
    assert half_width([times[:, :2] for times in calm], 0) == 0
    assert half_width(calm, 0) == pytest.approx(half_width(made, 0))


def test_the_estimate_is_that_of_hodges_and_lehmann():
    values = np.array([1.0, 2.0, 4.0, 10.0])
    pairs = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    centre, low, high = estimate(values, 0)
    assert centre == np.median(pairs)
    assert (low, high) == (1.0, 10.0)  # four values allow no narrower one at 95 %


def test_the_bootstrap_is_seeded():
    values = np.random.default_rng(0).normal(size=15)
    assert estimate(values, 1) == estimate(values, 1) != estimate(values, 2)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(4, 2.7764), (5, 2.5706), (9, 2.2622), (29, 2.0452), (1000, 1.9623)]
)
def test_student_t(freedom, quantile):
    assert student_t(0.975, freedom) == pytest.approx(quantile, rel=0.005)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "conclusive"),
    [
        (0.98, 1.02, "same", True),
        (1.01, 1.02, "same", True),
        (1.01, 1.2, "faster", True),
        (0.8, 0.99, "slower", True),
        (0.99, 1.04, "same", True),
        (0.9, 1.1, "unclear", False),
    ],
)
def test_what_an_interval_means(low, high, verdict, conclusive):
    result = Speedup((low + high) / 2, low, high)
    assert (result.verdict, result.conclusive) == (verdict, conclusive)

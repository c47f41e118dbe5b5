"""The schedule that follows from a probe."""

from onnxprune.cascade import recommend, settle_steps

CURVE = [(10, 5.0), (20, 80.0), (30, 95.0), (40, 100.0)]


def test_shedding_settles_at_nine_tenths() -> None:
    assert settle_steps(CURVE) == 30
    assert settle_steps([(10, 5.0), (20, -3.0)]) is None
    assert settle_steps([]) is None


def test_events_lie_so_far_apart_that_shedding_settles_between_them() -> None:
    advice = recommend("present", CURVE, pruning_steps=150, default_events=20)
    assert (advice.method, advice.events) == ("cascade-gmp", 5)
    assert recommend("weak", CURVE, 40, 20).events == 2


def test_without_a_cascade_nothing_changes() -> None:
    for verdict in ("absent", "inconclusive"):
        advice = recommend(verdict, CURVE, 150, 20)  # type: ignore[arg-type]
        assert (advice.method, advice.events) == ("gmp", 20)

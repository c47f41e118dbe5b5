"""The schedule that follows from a probe."""

import pytest

from onnxprune.cascade import recommend, settle_steps

CURVE = [(10, 5.0), (20, 80.0), (30, 95.0), (40, 100.0)]


def test_shedding_settles_at_nine_tenths() -> None:
    assert settle_steps(CURVE) == 30
    assert settle_steps([(10, 5.0), (20, -3.0)]) is None
    assert settle_steps([]) is None


def test_events_lie_so_far_apart_that_shedding_settles_between_them() -> None:
    advice = recommend("present", CURVE, 150, default_events=20, horizon_reached=1.0)
    assert (advice.method, advice.events) == ("cascade-gmp", 5)
    assert "settles 30 steps after an event, so 5 events fit into the 150 steps" in advice.reason


def test_there_are_two_events_even_where_shedding_does_not_settle_between_them() -> None:
    advice = recommend("weak", CURVE, 40, 20, 1.0)
    assert advice.events == 2
    assert "2 events are the fewest, and 40 steps leave no such gap" in advice.reason


def test_without_a_cascade_nothing_changes() -> None:
    for verdict in ("absent", "inconclusive"):
        advice = recommend(verdict, CURVE, 150, 20, 1.0)  # type: ignore[arg-type]
        assert (advice.method, advice.events) == ("gmp", 20)


@pytest.mark.parametrize(("reached", "said"), [(0.04, True), (1.0, False)])
def test_absent_in_a_run_that_is_too_short_says_so(reached: float, said: bool) -> None:
    reason = recommend("absent", CURVE, 150, 20, reached).reason
    assert ("within 4% of the decay horizon; only a longer run" in reason) == said

"""Schedules as pure functions of progress."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.sparsity import Schedule


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    begin = draw(st.floats(0, 0.99))
    end = draw(st.floats(begin, 1, exclude_min=True))
    kind = draw(st.sampled_from(["cubic", "linear", "one-shot"]))
    return Schedule(kind, begin, end, draw(st.integers(1, 60)))


@given(schedules(), st.floats(0, 1), st.floats(0, 1))
def test_fraction_never_falls_and_stays_in_the_unit_interval(
    schedule: Schedule, one: float, other: float
) -> None:
    low, high = sorted([one, other])
    assert 0 <= schedule.fraction(low) <= schedule.fraction(high) <= 1


@given(schedules())
def test_nothing_is_due_before_begin_and_all_of_it_from_end(schedule: Schedule) -> None:
    assert schedule.fraction(schedule.end) == 1
    assert schedule.fraction(1.0) == 1
    if schedule.begin > 0:
        assert schedule.fraction(schedule.begin / 2) == 0


def test_cubic_is_equation_1_of_zhu_and_gupta() -> None:
    schedule = Schedule("cubic", 0.2, 0.6, 4)
    assert schedule.fraction(0.3) == pytest.approx(1 - (1 - 0.25) ** 3)
    assert schedule.fraction(0.4) == pytest.approx(0.875)


def test_linear_rises_evenly() -> None:
    assert Schedule("linear", 0.2, 0.6, 4).fraction(0.3) == pytest.approx(0.25)


def test_events_are_spread_evenly_over_begin_to_end() -> None:
    steps = Schedule("linear", 0.0, 0.5, 5).event_steps(100)
    assert list(steps) == [10, 20, 30, 40, 50]
    assert list(steps.values()) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_one_shot_has_a_single_event_at_begin() -> None:
    assert Schedule("one-shot", 0.25, 0.5, 20).event_steps(40) == {10: 1.0}


@pytest.mark.parametrize("kind", ["cubic", "linear", "one-shot"])
@pytest.mark.parametrize("total_steps", [0, 1])
def test_shortest_runs_still_meet_the_target(kind: str, total_steps: int) -> None:
    steps = Schedule(kind, 0.0, 0.5, 20).event_steps(total_steps)
    assert steps[max(steps)] == 1.0
    assert set(steps) <= set(range(total_steps + 1))


@given(schedules(), st.integers(0, 500))
def test_events_rise_within_the_run_and_end_exactly_at_the_target(
    schedule: Schedule, total_steps: int
) -> None:
    steps = schedule.event_steps(total_steps)
    assert list(steps) == sorted(steps)
    assert min(steps) >= 0
    assert max(steps) <= total_steps
    assert list(steps.values()) == sorted(steps.values())
    assert steps[max(steps)] == 1.0
    assert len(steps) <= schedule.events
    assert steps == schedule.event_steps(total_steps)


def test_the_last_event_is_exact_where_rounding_falls_short_of_end() -> None:
    begin, end = 0.0, 0.49
    assert begin + (end - begin) * 7 / 7 < end
    assert max(Schedule("linear", begin, end, 7).event_steps(100).values()) == 1.0

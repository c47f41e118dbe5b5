"""Courses of the learning rate, and where they begin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.cascade import Course, Rounds, courses_of
from onnxprune.finetune import Plan


def test_one_course_by_default() -> None:
    plan = Plan(10, 5, {})
    assert [plan.course(step).progress(step + 0.5) for step in (0, 9)] == [0.05, 0.95]
    assert not any(plan.restarts(step) for step in range(11))


def test_courses_begin_again() -> None:
    plan = Plan(10, 5, {}, courses=courses_of([0, 4], 10, 0), rewind_point=0)
    assert plan.courses == (Course(0, 4), Course(4, 6))
    assert [plan.course(s).progress(s) for s in (0, 2, 4, 7)] == [0.0, 0.5, 0.0, 0.5]
    assert [step for step in range(11) if plan.restarts(step)] == [4]
    assert [step for step in range(11) if plan.rewinds(step)] == [4]


def test_rewound_courses_leave_out_their_beginning() -> None:
    """The first course passes the rewinding point at step 2; later ones begin as from there."""
    courses = courses_of([6, 10], 14, 2)
    assert courses == (Course(0, 6), Course(6, 4, 2), Course(10, 4, 2))
    plan = Plan(14, 5, {}, courses=courses, rewind_point=2)
    assert plan.course(6).progress(6) == plan.course(0).progress(2) == pytest.approx(1 / 3)
    assert [step for step in range(15) if plan.rewinds(step)] == [6, 10]


@given(st.integers(1, 10), st.integers(0, 300), st.floats(0, 0.9))
def test_courses_cover_the_run(count: int, total: int, rewind: float) -> None:
    rounds = Rounds(count, rewind)
    starts, skipped = rounds.starts(total), rounds.rewind_steps(total)
    courses = courses_of(starts, total, skipped)
    assert len(starts) == count
    assert sum(course.steps for course in courses) == total
    for course in courses:
        assert 0 <= course.progress(course.start) < course.progress(course.start + course.steps)
        assert course.progress(course.start + course.steps) == pytest.approx(1.0)


def test_rounds_remove_the_same_share_of_what_is_left() -> None:
    events = Rounds(3).event_steps(30, 0.875)
    assert events == pytest.approx({0: 0.5 / 0.875, 10: 0.75 / 0.875, 20: 1.0})
    assert list(Rounds(3).event_steps(0, 0.875).values()) == [1.0]
    assert list(Rounds(2, 0.25).event_steps(40, 0.75)) == [20, 30]

"""Decisions of cascade-aware gradual magnitude pruning."""

from typing import Any

import pytest
import torch

from onnxprune.cascade import Controller, Foremost, Policy
from onnxprune.sparsity import Magnitude, select_masks

EVENTS = {10: 30, 20: 60, 30: 80, 40: 90}


def controller(**policy: Any) -> Controller:
    return Controller(Policy(**policy), EVENTS, 90)


def test_the_schedule_is_the_floor() -> None:
    control = controller()
    assert control.zeros(10, masked=0, first=0) == 30
    assert control.zeros(10, masked=0, first=20) == 30


def test_what_goes_first_beyond_the_floor_advances_the_schedule() -> None:
    control = controller()
    assert control.zeros(10, masked=0, first=50) == 50
    assert control.zeros(10, masked=0, first=500) == 90
    control.pruned(10, 90)
    assert control.settled_at == 10


def test_the_last_event_reaches_the_target_exactly() -> None:
    control = controller(wait=5)
    control.pruned(30, 80)
    for step, shed in ((31, 0), (35, 1), (39, 50)):
        control.observe(step, shed)
    assert control.zeros(40, masked=80, first=0) == 90


def test_magnitude_pruning_waits_while_the_shed_rate_rises_but_not_for_ever() -> None:
    control = controller(wait=1)
    control.pruned(10, 30)
    for step, shed in ((11, 0), (15, 1), (19, 50)):
        control.observe(step, shed)
    assert control.zeros(20, masked=30, first=4) == 34
    control.pruned(20, 34)
    for step, shed in ((21, 0), (25, 1), (29, 50)):
        control.observe(step, shed)
    assert control.zeros(30, masked=34, first=0) == 80


@pytest.mark.parametrize("points", [[(11, 0), (15, 30), (19, 40)], [(11, 0), (19, 40)], []])
def test_a_falling_shed_rate_does_not_delay(points: list[tuple[int, int]]) -> None:
    control = controller(wait=1)
    control.pruned(10, 30)
    for step, shed in points:
        control.observe(step, shed)
    assert control.zeros(20, masked=30, first=0) == 60


def test_nothing_waits_before_something_was_pruned() -> None:
    """What weight decay sheds while the learning rate warms up rises, too."""
    control = controller(wait=1)
    control.began(0)
    for step, shed in ((5, 1), (9, 50)):
        control.observe(step, shed)
    assert control.zeros(10, masked=0, first=0) == 30


def test_a_rise_of_a_few_weights_does_not_put_off_many() -> None:
    """Six more are beyond chance, and less than a hundredth of a thousand."""
    control = Controller(Policy(wait=1), {0: 10, 10: 1010, 20: 2000}, 2000)
    control.pruned(0, 10)
    for step, shed in ((1, 0), (5, 0), (9, 6)):
        control.observe(step, shed)
    assert control.rises(599)
    assert not control.rises(600)
    assert control.zeros(10, masked=10, first=0) == 1010


@pytest.mark.parametrize(
    ("points", "rising"),
    [
        ([(15, 0), (20, 60)], True),  # a cascade that begins late
        ([(15, 40), (20, 86)], False),  # 6 more than before, where chance makes 19
        ([(15, 40), (20, 110)], True),
        ([(20, 60)], False),  # two points tell no trend
    ],
)
def test_rising_is_what_chance_does_not_explain(
    points: list[tuple[int, int]], rising: bool
) -> None:
    control = controller(wait=1)
    control.pruned(10, 30)
    control.began(10)
    for step, shed in points:
        control.observe(step, shed)
    assert control.rises(100) is rising


def test_the_learning_rate_is_held_until_the_target_and_then_takes_its_course() -> None:
    control = controller(hold_lr=True)
    assert [control.progress(step, 100, 0.1) for step in (5, 10, 50)] == [0.05, 0.1, 0.1]
    control.pruned(40, 90)
    assert control.progress(40, 100, 0.1) == pytest.approx(0.1)
    assert control.progress(70, 100, 0.1) == pytest.approx(0.55)
    assert control.progress(100, 100, 0.1) == pytest.approx(1.0)


def test_reaching_the_target_early_leaves_more_for_recovery() -> None:
    early, late = controller(hold_lr=True), controller(hold_lr=True)
    early.pruned(10, 90)
    late.pruned(40, 90)
    assert early.progress(50, 100, 0.1) > late.progress(50, 100, 0.1)


def test_pressure_ends_with_pruning_and_a_brake_halves_what_it_adds() -> None:
    control = controller(pressure=5.0)
    assert control.decay_factor() == 5.0
    control.brake()
    assert control.decay_factor() == 3.0
    control.pruned(40, 90)
    assert control.decay_factor() == 1.0


def test_state_comes_back() -> None:
    control, other = controller(pressure=5.0), controller(pressure=5.0)
    control.observe(3, 7)
    control.brake()
    control.pruned(10, 90)
    control.observe(11, 2)
    state = control.state()
    other.restore(state)
    assert other == control
    del state["has_pruned"]  # as in older checkpoints
    other.restore(state)
    assert other.has_pruned


def test_the_foremost_go_before_smaller_weights() -> None:
    weights = {"a": torch.tensor([5.0, 0.1, 0.2]), "b": torch.tensor([[3.0], [0.3]])}
    first = {"a": torch.tensor([True, False, False]), "b": torch.tensor([[True], [False]])}
    masks = select_masks(weights, 3, Foremost(Magnitude(), first))
    assert masks["a"].tolist() == [False, False, True]
    assert masks["b"].tolist() == [[False], [True]]

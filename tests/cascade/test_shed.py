"""Shed weights, against the definition and its pitfalls."""

import pytest
import torch

from onnxprune.cascade import ShedMonitor, kept_rms

KEEP = {"a": torch.tensor([True, True, True, True, False])}


def monitor(start: list[float], tau: float = 0.1) -> ShedMonitor:
    watch = ShedMonitor(tau)
    watch.begin(3, {"a": torch.tensor(start)}, KEEP)
    return watch


def test_the_rms_is_that_of_kept_weights() -> None:
    weights = {"a": torch.tensor([3.0, 4.0, 0.0, 0.0, 100.0])}
    assert kept_rms(weights, KEEP) == {"a": pytest.approx(2.5)}
    assert kept_rms(weights, {"a": torch.zeros(5, dtype=torch.bool)}) == {"a": 0.0}


def test_a_weight_is_shed_where_it_has_crossed_the_threshold_of_the_event() -> None:
    watch = monitor([1.0, 1.0, 1.0, 1.0, 0.0])
    count = watch.count(9, {"a": torch.tensor([0.1, 0.1001, -0.05, 5.0, 0.0])}, KEEP)
    assert (count.step, count.since, count.kept) == (9, 3, 4)
    assert count.shed == {"a": 2}
    assert count.total == 2


def test_weights_below_the_threshold_at_the_event_are_not_shed_again() -> None:
    watch = monitor([1.0, 1.0, 0.01, 1.0, 0.0])
    count = watch.count(4, {"a": torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])}, KEEP)
    assert count.shed == {"a": 1}
    assert count.kept == 3


def test_masked_weights_are_not_shed() -> None:
    watch = monitor([1.0, 1.0, 1.0, 1.0, 1.0])
    count = watch.count(4, {"a": torch.zeros(5)}, KEEP)
    assert count.shed == {"a": 4}


def test_a_tensor_that_shrinks_as_a_whole_sheds_nothing_relative_to_itself() -> None:
    """Before a normalisation the scale of a tensor means nothing."""
    watch = monitor([1.0, 1.0, 1.0, 1.0, 0.0])
    count = watch.count(4, {"a": torch.tensor([0.02, 0.02, 0.02, 0.02, 0.0])}, KEEP)
    assert count.shed == {"a": 4}
    assert count.shed_relative == {"a": 0}


def test_a_control_arm_is_counted_where_the_treated_arm_kept() -> None:
    """Magnitude pruning took the small weights: counting them in the control hides the effect."""
    dense = {"a": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2])}
    later = {"a": torch.tensor([1.0, 1.0, 1.0, 0.01, 0.0])}
    everywhere = {"a": torch.ones(5, dtype=torch.bool)}
    on_kept, on_all = ShedMonitor(0.1), ShedMonitor(0.1)
    on_kept.begin(0, dense, KEEP)
    on_all.begin(0, dense, everywhere)
    assert on_kept.count(1, later, KEEP).total == 1
    assert on_all.count(1, later, everywhere).total == 2

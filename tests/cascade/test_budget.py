"""What a run cost."""

import pytest

from onnxprune.cascade import training_budget


def test_density_counts_from_the_step_of_an_event() -> None:
    budget = training_budget(
        [(0, {"a": 50, "b": 100}), (6, {"a": 50, "b": 0})],
        {"a": 100, "b": 100},
        steps=10,
        batch_size=4,
        steps_per_epoch=5,
        flops={"a": 1000, "b": 10},
        total_flops=1100,
        planned={0: 30, 5: 60},
    )
    assert (budget.epochs, budget.samples) == (2.0, 40)
    assert budget.mean_density == pytest.approx((6 * 150 + 4 * 50) / 2000)
    assert budget.mean_density_planned == pytest.approx((5 * 170 + 5 * 140) / 2000)
    assert budget.training_flops_dense == 3 * 40 * 1100
    # Tensor a is at half density throughout, b is gone in the last 4 of 10 steps.
    assert budget.training_flops == 3 * 4 * (10 * 1100 - 10 * 500 - 4 * 10)


def test_without_events_everything_is_dense() -> None:
    budget = training_budget([], {"a": 10}, 7, 2, 7, {"a": 5}, 5, {})
    assert budget.training_flops == budget.training_flops_dense == 3 * 7 * 2 * 5
    assert budget.mean_density == 1.0


def test_an_event_after_the_last_step_costs_nothing() -> None:
    budget = training_budget([(7, {"a": 0})], {"a": 10}, 7, 2, 7, {"a": 5}, 5, {})
    assert budget.training_flops == budget.training_flops_dense


def test_unknown_operations_are_not_guessed() -> None:
    budget = training_budget([(0, {"a": 5})], {"a": 10}, 4, 1, 4, {}, 100, {7: 10})
    assert budget.training_flops is None
    assert budget.mean_density == 0.5
    assert budget.mean_density_planned == 1.0, "planned for a step that never came"

"""The decay horizon, against SGD itself."""

import math

import pytest
import torch

from onnxprune.cascade import decay_horizon, decay_reached


def test_an_unused_weight_falls_by_tau_at_the_horizon() -> None:
    lr, decay, momentum, tau = 0.1, 5e-3, 0.9, 0.01
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum, weight_decay=decay)
    step = 0
    while float(weight.detach()) > tau:
        weight.grad = torch.zeros(1)
        optimizer.step()
        step += 1
    horizon = decay_horizon(lambda _: lr, decay, momentum, tau, 10_000)
    assert horizon == pytest.approx(step, rel=0.05)  # momentum has to settle at first
    assert horizon == math.ceil(math.log(100) * 0.1 / (lr * decay))


def test_the_planned_schedule_counts() -> None:
    def rate(step: int) -> float:
        return 0.2 if step < 10 else 0.0

    assert decay_horizon(rate, 0.1, 0.0, 0.5, 100) is None
    assert decay_reached(rate, 0.1, 0.0, 0.5, 100) == pytest.approx(0.2 / math.log(2))
    assert decay_reached(rate, 0.0, 0.0, 0.5, 100) == 0.0

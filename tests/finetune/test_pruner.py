"""Pruning events, and the guards of method cascade-gmp: each test provokes a pitfall."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnxprune.cascade import Controller, Foremost, Policy, ShedMonitor
from onnxprune.cascade.controller import nothing
from onnxprune.finetune import Pruner
from onnxprune.sparsity import Magnitude, MaskSet, select_masks

SIZE = 10
EVENTS = {0: 4, 5: 8, 10: 12}


class Net:
    """Two tensors of ten weights from 1.0 to 1.9, and a pruner over them."""

    def __init__(self, floor: int = 0, **changes: Any) -> None:
        self.a = nn.Parameter(torch.arange(SIZE) / 10 + 1.0)
        self.b = nn.Parameter(torch.arange(SIZE) / 10 + 1.0)
        self.masks = MaskSet({"a": self.a, "b": self.b})
        self.floors = {"a": floor, "b": floor}
        self.said: list[str] = []
        self.controller = Controller(Policy(pressure=5.0), EVENTS, 12)
        options: dict[str, Any] = {"controller": self.controller, "harvest": True} | changes
        self.pruner = Pruner(
            self.masks,
            EVENTS,
            self.select,
            ShedMonitor(0.01),
            floors=self.floors,
            message=self.said.append,
            **options,
        )

    def select(
        self,
        zeros: int,
        first: Mapping[str, Tensor] | None = None,
        dead: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        weights = {name: p.detach() for name, p in self.masks.parameters.items()}
        score = Magnitude() if first is None else Foremost(Magnitude(), first)
        masks = self.masks.masks
        if dead is not None:
            masks = {name: mask & ~dead[name] for name, mask in masks.items()}
        return select_masks(weights, zeros, score, masks=masks, floors=self.floors)

    def event(self, step: int, loss_change: float = 0.0) -> int:
        """Run the event at a step; returns how many weights were harvested."""
        event = self.pruner.event(step, lambda removed: loss_change)
        assert event is not None
        assert event.masks is not None
        self.masks.update(event.masks)
        self.pruner.started(step)
        return event.harvested

    def shed(self, name: str, *positions: int) -> None:
        with torch.no_grad():
            for position in positions:
                self.masks.parameters[name][position] = 1e-4


def test_without_a_controller_the_schedule_decides() -> None:
    net = Net(controller=None, harvest=False)
    for step, zeros in EVENTS.items():
        net.event(step)
        assert net.masks.zeros == zeros
    assert net.pruner.event(11, lambda removed: 0.0) is None


def test_shed_weights_go_first_and_advance_the_schedule() -> None:
    net = Net()
    net.event(0)
    net.shed("a", 3, 4, 5, 6, 7, 8)
    assert net.event(5) == 6
    assert net.masks.zeros == 10
    assert not net.masks.masks["a"][3:9].any()


def test_a_harvest_that_costs_loss_is_left_out_and_brakes() -> None:
    """Tau is too large: the weights that it calls shed still matter."""
    net = Net()
    net.event(0)
    net.shed("a", 8, 9)
    assert net.event(5, loss_change=0.5) == 0
    assert net.controller.decay_factor() == 3.0
    assert "not harvested" in net.said[0]


def test_a_tensor_that_shrinks_as_a_whole_is_not_harvested() -> None:
    """Before a normalisation its scale means nothing, and all of its weights still count."""
    net = Net()
    net.event(0)
    with torch.no_grad():
        net.a.mul_(1e-4)
    assert net.event(5) == 0


def test_a_harvest_does_not_empty_a_tensor() -> None:
    """All but one weight of a tensor is shed: the minimum density stops layer collapse."""
    net = Net(floor=4)
    net.event(0)
    net.shed("a", 2, 3, 4, 5, 6, 7, 8)
    assert net.event(5) == 4
    assert net.masks.zeros == 8
    net.event(10)
    assert int(net.masks.masks["a"].sum()) == 4
    assert net.masks.zeros == 12


def test_a_harvest_never_goes_beyond_the_target() -> None:
    net = Net()
    net.event(0)
    net.shed("a", *range(2, SIZE - 1))
    net.shed("b", *range(2, SIZE - 1))
    net.event(5)
    assert net.masks.zeros == 12
    assert net.controller.settled_at == 5
    assert net.pruner.event(10, lambda removed: 0.0) is None


def test_closure_goes_before_all_others() -> None:
    def close(room: int) -> dict[str, Tensor]:
        dead = {name: torch.zeros(SIZE, dtype=torch.bool) for name in ("a", "b")}
        dead["b"][9] = True
        return dead

    net = Net(close=close)
    net.event(0)
    assert not net.masks.masks["b"][9]
    assert net.masks.zeros == 4


def test_of_dead_and_shed_weights_the_dead_leave_first() -> None:
    """Of 8 that may go 5 are dead, so 3 of the 6 shed ones follow, and counts say so."""
    dead = {"a": torch.zeros(SIZE, dtype=torch.bool), "b": torch.arange(SIZE) > 4}
    net = Net(close=lambda room: dead if net.masks.zeros else nothing(dead))
    net.event(0)
    net.shed("a", *range(4, SIZE))
    event = net.pruner.event(5, lambda removed: 0.0)
    assert event is not None
    assert not (event.masks["b"] & dead["b"]).any()
    assert (event.closed, event.harvested) == (5, 3)
    assert sum(int((~mask).sum()) for mask in event.masks.values()) == 12


@pytest.mark.parametrize(("ahead", "zeros"), [("all", 10), ("dead", 8), ("none", 8)])
def test_only_where_shed_weights_themselves_would_go_they_advance_the_schedule(
    ahead: str, zeros: int
) -> None:
    net = Net(ahead=ahead)
    net.event(0)
    net.shed("a", *range(3, 9))
    net.event(5)
    assert net.masks.zeros == zeros


@pytest.mark.parametrize(("harvested", "put_off"), [(0, 4), (1, 3)])
def test_an_event_that_waits_says_how_much(harvested: int, put_off: int) -> None:
    net = Net(harvest=bool(harvested))
    net.controller.policy = Policy(wait=1)
    net.event(0)
    net.shed("a", 5)
    for step, count in ((2, 0), (3, 1), (4, 30), (5, 60)):
        net.controller.observe(step, count)
    event = net.pruner.event(5, lambda removed: 0.0)
    assert event is not None
    assert (event.harvested, event.put_off, event.waited) == (harvested, put_off, 0)
    if not harvested:
        assert event.masks is None
    else:
        assert event.masks is not None
        assert sum(int((~mask).sum()) for mask in event.masks.values()) == 5
    again = net.pruner.event(10, lambda removed: 0.0)
    assert again is not None
    assert (again.put_off, again.waited) == (0, 1)


def test_state_comes_back() -> None:
    net, other = Net(), Net()
    for step in (0, 5):
        net.event(step)
    net.pruner.observe(7)
    other.masks.update(net.masks.masks)
    other.pruner.restore(net.pruner.facts())
    other.pruner.monitor.above = net.pruner.monitor.above
    for each in (net, other):
        each.shed("b", 9)
    assert net.pruner.observe(9) == other.pruner.observe(9)
    assert net.event(10) == other.event(10)
    assert net.masks.digest() == other.masks.digest()

"""The moment at which a pattern's zeros are chosen."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from onnxprune.sparsity import (
    NM,
    Axes,
    Block,
    Choice,
    Magnitude,
    MaskSet,
    Pattern,
    RandomScore,
    Score,
    choose_masks,
    select_masks,
)

Tensors = dict[str, torch.Tensor]
AXES = {"a": Axes(1, 0), "b": Axes(0, 1)}
PATTERNS = [NM(2, 4), Block(4, 1), Block(2, 2)]
EVENTS = [10, 33, 50, 56]
LAST = 56
"""Of 96 weights; beyond the 48 that 2:4 means, and for blocks of four a multiple in the end."""


def values(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(8, 8, generator=generator),
        "b": torch.randn(8, 4, generator=generator),
    }


def run(
    moment: Any,
    pattern: Pattern,
    seeds: list[int],
    score: Score | None = None,
    scope: str = "global",
) -> list[Choice]:
    """The choices of all events, where the weights are others at each."""
    choices: list[Choice] = []
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in values(0).items()}
    for zeros, seed in zip(EVENTS, seeds, strict=True):
        weights = {name: weight * masks[name] for name, weight in values(seed).items()}
        choices.append(
            choose_masks(
                partial(select_masks, weights, axes=AXES, scope=scope),
                zeros,
                score or Magnitude(),
                masks=masks,
                pattern=pattern,
                moment=moment,
                last_zeros=LAST,
                final=choices[-1].final if choices else None,
            )
        )
        masks = choices[-1].masks
        assert sum(int((~mask).sum()) for mask in masks.values()) == zeros
    return choices


def nested(choices: list[Choice]) -> list[bool]:
    """For each event but the first, whether what was masked stays masked."""
    return [
        not any(bool((later.masks[n] & ~earlier.masks[n]).any()) for n in AXES)
        for earlier, later in pairwise(choices)
    ]


def holds(pattern: Pattern, choice: Choice) -> bool:
    assert pattern is not None
    return all(pattern.holds(choice.masks[name], axes) for name, axes in AXES.items())


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_the_pattern_holds_in_the_end(moment: str, pattern: Pattern, scope: str) -> None:
    choices = run(moment, pattern, [1, 2, 3, 4], scope=scope)
    assert holds(pattern, choices[-1])
    assert nested(choices)[:2] == [True, True]
    assert nested(choices)[2] == (moment != "after")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_before_all_is_decided_by_the_values_at_the_first_event(pattern: Pattern) -> None:
    one, other = run("before", pattern, [1, 2, 3, 4]), run("before", pattern, [1, 6, 7, 8])
    expected = select_masks(values(1), LAST, Magnitude(), pattern=pattern, axes=AXES)
    for name in AXES:
        assert torch.equal(one[-1].masks[name], expected[name])
        assert torch.equal(other[-1].masks[name], expected[name])
    assert any(not torch.equal(one[1].masks[name], other[1].masks[name]) for name in AXES)
    during = run("during", pattern, [1, 6, 7, 8])[-1]
    assert any(not torch.equal(during.masks[name], expected[name]) for name in AXES)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_after_pruning_is_unstructured_and_the_last_event_chooses_afresh(pattern: Pattern) -> None:
    choices = run("after", pattern, [1, 2, 3, 4])
    plain = run("during", None, [1, 2, 3, 4])
    for choice, unstructured in zip(choices[:-1], plain[:-1], strict=True):
        assert all(torch.equal(choice.masks[n], unstructured.masks[n]) for n in AXES)
    weights = {n: weight * choices[-2].masks[n] for n, weight in values(4).items()}
    expected = select_masks(weights, LAST, Magnitude(), pattern=pattern, axes=AXES)
    assert all(torch.equal(choices[-1].masks[n], expected[n]) for n in AXES)


def test_after_a_masked_weight_scores_nothing_whatever_the_score() -> None:
    """Random scores do not look at values, yet what was masked has to go first in its group."""
    choices = run("after", NM(2, 4), [1, 2, 3, 4], RandomScore(0))
    earlier, last = choices[-2].masks["a"], choices[-1].masks["a"]
    groups = [mask.reshape(-1, 4) for mask in (earlier, last)]
    for before, after in zip(*groups, strict=True):
        if int(before.sum()) >= 2:
            assert not bool((after & ~before).any())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(PATTERNS))
def test_a_weight_that_comes_back_is_0_and_can_be_trained(seed: int, pattern: Pattern) -> None:
    parameters = {name: Parameter(weight) for name, weight in values(seed).items()}
    masks = MaskSet(parameters)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)

    def step() -> None:
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        masks.mask_gradients()
        optimizer.step()
        masks.mask_weights()

    def prune(zeros: int) -> None:
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        select = partial(select_masks, weights, axes=AXES)
        fixed: dict[str, Any] = {"pattern": pattern, "moment": "after", "last_zeros": LAST}
        choice = choose_masks(select, zeros, Magnitude(), masks=masks.masks, **fixed)
        masks.update(choice.masks, optimizer)

    step()
    prune(50)
    step()
    before = dict(masks.masks)
    prune(LAST)
    assert masks.zeros == LAST
    returned = {name: masks.masks[name] & ~before[name] for name in AXES}
    assert all(bool((parameters[name][returned[name]] == 0).all()) for name in AXES)
    step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.detach()[returned[name]], torch.full((int(returned[name].sum()),), -0.1)
        )
        assert bool((parameter[~masks.masks[name]] == 0).all())

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from training_pair import (
    NativeStep,
    Setting,
    TimedMasks,
    Watch,
    compare,
    make_pair,
    pruned_parameters,
    run_trainer,
)

from onnxprune.sparsity import MaskSet

SETTING = Setting("cpu", "fp32", batch=4, size=32, seconds=0.1, rounds=5)
STEPS = 3


def test_both_sides_of_the_comparison_train_alike() -> None:
    pair = make_pair("resnet18", SETTING)
    before = {name: p.detach().clone() for name, p in pair.native.named_parameters()}
    native = NativeStep(pair, SETTING)
    for _ in range(STEPS):
        native()
    masks = MaskSet(pruned_parameters(pair.imported))
    requests: list[int] = []
    run_trainer(
        *(pair.imported, pair.batch, masks, pair.chosen, SETTING),
        turn=lambda: requests.append(1),
        done=lambda: len(requests) == STEPS,
    )

    assert len(requests) == STEPS
    trained = dict(pair.native.named_parameters())
    ours = dict(pair.imported.named_parameters())
    assert {*pair.imported.tensor_names.values()} == trained.keys()
    for key, name in pair.imported.tensor_names.items():
        torch.testing.assert_close(ours[key], trained[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(trained[name], before[name])
    assert masks.sparsity == pytest.approx(0.8, abs=1e-6)


def test_a_comparison_counts_whole_rounds_and_holds_the_masks() -> None:
    result = compare("resnet18", replace(SETTING, sparsity=0.5))

    assert result["rounds"] == 5
    assert result["low"] <= result["ratio"] <= result["high"]
    assert result["ours_ms"] > 0
    assert result["native_ms"] > 0
    assert result["masked_weights"] == 11_678_912


def test_timed_masks_mask_and_count_their_time() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    masks = TimedMasks({"w": weight}, Watch("cpu"))
    masks.update({"w": torch.tensor([True, False, True, False])})
    weight.grad = torch.ones(4)
    with torch.no_grad():
        weight.fill_(2.0)

    masks.mask_gradients()
    masks.mask_weights()

    assert weight.grad.tolist() == [1, 0, 1, 0]
    assert weight.tolist() == [2, 0, 2, 0]
    assert masks.seconds > 0

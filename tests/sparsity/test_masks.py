"""Masks hold through optimizer steps."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from onnxprune.sparsity import Magnitude, MaskSet, select_masks
from onnxprune.sparsity.masks import _multiply

Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Maker] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_and_state_stay_zero_for_50_steps_after_several_events(kind: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    weights = {name: p for name, p in layers.named_parameters() if p.dim() == 2}
    masks = MaskSet(weights)
    optimizer = OPTIMIZERS[kind](list(layers.parameters()))
    events = {0: 40, 10: 100, 20: 180}
    for step in range(70):
        if step in events:
            chosen = select_masks(
                {n: p.detach() for n, p in weights.items()},
                events[step],
                Magnitude(),
                masks=masks.masks,
            )
            masks.update(chosen, optimizer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(layers(torch.randn(8, 12)), torch.arange(8) % 3).backward()
        masks.mask_gradients()
        optimizer.step()
        masks.mask_weights()
        for name, weight in weights.items():
            pruned = ~masks.masks[name]
            assert (weight[pruned] == 0).all()
            for value in optimizer.state[weight].values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    assert (value[pruned] == 0).all()
    assert masks.zeros == 180
    assert masks.sparsity == pytest.approx(180 / 240)
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == 180
    buffers = [
        value
        for weight in weights.values()
        for value in optimizer.state[weight].values()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    ]
    assert all(bool((value != 0).any()) for value in buffers)
    assert buffers


def test_fresh_masks_keep_everything() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    masks = MaskSet({"w": parameter})
    parameter.grad = torch.ones(2, 3)
    masks.mask_gradients()
    masks.mask_weights()
    assert (masks.total, masks.zeros, masks.sparsity) == (6, 0, 0.0)
    assert (parameter == 1).all()
    assert (parameter.grad == 1).all()


def test_no_parameters_mean_sparsity_zero() -> None:
    masks = MaskSet({})
    masks.mask_gradients()
    masks.mask_weights()
    assert masks.sparsity == 0.0


def test_parameters_without_gradient_are_left_out() -> None:
    masks = MaskSet({"w": nn.Parameter(torch.ones(2))})
    masks.update({"w": torch.tensor([True, False])})
    masks.mask_gradients()
    assert masks.parameters["w"].tolist() == [1.0, 0.0]


def test_multiply_works_across_element_types() -> None:
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
    tensors = [torch.full((3,), 2.0, dtype=dtype) for dtype in types]
    _multiply([(tensor, torch.tensor([1, 0, 1], dtype=tensor.dtype)) for tensor in tensors])
    assert [tensor.tolist() for tensor in tensors] == [[2.0, 0.0, 2.0]] * 4
    assert [tensor.dtype for tensor in tensors] == types
    _multiply([])

"""Cutting graphs into stages."""

import pytest
import torch
from torch import Tensor, fx, nn

from onnxprune.errors import UnsupportedModelError
from onnxprune.finetune.stages import split_into_stages


class Chain(nn.Module):
    """Six matrices in a row, the first used again at the end, and a size that travels along."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for index in range(6):
            self.register_parameter(f"w{index}", nn.Parameter(torch.randn(4, 4)))
        self.shift = nn.Parameter(torch.randn(4))
        self.register_buffer("constant", torch.ones(4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.size(0)
        first = x @ self.w0
        y = self.drop(torch.relu(first) @ self.w1) + self.constant
        y = torch.relu(y @ self.w2 @ self.w3) @ self.w4 @ self.w5
        return (y @ self.w0 + first + self.shift).reshape(rows, 2, 2), self.shift


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(Chain())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(7)
    y, z = module(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    (y.square().sum() + z.sum()).backward()
    found = {name.rpartition(".")[2]: p.grad for name, p in module.named_parameters()}
    return {"y": y.detach(), **{name: grad for name, grad in found.items() if grad is not None}}


@pytest.mark.parametrize("count", [1, 2, 3, 6, 50])
def test_stages_compute_the_same(count: int) -> None:
    whole, cut = traced(), traced()
    split_into_stages(cut, count)
    expected, found = gradients(whole), gradients(cut)
    assert found.keys() == expected.keys()
    assert len(expected) == 8
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("count", "stages"), [(1, 1), (3, 3), (7, 5)])
def test_stages_have_equal_shares_and_shared_parameters_stay(count: int, stages: int) -> None:
    module = traced()
    parameters = dict(module.named_parameters())
    parts = split_into_stages(module, count)
    assert len(parts) == stages
    names = [[name for name, _ in part.named_parameters()] for part in parts]
    kept = [name for name, _ in module.named_parameters(recurse=False)]
    if count == 1:
        assert (sorted(names[0]), kept) == (["w0", "w1", "w2", "w3", "w4", "w5"], ["shift"])
    else:
        assert kept == ["w0", "shift"]
        assert sorted(name for stage in names for name in stage) == ["w1", "w2", "w3", "w4", "w5"]
        assert max(len(stage) for stage in names) <= -(-6 // count) + 1
    for part in parts:
        assert all(p is parameters[name] for name, p in part.named_parameters())


def test_buffers_and_called_modules_keep_their_names() -> None:
    module = traced()
    split_into_stages(module, 3)
    assert [name for name, _ in module.named_buffers()] == ["constant"]
    assert module.get_submodule("drop") in set(module.modules())
    module.eval()
    assert not any(part.training for part in module.modules())


def test_names_that_are_taken_are_left_alone() -> None:
    root = nn.Module()
    root.register_parameter("stage_0", nn.Parameter(torch.ones(2)))
    graph = fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.get_attr("stage_0"),)))
    module = fx.GraphModule(root, graph)
    (stage,) = split_into_stages(module, 2)
    assert [name for name, _ in stage.named_parameters()] == ["stage_0"]
    assert module().tolist() == [-1, -1]


def test_modules_with_parameters_of_their_own_are_refused() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedModelError, match=r"0\.weight"):
        split_into_stages(module, 2)

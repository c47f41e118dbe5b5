"""BatchNorm over two processes against one process with the whole batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxprune.calibration import recalibrate
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.sync_batchnorm import synchronise_batchnorm
from onnxprune.importer.ops.norm import BatchNormalization

pytestmark = pytest.mark.xdist_group("batchnorm")

PARTS = (slice(0, 3), slice(3, 8))


class Net(nn.Module):
    """A BatchNorm of the importer, two of torch's, and an InstanceNorm that stays local."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.imported = BatchNormalization(torch.randn(4), torch.rand(4), 1e-5, 0.1)
        self.cumulative = BatchNormalization(torch.zeros(4), torch.ones(4), 1e-3, None)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.shift = nn.Parameter(torch.randn(4))
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.plain = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
        self.instance = nn.InstanceNorm1d(3, track_running_stats=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.imported(x, self.scale, self.shift).tanh()
        x = self.cumulative(x, self.shift, self.scale).mean((2, 3))
        return self.plain(self.norm(self.fc(x)).sin())


def whole_batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, 5, 3, generator=generator)
    x[:, 1] = 1000 + x[:, 1]  # where sums of squares would lose every digit
    x[3:] *= 3
    return x


def train(net: Net, x: torch.Tensor, rows: slice, steps: int = 2) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the last step, and running statistics after it."""
    weights = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    net.train()
    for _ in range(steps):
        x = x.detach().requires_grad_()
        net.zero_grad()
        y = net(x)
        (y * weights[rows]).sum().backward()
    gradients = {f"grad.{n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return {"x": x.grad, "y": y.detach(), **gradients, **statistics}


def synchronised(ranks: Ranks) -> dict[str, Any]:
    net = Net()
    local = copy.deepcopy(net)
    found: dict[str, Any] = {"count": synchronise_batchnorm(net, ranks)}
    names = [name for name, _ in net.named_buffers()]
    assert names == [name for name, _ in local.named_buffers()]
    rows = PARTS[ranks.rank]
    found["train"] = train(net, whole_batch()[rows], rows)
    found["copy"] = train(copy.deepcopy(net), whole_batch()[rows], rows)["y"]
    empty = slice(0, 8) if ranks.is_main else slice(8, 8)
    fresh = nn.BatchNorm2d(4)
    synchronise_batchnorm(fresh, ranks)
    found["empty"] = fresh(whole_batch()[empty]).detach()
    found["half"] = fresh(whole_batch()[rows].bfloat16()).detach()

    if ranks.is_main:  # alone: neither evaluation nor recalibration may wait for the other rank
        net.load_state_dict(local.state_dict())
        net.eval()
        local.eval()
        found["eval"] = torch.equal(net(whole_batch()), local(whole_batch()))
        batches = [{"x": whole_batch()}]
        recalibrate(net, batches)
        recalibrate(local, batches)
        pairs = zip(net.buffers(), local.buffers(), strict=True)
        found["recalibrated"] = all(torch.equal(a, b) for a, b in pairs)
    return found


@pytest.fixture(scope="module")
def results(run_processes: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_processes(synchronised)


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return train(Net(), whole_batch(), slice(0, 8))


def close(found: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_layers_are_counted_and_instance_norm_is_none(results: list[dict[str, Any]]) -> None:
    assert [result["count"] for result in results] == [4, 4]


@pytest.mark.parametrize("name", ["y", "x"])
def test_outputs_and_input_gradients_are_those_of_the_whole_batch(
    results: list[dict[str, Any]], reference: dict[str, torch.Tensor], name: str
) -> None:
    close(torch.cat([result["train"][name] for result in results]), reference[name])
    assert float(reference[name].abs().max()) > 0.01


def test_gradients_of_parameters_add_up(
    results: list[dict[str, Any]], reference: dict[str, torch.Tensor]
) -> None:
    names = [name for name in reference if name.startswith("grad.")]
    assert len(names) == 6
    for name in names:
        found = results[0]["train"][name] + results[1]["train"][name]
        close(found, reference[name], max(1.0, float(reference[name].abs().max())))


def test_running_statistics_are_those_of_the_whole_batch_on_every_rank(
    results: list[dict[str, Any]], reference: dict[str, torch.Tensor]
) -> None:
    names = [name for name in reference if "running" in name or "tracked" in name]
    assert len(names) == 3 * 4
    for result in results:
        for name in names:
            close(result["train"][name], reference[name])
            assert torch.equal(result["train"][name], results[0]["train"][name])


def test_a_copy_of_the_module_is_synchronised_by_itself(results: list[dict[str, Any]]) -> None:
    expected = train(Net(), whole_batch(), slice(0, 8), steps=4)["y"]
    close(torch.cat([result["copy"] for result in results]), expected)


def test_a_rank_without_samples_takes_part(results: list[dict[str, Any]]) -> None:
    expected = F.batch_norm(whole_batch(), None, None, training=True)
    close(results[0]["empty"], expected)
    assert results[1]["empty"].shape == (0, 4, 5, 3)


def test_half_precision_stays_and_is_computed_in_float32(results: list[dict[str, Any]]) -> None:
    found = torch.cat([result["half"] for result in results])
    assert found.dtype == torch.bfloat16
    expected = F.batch_norm(whole_batch().bfloat16().float(), None, None, training=True)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


def test_evaluation_and_recalibration_stay_local(results: list[dict[str, Any]]) -> None:
    assert results[0]["eval"]
    assert results[0]["recalibrated"]


def test_one_rank_changes_nothing() -> None:
    net = Net()
    assert synchronise_batchnorm(net, Ranks(torch.device("cpu"))) == 4
    assert "forward" not in vars(net.imported)
    found, expected = (
        train(net, whole_batch(), slice(0, 8)),
        train(Net(), whole_batch(), slice(0, 8)),
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""An imported model whose parameters lie on two processes, against the whole in one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import onnxprune
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.sharding import full_tensors, load_full_tensors, shard_parameters
from onnxprune.sparsity import Magnitude, MaskSet, local_part, select_masks

pytestmark = pytest.mark.xdist_group("sharding")

STEPS = 3


def tied_network() -> onnx.ModelProto:
    """`x` (N, 6) through five matrices, two of which are one, a bias and a Slice -> `y` (N, 6)."""
    rng = np.random.default_rng(0)
    shapes = {"in": (6, 8), "w1": (8, 8), "w2": (8, 5), "w3": (5, 8), "out": (8, 6), "bias": (3,)}
    stored = [
        numpy_helper.from_array(rng.normal(0, 0.4, shape).round(2).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("MatMul", ["d", "w3"], ["e"]),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["g"]),
        helper.make_node("MatMul", ["g", "out"], ["h"]),
        helper.make_node("Split", ["h"], ["h1", "h2"], axis=1, num_outputs=2),
        helper.make_node("Add", ["h1", "bias"], ["i"]),
        helper.make_node("Concat", ["i", "h2"], ["y"], axis=1),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 6]) for n in "xy")
    graph = helper.make_graph(nodes, "tied", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def imported() -> tuple[onnxprune.ImportedModel, dict[str, str]]:
    module = onnxprune.load(tied_network())
    return module, dict(module.tensor_names)


def pruned(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if parameter.ndim == 2}


def train(
    module: nn.Module, parameters: dict[str, nn.Parameter], masks: MaskSet, rows: slice
) -> torch.optim.Optimizer:
    """Three steps on part of a batch, under masks."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(2, 8, 6, generator=generator)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.02, weight_decay=0.1)
    module.train()
    for _ in range(STEPS):
        (module(x=x[rows]) - target[rows]).square().mean().backward()
        masks.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        masks.mask_weights()
    return optimizer


def choose(masks: MaskSet, zeros: int, shards: Any) -> dict[str, Tensor]:
    weights = {name: local_part(parameter) for name, parameter in masks.parameters.items()}
    floors = {"w1": 30, "out": 40}
    return select_masks(
        weights, zeros, Magnitude(), masks=masks.masks, floors=floors, shards=shards
    )


def sharded(ranks: Ranks) -> dict[str, Any]:
    module, names = imported()
    keys = shard_parameters(module, ranks, stages=3)
    parameters = {names[key]: parameter for key, parameter in keys.items()}
    masks = MaskSet(pruned(parameters), ranks)
    total, before = masks.total, masks.zeros
    masks.update(choose(masks, 100, ranks))
    first = full_tensors(masks.masks, ranks)
    rows = slice(0, 4) if ranks.is_main else slice(4, 8)
    optimizer = train(module, parameters, masks, rows)
    found: dict[str, Any] = {
        "counts": (total, before, masks.zeros),
        "first masks": first,
        "held": {name: local_part(parameter).numel() for name, parameter in parameters.items()},
        "trained": full_tensors(parameters, ranks),
    }
    masks.update(choose(masks, 140, ranks), optimizer)
    found["second masks"] = full_tensors(masks.masks, ranks)
    found["masked"] = full_tensors(parameters, ranks)
    momentum = {name: optimizer.state[p]["exp_avg"] for name, p in masks.parameters.items()}
    found["momentum"] = full_tensors(momentum, ranks)
    found["stages"] = [
        sorted(names[key] for key, _ in part.named_parameters(recurse=False))
        for part in (module.stage_0, module.stage_1, module.stage_2, module)
    ]
    with torch.no_grad():
        for parameter in parameters.values():
            local_part(parameter).zero_()
    load_full_tensors(parameters, found["masked"], ranks)
    module.eval()
    with torch.no_grad():
        found["output"] = module(torch.ones(1, 6))
    return found


@pytest.fixture(scope="module")
def results(run_processes: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_processes(sharded)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    module, names = imported()
    parameters = {names[key]: parameter for key, parameter in module.named_parameters()}
    masks = MaskSet(pruned(parameters))
    masks.update(choose(masks, 100, None))
    found: dict[str, Any] = {"first masks": dict(masks.masks), "total": masks.total}
    optimizer = train(module, parameters, masks, slice(0, 8))
    found["trained"] = {name: p.detach().clone() for name, p in parameters.items()}
    masks.update(choose(masks, 140, None), optimizer)
    found["second masks"] = dict(masks.masks)
    found["masked"] = {name: p.detach() for name, p in parameters.items()}
    module.eval()
    found["output"] = module(torch.ones(1, 6)).detach()
    return found


def test_three_steps_equal_those_of_one_process(
    results: list[dict[str, Any]], reference: dict[str, Any]
) -> None:
    trained = results[0]["trained"]
    assert list(trained) == list(reference["trained"])
    for name, expected in reference["trained"].items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-5, atol=1e-6)
    module, names = imported()
    moved = [(trained[names[k]] - p.detach()).abs().max() for k, p in module.named_parameters()]
    assert min(moved) > 0.01


@pytest.mark.parametrize("event", ["first masks", "second masks"])
def test_masks_are_bit_identical(
    results: list[dict[str, Any]], reference: dict[str, Any], event: str
) -> None:
    assert results[0][event].keys() == reference[event].keys()
    for name, mask in reference[event].items():
        assert torch.equal(results[0][event][name], mask), name


def test_counts_are_those_of_all_ranks(
    results: list[dict[str, Any]], reference: dict[str, Any]
) -> None:
    assert [result["counts"] for result in results] == [(reference["total"], 0, 100)] * 2


def test_masked_weights_and_their_momentum_are_zero(results: list[dict[str, Any]]) -> None:
    for name, mask in results[0]["second masks"].items():
        for kind in ("masked", "momentum"):
            tensor = results[0][kind][name]
            assert not tensor[~mask].any()
            assert tensor[mask].all()


def test_each_rank_holds_its_rows_and_rank_0_alone_gets_the_whole(
    results: list[dict[str, Any]],
) -> None:
    first, second = (result["held"] for result in results)
    assert (first["in"], second["in"]) == (24, 24)
    assert (first["w3"], second["w3"]) == (24, 16)
    assert (first["bias"], second["bias"]) == (2, 1)
    assert results[1]["trained"] == {}
    assert results[0]["trained"]["w3"].shape == (5, 8)


def test_a_tied_parameter_stays_outside_the_stages(results: list[dict[str, Any]]) -> None:
    assert results[0]["stages"] == [["in"], ["w2", "w3"], ["bias", "out"], ["w1"]]


def test_whole_tensors_are_handed_out_again(
    results: list[dict[str, Any]], reference: dict[str, Any]
) -> None:
    for result in results:
        torch.testing.assert_close(result["output"], reference["output"], rtol=1e-4, atol=1e-5)


def test_one_rank_changes_nothing() -> None:
    module, _ = imported()
    before = dict(module.named_parameters())
    alone = Ranks(torch.device("cpu"))
    after = shard_parameters(module, alone)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    whole = full_tensors(after, alone)
    with torch.no_grad():
        for parameter in after.values():
            parameter.add_(1)
    load_full_tensors(after, whole, alone)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, whole[name])

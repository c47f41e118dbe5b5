import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from onnxprune.finetune import DEFAULT_LR, learning_rate, make_optimizer
from onnxprune.finetune.optim import sharpness_aware
from onnxprune.recipe import FinetuneTable

PROGRESS = st.floats(0, 1)


def settings(**values: object) -> FinetuneTable:
    return FinetuneTable.model_validate(values)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_default_peak(optimizer: str) -> None:
    rate = learning_rate(settings(optimizer=optimizer, lr_schedule="constant"), 0.5)
    assert rate == DEFAULT_LR[optimizer]


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("constant", 1.0, 1.0),
        ("linear", 0.6, 0.5),
        ("linear", 1.0, 0.0),
        ("cosine", 0.6, 0.5),
        ("cosine", 1.0, 0.0),
        ("step", 0.59, 1.0),
        ("step", 0.61, 0.1),
        ("step", 0.81, 0.01),
    ],
)
def test_course_after_warm_up(schedule: str, progress: float, expected: float) -> None:
    table = settings(lr=1.0, warmup=0.2, lr_schedule=schedule)
    assert learning_rate(table, progress) == pytest.approx(expected, abs=1e-12)


def test_steps_of_ones_own() -> None:
    table = settings(
        lr=1.0, warmup=0.0, lr_schedule="step", lr_milestones=[0.25, 0.5, 0.9], lr_gamma=0.5
    )
    rates = [learning_rate(table, progress) for progress in (0.24, 0.25, 0.6, 0.95)]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.125])


def test_one_cycle() -> None:
    table = settings(lr=1.0, warmup=0.3, lr_schedule="one-cycle")
    rates = [learning_rate(table, progress) for progress in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert rates == pytest.approx([0.04, 0.52, 1.0, (1 + 1e-4) / 2, 1e-4])


def test_one_cycle_is_that_of_pytorch() -> None:
    """Progress is counted in steps from 0 to 99, as `OneCycleLR` does."""
    weight = Parameter(torch.ones(1))
    sgd = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        sgd,
        max_lr=0.1,
        total_steps=101,
        pct_start=0.3 + 1 / 101,
        cycle_momentum=False,
        final_div_factor=1 / 25 / 1e-4,
    )
    table = settings(lr=0.1, warmup=0.3, lr_schedule="one-cycle")
    for step in range(101):
        assert learning_rate(table, step / 100) == pytest.approx(
            sgd.param_groups[0]["lr"], rel=0.02
        )
        sgd.step()
        if step < 100:
            theirs.step()


def test_warm_up_rises_from_zero() -> None:
    table = settings(lr=1.0, warmup=0.2)
    assert [learning_rate(table, p) for p in (0.0, 0.1, 0.2)] == pytest.approx([0.0, 0.5, 1.0])
    assert learning_rate(settings(lr=1.0, warmup=0.0), 0.0) == 1.0


@given(
    PROGRESS,
    st.sampled_from(["cosine", "constant", "linear", "step", "one-cycle"]),
    st.floats(0, 0.9),
)
def test_rates_lie_between_zero_and_the_peak(progress: float, schedule: str, warmup: float) -> None:
    table = settings(lr=0.3, lr_schedule=schedule, warmup=warmup)
    assert 0 <= learning_rate(table, progress) <= 0.3 * (1 + 1e-12)


def test_biases_and_norms_are_not_decayed() -> None:
    parameters = {"w": Parameter(torch.ones(2, 2)), "b": Parameter(torch.ones(2))}
    optimizer = make_optimizer(parameters, settings(weight_decay=0.1, momentum=0.7))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(parameters["w"]): 0.1, id(parameters["b"]): 0.0}
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["momentum"] == 0.7 for group in optimizer.param_groups)


def test_decay_of_single_tensors() -> None:
    names = ("body.w", "body.b", "head.w")
    parameters = {
        name: Parameter(torch.ones(*(2, 2) if name[-1] == "w" else (2,))) for name in names
    }
    table = settings(
        weight_decay=0.1, weight_decay_per_tensor={"body.*": 0.3, "*.b": 0.2, "head": 0.9}
    )
    optimizer = make_optimizer(parameters, table)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in parameters.items()} == {
        "body.w": 0.3,
        "body.b": 0.2,
        "head.w": 0.1,
    }


def test_sharpness_aware_steps_take_the_gradient_from_uphill() -> None:
    """On f(w) = w^2 at w = 3, the climb goes to 3.5, so SGD steps by 0.1 * 2 * 3.5."""
    weight = Parameter(torch.tensor([3.0]))
    table = settings(lr=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, lr_schedule="constant")
    optimizer = make_optimizer({"w": weight}, table)
    sam = sharpness_aware(optimizer, 0.5)
    weight.square().sum().backward()
    sam.first_step(zero_grad=True)
    assert weight.item() == pytest.approx(3.5)
    weight.square().sum().backward()
    sam.second_step()
    assert weight.item() == pytest.approx(3.0 - 0.1 * 7.0)


def test_adamw() -> None:
    parameters = {"w": Parameter(torch.ones(2, 2))}
    optimizer = make_optimizer(parameters, settings(optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1

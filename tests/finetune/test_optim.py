import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from onnxprune.finetune import DEFAULT_LR, learning_rate, make_optimizer
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


def test_warm_up_rises_from_zero() -> None:
    table = settings(lr=1.0, warmup=0.2)
    assert [learning_rate(table, p) for p in (0.0, 0.1, 0.2)] == pytest.approx([0.0, 0.5, 1.0])
    assert learning_rate(settings(lr=1.0, warmup=0.0), 0.0) == 1.0


@given(PROGRESS, st.sampled_from(["cosine", "constant", "linear", "step"]), st.floats(0, 0.9))
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


def test_adamw() -> None:
    parameters = {"w": Parameter(torch.ones(2, 2))}
    optimizer = make_optimizer(parameters, settings(optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1

"""Optimizers and learning-rate schedules."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.nn import Parameter

from onnxprune.errors import MissingDependencyError
from onnxprune.recipe import FinetuneTable

DEFAULT_LR = {"sgd": 0.01, "adamw": 3e-4}
"""Peak learning rates where the recipe names none."""

ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4
"""First and last learning rate of `one-cycle`, as shares of the peak."""


def peak_learning_rate(settings: FinetuneTable) -> float:
    """The highest learning rate of a course."""
    return settings.lr if settings.lr is not None else DEFAULT_LR[settings.optimizer]


def learning_rate(settings: FinetuneTable, progress: float) -> float:
    """The learning rate at `progress` in [0, 1] through a course, a pure function.

    It rises from 0 over `warmup` and then follows `lr_schedule`: `cosine` and `linear` fall to 0,
    `step` is multiplied by `lr_gamma` at each of `lr_milestones` of what is left, `constant` stays.
    `one-cycle` rises by half a cosine from 1/25 of the peak and falls by another to 1/10,000 of it
    (Smith and Topin, "Super-Convergence", arXiv 1708.07120, with cosines instead of lines; momentum
    stays).
    """
    peak = peak_learning_rate(settings)
    rising = progress < settings.warmup
    done = (
        progress / settings.warmup
        if rising
        else (progress - settings.warmup) / (1 - settings.warmup)
    )
    if settings.lr_schedule == "one-cycle":
        start, end = (ONE_CYCLE_START, 1.0) if rising else (1.0, ONE_CYCLE_END)
        return peak * (end + (start - end) * _half_cosine(done))
    if rising:
        return peak * done
    if settings.lr_schedule == "cosine":
        return peak * _half_cosine(done)
    if settings.lr_schedule == "linear":
        return peak * (1 - done)
    if settings.lr_schedule == "step":
        return peak * settings.lr_gamma ** bisect_right(settings.lr_milestones, done)
    return peak


def _half_cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    parameters: Mapping[str, Parameter], settings: FinetuneTable
) -> torch.optim.Optimizer:
    """SGD with momentum and L2 decay, or AdamW, over all parameters.

    Tensors with fewer than two dimensions (biases, norms) are not decayed, unless
    `weight_decay_per_tensor` says so.

    Args:
        parameters: Parameters by ONNX tensor name.
        settings: The recipe's `[finetune]`.
    """
    by_decay: dict[float, list[Parameter]] = {}
    for name, parameter in parameters.items():
        by_decay.setdefault(weight_decay(name, parameter.ndim, settings), []).append(parameter)
    groups = [{"params": params, "weight_decay": decay} for decay, params in by_decay.items()]
    lr = learning_rate(settings, 0.0)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)


def weight_decay(name: str, dimensions: int, settings: FinetuneTable) -> float:
    """The decay of one tensor: of the last glob that matches its name, or the default."""
    decay = settings.weight_decay if dimensions >= 2 else 0.0
    for glob, value in settings.weight_decay_per_tensor.items():
        if name == glob or fnmatchcase(name, glob):
            decay = value
    return decay


def sharpness_aware(optimizer: torch.optim.Optimizer, rho: float) -> Any:
    """An optimizer whose two half steps climb to the sharpest point nearby, and step from there.

    Foret et al., "Sharpness-Aware Minimization", arXiv 2010.01412, as `pytorch_optimizer.SAM`. A
    masked weight has no gradient, so the climb leaves it at zero.

    Args:
        optimizer: What takes the step; its state stays its own.
        rho: Radius of the climb, above 0.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    try:
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise MissingDependencyError("pytorch-optimizer", "sam", "[finetune] sam_rho") from error

    def ready_made(*_: Any, **__: Any) -> Any:
        return optimizer

    factory: Any = ready_made
    return SAM(optimizer.param_groups, base_optimizer=factory, rho=rho)

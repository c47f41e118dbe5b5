"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Mapping

import torch
from torch.nn import Parameter

from onnxprune.recipe import FinetuneTable

DEFAULT_LR = {"sgd": 0.01, "adamw": 3e-4}
"""Peak learning rates where the recipe names none."""


def learning_rate(settings: FinetuneTable, progress: float) -> float:
    """The learning rate at `progress` in [0, 1] through training, a pure function.

    It rises linearly from 0 over `warmup` and then follows `lr_schedule`: `cosine` and `linear`
    fall to 0, `step` divides by 10 at 50 % and at 75 % of the rest, `constant` stays.
    """
    peak = settings.lr if settings.lr is not None else DEFAULT_LR[settings.optimizer]
    if progress < settings.warmup:
        return peak * progress / settings.warmup
    done = (progress - settings.warmup) / (1 - settings.warmup)
    if settings.lr_schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if settings.lr_schedule == "linear":
        return peak * (1 - done)
    if settings.lr_schedule == "step":
        return peak * 0.1 ** ((done >= 0.5) + (done >= 0.75))
    return peak


def make_optimizer(
    parameters: Mapping[str, Parameter], settings: FinetuneTable
) -> torch.optim.Optimizer:
    """SGD with momentum and L2 decay, or AdamW, over all parameters.

    Tensors with fewer than two dimensions (biases, norms) are not decayed.
    """
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, settings.weight_decay), (others, 0.0))
        if params
    ]
    lr = learning_rate(settings, 0.0)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)

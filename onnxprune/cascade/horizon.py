"""How long weight decay needs to make a weight fall that nothing holds up."""

import math
from collections.abc import Callable


def decay_horizon(
    learning_rate: Callable[[int], float],
    weight_decay: float,
    momentum: float,
    tau: float,
    steps: int,
) -> int | None:
    """The step at which an unused weight has fallen by the factor `tau`, by weight decay alone.

    A weight without a gradient follows w' = -lr * wd / (1 - momentum) * w under SGD with L2 decay,
    once momentum has settled; so it has fallen by tau when the sum of lr_s * wd / (1 - momentum)
    reaches ln(1 / tau). With decoupled decay (AdamW) the momentum plays no part: pass 0.

    Args:
        learning_rate: Step from 0 -> planned learning rate.
        weight_decay: L2 decay, at least 0.
        momentum: In [0, 1).
        tau: In (0, 1).
        steps: Planned steps.

    Returns:
        Number of steps, counted from 1; None if the run does not reach it. `decay_reached` says how
        far it gets.
    """
    needed = math.log(1 / tau)
    reached = 0.0
    for step in range(steps):
        reached += learning_rate(step) * weight_decay / (1 - momentum)
        if reached >= needed:
            return step + 1
    return None


def decay_reached(
    learning_rate: Callable[[int], float],
    weight_decay: float,
    momentum: float,
    tau: float,
    steps: int,
) -> float:
    """How much of the decay horizon a run covers: 1 reaches it, 0.5 is half of it.

    The arguments are those of `decay_horizon`.
    """
    total = sum(learning_rate(step) for step in range(steps)) * weight_decay / (1 - momentum)
    return total / math.log(1 / tau)

"""Which pruning schedule follows from what was shed."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.cascade.gain import Verdict

SETTLED = 0.9
"""Shedding counts as settled once this share of what is shed at the end has been."""

MOST_EVENTS = 20


@dataclass(frozen=True)
class Recommendation:
    """A schedule, and why.

    Attributes:
        method: `cascade-gmp` or `gmp`.
        events: Pruning events.
        settle_steps: Steps after an event until shedding has settled; None where nothing is shed.
        reason: For people.
    """

    method: str
    events: int
    settle_steps: int | None
    reason: str


def settle_steps(curve: Sequence[tuple[int, float]]) -> int | None:
    """The first step at which a curve of shed weights has reached 90 % of its last value.

    Args:
        curve: (step, net shed weights), by step.

    Returns:
        A step of the curve; None where the last value is not above 0.
    """
    if not curve or curve[-1][1] <= 0:
        return None
    return next(step for step, shed in curve if shed >= SETTLED * curve[-1][1])


def recommend(
    verdict: Verdict,
    curve: Sequence[tuple[int, float]],
    pruning_steps: int,
    default_events: int,
    horizon_reached: float,
) -> Recommendation:
    """A schedule for the main job.

    Where a cascade is there, events lie so far apart that shedding settles between them, and shed
    weights are harvested. Elsewhere nothing speaks against plain gradual pruning.

    Args:
        verdict: Of the probe.
        curve: (step, net shed weights) of the treated arm, mean over seeds.
        pruning_steps: Steps between the first and the last pruning event of the main job.
        default_events: Events that the recipe has.
        horizon_reached: How much of the decay horizon the probe covers, at least 0.
    """
    settled = settle_steps(curve)
    if verdict == "absent":
        reason = "pruning sheds no more weights than training sheds without it"
        if horizon_reached < 1:
            reason += (
                f" within {horizon_reached:.0%} of the decay horizon; only a longer run could show "
                "a whole cascade"
            )
        return Recommendation("gmp", default_events, settled, reason)
    if verdict == "inconclusive" or settled is None:
        reason = "no cascade was shown, so nothing speaks against plain gradual pruning"
        return Recommendation("gmp", default_events, settled, reason)
    fitting = pruning_steps // max(1, settled)
    events = max(2, min(MOST_EVENTS, fitting))
    reason = f"shedding settles {settled:,} steps after an event"
    if events <= fitting:
        reason += f", so {events} events fit into the {pruning_steps:,} steps of pruning"
    else:
        reason += f"; {events} events are the fewest, and {pruning_steps:,} steps leave no such gap"
    return Recommendation("cascade-gmp", events, settled, reason)

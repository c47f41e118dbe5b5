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
) -> Recommendation:
    """A schedule for the main job.

    Where a cascade is there, events lie so far apart that shedding settles between them, and shed
    weights are harvested. Elsewhere nothing speaks against plain gradual pruning.

    Args:
        verdict: Of the probe.
        curve: (step, net shed weights) of the treated arm, mean over seeds.
        pruning_steps: Steps between the first and the last pruning event of the main job.
        default_events: Events that the recipe has.
    """
    settled = settle_steps(curve)
    if verdict not in ("present", "weak") or settled is None:
        return Recommendation(
            "gmp",
            default_events,
            settled,
            "pruning sheds no more weights than training sheds without it, as far as was seen"
            if verdict == "absent"
            else "no cascade was shown, so nothing speaks against plain gradual pruning",
        )
    events = max(2, min(MOST_EVENTS, pruning_steps // max(1, settled)))
    return Recommendation(
        "cascade-gmp",
        events,
        settled,
        f"shedding settles {settled:,} steps after an event, so {events} events fit into the "
        f"{pruning_steps:,} steps of pruning",
    )

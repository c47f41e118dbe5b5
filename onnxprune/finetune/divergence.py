"""When a run has diverged."""

import math
from dataclasses import dataclass

SETTLING_STEPS = 50
"""Steps after the start and after a pruning event in which a higher loss counts as normal."""


@dataclass
class LossWatch:
    """Tells a loss that explodes from one that rises because weights were pruned.

    The loss may rise to `factor` times the largest value that was seen while training settled:
    in the first steps of the run, and after each pruning event. It is never compared with less
    than `scale`, so a loss that begins near zero, as in distillation, may grow.

    Attributes:
        factor: Above 1.
        scale: Loss of a model that knows nothing; 1 for losses that are normalised.
        reference: Largest mean loss while training settled.
        settling_until: Step up to which it does.
    """

    factor: float
    scale: float = 1.0
    reference: float = 0.0
    settling_until: int = SETTLING_STEPS
    _seen: bool = False

    def pruned(self, step: int) -> None:
        """Weights were removed before `step`, so the loss may rise."""
        self.settling_until = step + SETTLING_STEPS

    def problem(self, step: int, loss: float) -> str | None:
        """What is wrong with the mean loss of the steps up to `step`; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is not finite ({loss})"
        limit = self.factor * max(self.scale, self.reference)
        if self._seen and loss > limit:
            return f"the loss is {loss:.4g}, above {limit:.4g}"
        if step <= self.settling_until:
            self.reference = max(self.reference, loss)
        self._seen = True
        return None

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "reference": self.reference,
            "settling_until": self.settling_until,
            "seen": self._seen,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Put back what `state` gave."""
        self.reference = float(state["reference"])
        self.settling_until = int(state["settling_until"])
        self._seen = bool(state["seen"])

"""When a run has diverged."""

import math
from dataclasses import dataclass


@dataclass
class LossWatch:
    """Tells a loss that explodes from one that rises because weights were pruned.

    Pruning can make a model forget what it knew; it then answers as if it had been asked something
    else, and its loss is about that of a model that knows nothing. So much is normal at any time,
    and training has to bring it down again. Only training itself takes a loss far above that. The
    limit is therefore `factor` times the loss of a model that knows nothing, in every step, the
    first one too, and however many weights go and how often: it does not rise with the loss, so a
    loss that grows slowly meets it as well.

    What a model that knows nothing loses depends on loss, data and model. It is measured before
    anything is pruned or trained, as `Stepper.uninformed_loss` says: with the answers of the dense
    model, each given to another sample.

    Attributes:
        factor: Above 1.
        least: The loss of a model that knows nothing is taken to be this much at least. A loss that
            begins near zero, as in distillation of a model whose outputs hardly vary, may grow.
        measured: That loss as measured; None before.
    """

    factor: float
    least: float = 1.0
    measured: float | None = None

    def problem(self, loss: float) -> str | None:
        """What is wrong with a mean loss; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is not finite ({loss})"
        nothing_known = max(self.least, self.measured or 0.0)
        if loss > self.factor * nothing_known:
            return (
                f"the loss is {loss:.4g}, above {self.factor * nothing_known:.4g}, {self.factor:g} "
                "times that of a model that knows nothing"
            )
        return None

"""How a graph output ends, and its scores before that."""

from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-30


@dataclass(frozen=True)
class Ending:
    """How a graph output ends.

    Attributes:
        activation: `softmax`, `log_softmax`, `sigmoid`, or None for anything else.
        axis: Axis along which the softmax adds up to 1, counted from 0; None where there is none,
            or where it is not known.
    """

    activation: str | None = None
    axis: int | None = None

    @property
    def is_softmax(self) -> bool:
        """Whether it ends in a softmax or its logarithm."""
        return self.activation in ("softmax", "log_softmax")

    def log_scores(self, output: Tensor) -> Tensor:
        """An output as float32 logits, whatever the graph ends with; the shape stays."""
        output = output.float()
        if self.activation == "softmax":
            return output.clamp_min(_TINY).log()
        if self.activation == "sigmoid":
            return torch.logit(output, eps=1e-7)
        return output


PLAIN = Ending()
"""Logits, or anything else that is read as it is."""

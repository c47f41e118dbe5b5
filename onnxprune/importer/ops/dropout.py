"""Dropout."""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register


class Dropout(nn.Module):
    """Drops elements in training, and in evaluation only if the file says so.

    Args:
        ratio: Share of dropped elements, in [0, 1).
        training_mode: Whether the file drops in evaluation, too.
    """

    def __init__(self, ratio: float, training_mode: bool = False) -> None:
        super().__init__()
        self.ratio = ratio
        self.training_mode = training_mode

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements and scale the others by 1 / (1 - ratio)."""
        return F.dropout(x, self.ratio, self.training or self.training_mode)

    def extra_repr(self) -> str:
        """Settings for `print`."""
        return f"ratio={self.ratio:g}"


def dropout_by_inputs(
    x: Tensor, ratio: Tensor | float, training: Tensor | bool
) -> tuple[Tensor, Tensor]:
    """Dropout whose ratio or mode is computed while the model runs, with its mask."""
    if not bool(training) or float(ratio) == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = torch.rand_like(x) >= float(ratio)
    return x * mask / (1 - float(ratio)), mask


@register("Dropout")
def _dropout(op: Op) -> Result:
    if any(op.has(index) and not op.is_constant(index) for index in (1, 2)):
        defaults = (0.5, False)
        settings = [op.tensor(i + 1) if op.has(i + 1) else d for i, d in enumerate(defaults)]
        return op.unpack(op.call(dropout_by_inputs, op.tensor(0), *settings), 2)
    ratio = op.attr("ratio", 0.5) if op.version < 12 else 0.5
    if op.has(1):
        ratio = float(op.constant(1, "ratio").item())
    training_mode = op.version < 7 and not op.attr("is_test", 0)
    if op.has(2):
        training_mode = bool(op.constant(2, "training_mode").item())
    x = op.tensor(0)
    y = op.module(Dropout(round(ratio, 7), training_mode), x)
    if not any(op.used_outputs[1:]):
        return y
    if ratio == 0 or not training_mode:
        return [y, op.call(torch.ones_like, x, dtype=torch.bool)]
    return [y, op.call(operator.ne, y, 0)]

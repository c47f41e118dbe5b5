"""Attention whose weights are dropped in training."""

import torch.nn.functional as F
from torch import Tensor, nn


class DroppedAttention(nn.Module):
    """Scaled dot-product attention with dropout of its weights.

    Args:
        ratio: Share of dropped weights, in [0, 1).
        training_mode: Whether the file drops in evaluation, too.
    """

    def __init__(self, ratio: float, training_mode: bool) -> None:
        super().__init__()
        self.ratio = ratio
        self.training_mode = training_mode

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Attend to the values.

        Args:
            query: (..., queries, size).
            key: (..., keys, size).
            value: (..., keys, value size).
            mask: Added to the scores, or True where a key counts; None for no mask.
            scale: Factor of the scores.
        """
        ratio = self.ratio if self.training or self.training_mode else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, ratio, scale=scale)

    def extra_repr(self) -> str:
        """Settings for `print`."""
        return f"ratio={self.ratio:g}"

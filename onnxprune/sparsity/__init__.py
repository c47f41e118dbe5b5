"""Which weights go: scores, scope, patterns, masks and schedules, in pure PyTorch.

Everything here works on any `dict[str, Tensor]` and knows nothing of ONNX. A mask is True where a
weight is kept.
"""

from onnxprune.sparsity.masks import MaskSet
from onnxprune.sparsity.patterns import NM, Pattern, parse_pattern
from onnxprune.sparsity.schedules import Rounds, Schedule
from onnxprune.sparsity.scores import Magnitude, RandomScore, Score
from onnxprune.sparsity.select import (
    allocate_layerwise,
    min_kept,
    prunable_limit,
    select_masks,
    target_zeros,
)

__all__ = [
    "NM",
    "Magnitude",
    "MaskSet",
    "Pattern",
    "RandomScore",
    "Rounds",
    "Schedule",
    "Score",
    "allocate_layerwise",
    "min_kept",
    "parse_pattern",
    "prunable_limit",
    "select_masks",
    "target_zeros",
]

"""Which weights go: scores, scope, patterns, masks and schedules, in pure PyTorch.

Everything here works on any `dict[str, Tensor]` and knows nothing of ONNX. A mask is True where a
weight is kept. Tensors may be whole, or the parts that a rank holds.
"""

from onnxprune.sparsity.masks import MaskSet
from onnxprune.sparsity.patterns import NM, Pattern, parse_pattern
from onnxprune.sparsity.replicas import Replicas, partition, select_replicated_masks
from onnxprune.sparsity.schedules import Schedule
from onnxprune.sparsity.scores import Magnitude, RandomScore, Score
from onnxprune.sparsity.select import (
    allocate_layerwise,
    min_kept,
    prunable_limit,
    select_masks,
    target_zeros,
)
from onnxprune.sparsity.shards import Shards, local_part

__all__ = [
    "NM",
    "Magnitude",
    "MaskSet",
    "Pattern",
    "RandomScore",
    "Replicas",
    "Schedule",
    "Score",
    "Shards",
    "allocate_layerwise",
    "local_part",
    "min_kept",
    "parse_pattern",
    "partition",
    "prunable_limit",
    "select_masks",
    "select_replicated_masks",
    "target_zeros",
]

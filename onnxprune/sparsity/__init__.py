"""Which weights go: scores, scope, patterns, masks and schedules, in pure PyTorch.

Everything here works on any `dict[str, Tensor]` and knows nothing of ONNX. A mask is True where a
weight is kept. Tensors may be whole, or the parts that a rank holds.
"""

from onnxprune.sparsity.choice import Choice, choose_masks
from onnxprune.sparsity.masks import MaskSet
from onnxprune.sparsity.patterns import NM, Axes, Block, Pattern, parse_pattern
from onnxprune.sparsity.ranking import allocate_layerwise
from onnxprune.sparsity.replicas import Replicas, partition, select_replicated_masks
from onnxprune.sparsity.schedules import Schedule
from onnxprune.sparsity.scores import Magnitude, RandomScore, Score
from onnxprune.sparsity.select import (
    min_kept,
    prunable_limit,
    select_masks,
    target_zeros,
    whole_blocks,
)
from onnxprune.sparsity.shards import Shards, local_part

__all__ = [
    "NM",
    "Axes",
    "Block",
    "Choice",
    "Magnitude",
    "MaskSet",
    "Pattern",
    "RandomScore",
    "Replicas",
    "Schedule",
    "Score",
    "Shards",
    "allocate_layerwise",
    "choose_masks",
    "local_part",
    "min_kept",
    "parse_pattern",
    "partition",
    "prunable_limit",
    "select_masks",
    "select_replicated_masks",
    "target_zeros",
    "whole_blocks",
]

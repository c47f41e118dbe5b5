"""How the sets of kept weights of two runs differ."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onnxprune.sparsity.shards import true_counts


@dataclass(frozen=True)
class Overlap:
    """How much two sets of kept weights have in common.

    Attributes:
        jaccard: Kept by both / kept by either, in [0, 1]; 1 where neither keeps any.
        by_tensor: The same for each tensor.
        expected: What two independent random sets of these sizes would have on average, tensor by
            tensor: only what lies above is agreement.
    """

    jaccard: float
    by_tensor: dict[str, float]
    expected: float


def kept_overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Overlap:
    """Compare two sets of masks.

    Args:
        first: Boolean tensors by name, True keeps.
        second: The same names and shapes.
    """
    both = true_counts({name: mask & second[name] for name, mask in first.items()})
    either = true_counts({name: mask | second[name] for name, mask in first.items()})
    ours, theirs = true_counts(first), true_counts({name: second[name] for name in first})
    chance_both = {
        name: ours[name] * theirs[name] / mask.numel()
        for name, mask in first.items()
        if mask.numel()
    }
    chance_either = {
        name: ours[name] + theirs[name] - chance for name, chance in chance_both.items()
    }
    return Overlap(
        _share(sum(both.values()), sum(either.values())),
        {name: _share(both[name], either[name]) for name in both},
        _share(sum(chance_both.values()), sum(chance_either.values())),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0

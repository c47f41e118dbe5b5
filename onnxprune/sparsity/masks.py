"""Masks that hold: pruned weights stay exactly zero through every optimizer step."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from onnxprune.sparsity.shards import Shards, Whole, local_part, sum_counts, true_counts


class MaskSet:
    """The masks of a set of parameters, and their upkeep.

    Call `mask_gradients` before and `mask_weights` after every optimizer step. Since gradients and
    optimizer state are zero where a weight is masked, momentum cannot revive it.

    Args:
        parameters: Parameters by name; `update` and `mask_weights` change them in place. Where
            they are sharded (`DTensor`), masks are those of this rank's parts.
        shards: The ranks that hold the other parts, which then create and update their masks
            together; None where this one holds everything.

    Attributes:
        parameters: As given.
        masks: A mask of the shape of each parameter, or of this rank's part of it.
        total: Number of weights under masks on all ranks, kept or not.
        zeros: Number of weights that the masks of all ranks remove.
        kept: Number of weights that they keep, by name.
        final: Masks that later updates move towards, chosen early (see `choose_masks`); None
            without such.
    """

    def __init__(self, parameters: Mapping[str, Parameter], shards: Shards | None = None) -> None:
        self.parameters = dict(parameters)
        self.masks = {
            name: torch.ones_like(local_part(parameter), dtype=torch.bool)
            for name, parameter in self.parameters.items()
        }
        self._factors: dict[str, Tensor] = {}
        self._shards = shards or Whole()
        sizes = {name: mask.numel() for name, mask in self.masks.items()}
        self.kept = sum_counts(self._shards, sizes)
        self.total = sum(self.kept.values())
        self.zeros = 0
        self.final: dict[str, Tensor] | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / total, in [0, 1]; 0 without any weight."""
        return self.zeros / self.total if self.total else 0.0

    def update(
        self, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Put new masks in place.

        Weights and optimizer state (momentum and the like) are zeroed where a mask is False. A
        weight that was masked and no longer is goes on from 0, with an optimizer state of 0.

        Args:
            masks: A boolean tensor for every parameter, like those in `masks`.
            optimizer: Whose per-weight state is zeroed, too.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                mask = masks[name].to(parameter.device)
                self.masks[name] = mask
                # In the parameter's own memory format, in which products are fused.
                factor = torch.empty_like(local_part(parameter).detach())
                self._factors[name] = factor.copy_(mask)
                for tensor in (parameter, *_weight_states(optimizer, parameter)):
                    local_part(tensor).masked_fill_(~mask, 0.0)
        self.kept = sum_counts(self._shards, true_counts(self.masks))
        self.zeros = self.total - sum(self.kept.values())

    def digest(self) -> str:
        """SHA-256 (hex) of all masks, by which copies of them can be compared."""
        digest = hashlib.sha256()
        for name, mask in self.masks.items():
            digest.update(f"{name}\0{tuple(mask.shape)}".encode())
            digest.update(np.packbits(mask.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights, in place; call it before the optimizer's step."""
        pairs = [
            (local_part(parameter.grad), self._factors[name])
            for name, parameter in self.parameters.items()
            if parameter.grad is not None and name in self._factors
        ]
        _multiply(pairs)

    def mask_weights(self) -> None:
        """Zero masked weights, in place; call it after the optimizer's step."""
        pairs = [
            (local_part(parameter.data), self._factors[name])
            for name, parameter in self.parameters.items()
            if name in self._factors
        ]
        _multiply(pairs)


def _multiply(pairs: list[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        with torch.no_grad():
            torch._foreach_mul_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])


def _weight_states(optimizer: torch.optim.Optimizer | None, parameter: Parameter) -> list[Tensor]:
    """The entries of an optimizer's state that hold one value a weight."""
    if optimizer is None:
        return []
    return [
        value
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]

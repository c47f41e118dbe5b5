"""Masks that hold: pruned weights stay exactly zero through every optimizer step."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter


class MaskSet:
    """The masks of a set of parameters, and their upkeep.

    Call `mask_gradients` before and `mask_weights` after every optimizer step. Since gradients and
    optimizer state are zero where a weight is masked, momentum cannot revive it.

    Args:
        parameters: Parameters by name; `update` and `mask_weights` change them in place.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        self.masks = {
            name: torch.ones_like(parameter, dtype=torch.bool)
            for name, parameter in self.parameters.items()
        }
        self._factors: dict[str, Tensor] = {}
        self._zeros = 0

    @property
    def total(self) -> int:
        """Number of weights under masks, kept or not."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def zeros(self) -> int:
        """Number of weights that the masks remove."""
        return self._zeros

    @property
    def sparsity(self) -> float:
        """Zeros / total, in [0, 1]; 0 without any weight."""
        return self.zeros / self.total if self.total else 0.0

    def update(
        self, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Put new masks in place.

        Weights and optimizer state (momentum and the like) are zeroed where a mask is False.

        Args:
            masks: A boolean tensor of the parameter's shape for every parameter.
            optimizer: Whose per-weight state is zeroed, too.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                mask = masks[name].to(parameter.device)
                self.masks[name] = mask
                self._factors[name] = mask.to(parameter.dtype)
                parameter.masked_fill_(~mask, 0.0)
                for state in _weight_states(optimizer, parameter):
                    state.masked_fill_(~mask, 0.0)
            kept = [mask.sum() for mask in self.masks.values()]
            self._zeros = self.total - (int(torch.stack(kept).sum()) if kept else 0)

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
            (parameter.grad, self._factors[name])
            for name, parameter in self.parameters.items()
            if parameter.grad is not None and name in self._factors
        ]
        _multiply(pairs)

    def mask_weights(self) -> None:
        """Zero masked weights, in place; call it after the optimizer's step."""
        pairs = [
            (parameter.data, self._factors[name])
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

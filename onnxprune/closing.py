"""Structural closure of a model while it is trained: dead weights leave, constants are folded."""

from collections.abc import Mapping

import torch
from torch import Tensor

from onnxprune.cascade import Closure, close
from onnxprune.importer import ImportedModel
from onnxprune.model import OnnxModel
from onnxprune.sparsity import MaskSet
from onnxprune.structure import read_flow


class ModelClosure:
    """Finds the dead weights of a model under the masks in force, and takes them out exactly.

    Outputs in evaluation mode stay the same. In training mode a constant that a BatchNorm takes is
    gone with the batch mean anyway; one that a bias takes is that of the running statistics.

    Args:
        source: The dense model.
        module: The same, imported; whole, not sharded.
        masks: Masks of its pruned parameters.
        floors: Weights that each tensor keeps at least, by name.
    """

    def __init__(
        self, source: OnnxModel, module: ImportedModel, masks: MaskSet, floors: Mapping[str, int]
    ) -> None:
        self._flow = read_flow(source.proto)
        self._module = module
        self._masks = masks
        self._floors = floors

    def __call__(self, room: int) -> dict[str, Tensor]:
        """See `finetune.pruner.Close`; biases and running means are changed in place."""
        tensors = self._module.export_tensors()
        masks = self._masks.masks
        found = close(self._flow, tensors, masks, self._floors)
        if sum(found.dead.values()) > room:
            # What cannot all leave must not be folded.
            return {name: torch.zeros_like(mask) for name, mask in masks.items()}
        self._fold(found, tensors)
        return {name: mask & ~found.masks[name] for name, mask in masks.items()}

    @staticmethod
    def _fold(found: Closure, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in found.changes.items():
                tensors[name].copy_(value)

"""Structural closure of a model while it is trained: dead weights leave, constants are folded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.cascade import Closure, Flow, close
from onnxprune.cascade.flow import Product
from onnxprune.importer import ImportedModel
from onnxprune.model import OnnxModel
from onnxprune.slots import STATISTICS_ROLES
from onnxprune.sparsity import MaskSet
from onnxprune.structure import read_flow
from onnxprune.tensors import GraphTensor, find_tensors


class ModelClosure:
    """Finds the dead weights of a model under the masks in force, and takes them out exactly.

    Outputs in evaluation mode stay the same. In training mode a constant that a BatchNorm takes is
    gone with the batch mean anyway; one that a bias takes is that of the running statistics.

    A scale that is zero as a whole in the dense model is an initialisation ("zero-init residual")
    and no cut: what lies before it is about to be used. Its value counts as unknown.

    Args:
        source: The dense model.
        module: The same, imported; whole, not sharded.
        masks: Masks of its pruned parameters.
        floors: Weights that each tensor keeps at least, by name.
        exact: Whether all weights that are found are sure to leave. If not, as under a pattern, no
            constant is folded, and dead weights keep their values.

    Attributes:
        average: The moving average of the module, which loses the same weights and keeps its
            outputs, too; None without one.
        initial: Names of the scales that count as unknown.
    """

    def __init__(
        self,
        source: OnnxModel,
        module: ImportedModel,
        masks: MaskSet,
        floors: Mapping[str, int],
        *,
        exact: bool = True,
    ) -> None:
        flow = read_flow(source.proto)
        self._flow = flow if exact else _without_folding(flow)
        self._exact = exact
        self._module = module
        self._masks = masks
        self._floors = floors
        self.average: ImportedModel | None = None
        self.initial = initial_scales(find_tensors(source.proto))

    def __call__(self, room: int) -> dict[str, Tensor]:
        """See `finetune.pruner.Close`; parameters and running means are changed in place."""
        before = self._masks.masks
        modules = [module for module in (self._module, self.average) if module is not None]
        values = [self._values(module) for module in modules]
        found = [close(self._flow, each, before, self._floors, most=room) for each in values]
        while not _agree(found):
            # What is dead in one only stays in both, and so may what was dead because of it.
            common = {n: before[n] & ~_any_kept(found, n) for n in before}
            found = [close(self._flow, each, before, self._floors, among=common) for each in values]
        if self._exact:
            for each, closure in zip(values, found, strict=True):
                _apply(closure, each)
        return {name: mask & ~found[0].masks[name] for name, mask in before.items()}

    def _values(self, module: ImportedModel) -> dict[str, Tensor]:
        tensors = module.export_tensors()
        return {name: tensor for name, tensor in tensors.items() if name not in self.initial}


def initial_scales(tensors: Mapping[str, GraphTensor]) -> list[str]:
    """Names of trainable tensors that scale channels and are zero as a whole."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.trainable
        and any(use.role == "scale" or use.op_type == "Mul" for use in tensor.uses)
        and not tensor.array().any()
    ]


def closure_of(proto: Any, masks: Mapping[str, Tensor]) -> Closure:
    """Which kept weights and which channels do nothing in a finished model, which stays as it is.

    Args:
        proto: The pruned model's `ModelProto`.
        masks: Its masks by ONNX name, on the CPU.
    """
    tensors = {
        name: torch.from_numpy(tensor.array().astype(np.float32))
        for name, tensor in find_tensors(proto).items()
        if tensor.trainable or tensor.role in STATISTICS_ROLES
    }
    return close(read_flow(proto), tensors, masks)


def _agree(found: list[Closure]) -> bool:
    first, *others = found
    return all(torch.equal(first.masks[n], each.masks[n]) for each in others for n in first.masks)


def _any_kept(found: list[Closure], name: str) -> Tensor:
    return torch.stack([closure.masks[name] for closure in found]).any(0)


def _apply(closure: Closure, tensors: Mapping[str, Tensor]) -> None:
    """Zero dead weights and fold constants, in place."""
    with torch.no_grad():
        for name in closure.dead:
            tensors[name].masked_fill_(~closure.masks[name], 0.0)
        for name, value in closure.changes.items():
            tensors[name].copy_(value)


def _without_folding(flow: Flow) -> Flow:
    """The same flow, in which no bias and no running mean takes constants."""
    steps = (replace(s, takes=None) if isinstance(s, Product) else s for s in flow.steps)
    return replace(flow, steps=tuple(steps))

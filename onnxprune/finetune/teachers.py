"""The dense model as a teacher: its values for a batch, from memory, PyTorch or elsewhere."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.finetune.batch import Batch

Teacher = Callable[[Batch], dict[str, Tensor]]
"""The dense model: values by name for a batch, without gradients, on the CPU or its device."""


class CachedTeacher:
    """The dense model's values, computed once for every sample and looked up by index.

    Args:
        outputs: Tensor name -> `(samples, ...)`.
    """

    def __init__(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.outputs = {name: torch.from_numpy(array) for name, array in outputs.items()}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Values of the batch's samples."""
        indices = batch.indices.cpu()
        return {name: tensor[indices] for name, tensor in self.outputs.items()}


class ModuleTeacher:
    """The dense model itself, run on every batch, on the batch's device.

    Args:
        module: An imported model as it is before training; it is copied.
        names: Which of its outputs are taken.
        batch_size: The only batch size that it takes, None for any.
    """

    def __init__(self, module: Any, names: Collection[str], batch_size: int | None = None) -> None:
        self.batch_size = batch_size
        self.names = tuple(names)
        self.outputs: list[str] = module.output_names
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Values of the batch."""
        self.module.to(next(iter(batch.inputs.values())).device)
        parts = []
        for part in batch.split(self.batch_size or len(batch)):
            with torch.no_grad():
                outputs = self.module(**part.padded(self.batch_size or 0).inputs)
            values = outputs if isinstance(outputs, tuple | list) else (outputs,)
            named = dict(zip(self.outputs, values, strict=True))
            parts.append(_rows({name: named[name] for name in self.names}, part, self.batch_size))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class ArrayTeacher:
    """The dense model outside PyTorch, run on every batch.

    Args:
        run: Input name -> array, to output name -> array, such as the `run` of a session of ONNX
            Runtime.
        names: Which of its outputs are taken.
        batch_size: The only batch size that it takes, None for any.
    """

    def __init__(
        self,
        run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]],
        names: Collection[str],
        batch_size: int | None = None,
    ) -> None:
        self.run = run
        self.names = tuple(names)
        self.batch_size = batch_size

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Values of the batch on the CPU, floats as float32."""
        parts = []
        for part in batch.split(self.batch_size or len(batch)):
            inputs = part.padded(self.batch_size or 0).inputs
            outputs = self.run({name: tensor.cpu().numpy() for name, tensor in inputs.items()})
            tensors = {name: torch.from_numpy(_float32(outputs[name])) for name in self.names}
            parts.append(_rows(tensors, part, self.batch_size))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rows(values: dict[str, Tensor], batch: Batch, size: int | None) -> dict[str, Tensor]:
    """Values without those of samples that only fill a batch up to its size."""
    if size is None or len(batch) == size:
        return values
    return {name: tensor[: len(batch)] for name, tensor in values.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

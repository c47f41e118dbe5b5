"""A loss that the user wrote."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.finetune.batch import Batch

_EXPECTED = "a finite scalar float tensor with gradients"


@dataclass(frozen=True)
class PythonLoss:
    """A user's function as the loss on targets.

    Attributes:
        target: `package.module:function`, for messages.
        function: Called as `function(outputs, labels, inputs)`: graph outputs (and tensors named in
            `[distill] features`) by name, targets or None, and graph inputs by name, all on the
            device of training. It returns a scalar tensor.
    """

    target: str
    function: Callable[[dict[str, Tensor], Tensor | None, dict[str, Tensor]], Any]

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """What the function returns.

        Raises:
            UsageError: The function fails, or returns anything but a scalar with gradients.
        """
        try:
            loss = self.function(dict(outputs), batch.labels, dict(batch.inputs))
        except (OnnxpruneError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UsageError(
                "the loss function failed",
                where=f"python:{self.target}, {_place(error)}",
                got=f"{type(error).__name__}: {error}",
                remedy="it is called with outputs by name, targets or None, and inputs by name",
            ) from error
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            raise self._wrong(_shown(loss))
        learning = torch.is_grad_enabled() and any(t.requires_grad for t in outputs.values())
        if learning and not loss.requires_grad:
            raise self._wrong("a tensor without gradients")
        return loss

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Call it once and look at what it returns.

        Raises:
            UsageError: The function fails, or returns anything but a finite scalar with gradients.
        """
        loss = self(outputs, batch)
        if not bool(loss.isfinite()):
            raise self._wrong(f"{loss.item():g}")

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def _wrong(self, got: str) -> UsageError:
        return UsageError(
            "the loss function returns something that cannot be minimised",
            where=f"python:{self.target}",
            got=got,
            expected=_EXPECTED,
            remedy="compute it from the outputs with PyTorch, and reduce it to one number",
        )


def _place(error: Exception) -> str:
    """Where an error was raised, as `file:line in function`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__

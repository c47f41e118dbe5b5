"""What every loss on targets offers, and how one says that targets do not fit."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from onnxprune.errors import DataError
from onnxprune.finetune.batch import Batch


class TaskLoss(Protocol):
    """A loss on targets."""

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch, a scalar with gradients.

        Args:
            outputs: Graph outputs by name.
            batch: The samples behind them, on the same device.
        """
        ...

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Refuse outputs and targets that do not go together.

        Raises:
            DataError: The targets do not fit the output.
            UsageError: The recipe asks for what this loss cannot do.
        """
        ...

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """Sums over the samples of a batch, by the name of the metric."""
        ...


def targets(batch: Batch, loss: str) -> Tensor:
    """The targets of a batch.

    Raises:
        DataError: It has none.
    """
    if batch.labels is None:
        raise DataError(
            f"loss {loss!r} needs targets, and the data have none",
            remedy="add them, or leave [finetune] loss out, so that the dense model is distilled",
        )
    return batch.labels


def misfit(loss: str, output: str, got: str, expected: str, remedy: str) -> DataError:
    """The error for an output and targets that do not go together."""
    return DataError(
        f"loss {loss!r} does not fit the output and the targets",
        where=f"output {output!r}",
        got=got,
        expected=expected,
        remedy=remedy,
    )


def described(output: Tensor, labels: Tensor) -> str:
    """An output and targets, for messages."""
    return (
        f"an output {_kind(output)}{list(output.shape)} and targets "
        f"{_kind(labels)}{list(labels.shape)}"
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

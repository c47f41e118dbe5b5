"""Mean squared error, for regression."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses.binary import long_axes
from onnxprune.finetune.losses.task import described, misfit, targets

_NAME = "mse"


@dataclass(frozen=True)
class SquaredError:
    """Mean squared difference between an output and targets of the same shape.

    Attributes:
        output: Name of the output that is read, as it leaves the graph.
    """

    output: str

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over all values."""
        output = outputs[self.output].float()
        wanted = targets(batch, _NAME).to(output.dtype).reshape(output.shape)
        return functional.mse_loss(output, wanted)

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """See `TaskLoss.check`."""
        labels, output = targets(batch, _NAME), outputs[self.output]
        if not output.is_floating_point() or long_axes(labels) != long_axes(output):
            raise misfit(
                _NAME,
                self.output,
                described(output, labels),
                "one target for each value of a float output",
                "give targets of the output's shape, or set [finetune] loss_output",
            )

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

"""Binary cross-entropy for several labels that hold at once."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxprune.errors import UnsupportedModelError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses.ending import PLAIN, Ending
from onnxprune.finetune.losses.task import described, misfit, targets

_NAME = "bce"


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Mean binary cross-entropy over samples and labels.

    Attributes:
        output: Name of the output that is read: logits, or what a sigmoid makes of them.
        ending: How it ends.
        smoothing: Targets are drawn towards one half by this share, in [0, 1).
    """

    output: str
    ending: Ending = PLAIN
    smoothing: float = 0.0

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over samples and labels."""
        scores = self.ending.log_scores(outputs[self.output])
        wanted = targets(batch, _NAME).to(scores.dtype).reshape(scores.shape)
        wanted = wanted * (1 - self.smoothing) + self.smoothing / 2
        return functional.binary_cross_entropy_with_logits(scores, wanted)

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """See `TaskLoss.check`."""
        labels, output = targets(batch, _NAME), outputs[self.output]
        if self.ending.is_softmax:
            raise UnsupportedModelError(
                "loss 'bce' is for labels that are independent of each other, but the output ends "
                "in a softmax, which makes them compete",
                where=f"output {self.output!r}",
                expected="logits, or a sigmoid",
                remedy="set [finetune] loss = 'cross-entropy' if one label holds at a time",
            )
        if not output.is_floating_point() or long_axes(labels) != long_axes(output):
            raise misfit(
                _NAME,
                self.output,
                described(output, labels),
                "one number in [0, 1] for each value of a float output",
                "write the labels as multi-hot rows: 1 where a label holds, 0 elsewhere",
            )
        low, high = float(labels.min()), float(labels.max())
        if not 0 <= low <= high <= 1:
            raise misfit(
                _NAME,
                self.output,
                f"targets from {low:g} to {high:g}",
                "numbers in [0, 1]",
                "write the labels as multi-hot rows: 1 where a label holds, 0 elsewhere",
            )

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """`accuracy`: the share of a sample's labels that are on the right side of 0.5."""
        scores = self.ending.log_scores(outputs[self.output])
        wanted = targets(batch, _NAME).reshape(scores.shape) > 0.5
        right = ((scores > 0) == wanted).reshape(len(scores), -1).float()
        return {"accuracy": float(right.mean(dim=1).sum())}


def long_axes(tensor: Tensor) -> list[int]:
    """Sizes of the batch axis and of the axes that are longer than 1."""
    return [*tensor.shape[:1], *(size for size in tensor.shape[1:] if size != 1)]

"""Connectionist temporal classification, for sequences without alignment."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import UsageError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses.ending import PLAIN, Ending
from onnxprune.finetune.losses.task import described, misfit, targets

_NAME = "ctc"


@dataclass(frozen=True)
class Ctc:
    """Graves et al., "Connectionist Temporal Classification", ICML 2006.

    The loss of a sample is divided by the length of its target, and the mean is over samples. A
    target that does not fit into the time steps of its sample has no alignment, and such a sample
    contributes nothing.

    Attributes:
        output: Name of the output that is read, `(batch, time, classes)`: probabilities, their
            logarithms, or logits.
        ending: How it ends.
        blank: Index of the blank.
        time_first: Whether the output is `(time, batch, classes)`.
        length_of: Padded input whose length decides how many time steps a sample has; None where
            there is one such input at most.
    """

    output: str
    ending: Ending = PLAIN
    blank: int = 0
    time_first: bool = False
    length_of: str | None = None

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over samples."""
        labels = targets(batch, _NAME)
        log_probs = self._time_first(outputs[self.output])
        return functional.ctc_loss(
            log_probs,
            labels.clamp_min(0),
            self._steps(log_probs, batch),
            (labels >= 0).sum(dim=1),
            blank=self.blank,
            zero_infinity=True,
        )

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """See `TaskLoss.check`."""
        self._check_length_of(batch)
        labels, output = targets(batch, _NAME), outputs[self.output]
        samples = output.shape[1 if self.time_first else 0] if output.ndim == 3 else -1
        if (
            labels.is_floating_point()
            or labels.ndim != 2
            or len(labels) != samples
            or not output.is_floating_point()
        ):
            raise misfit(
                _NAME,
                self.output,
                described(output, labels),
                "float scores (batch, time, classes) or (time, batch, classes), and whole numbers "
                "(batch, length), padded with -1",
                "set [finetune] loss_output to the output with the scores of each time step",
            )
        self._check_classes(labels, output.shape[2])
        self._check_lengths(labels, self._steps(self._time_first(output), batch))

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def _check_length_of(self, batch: Batch) -> None:
        padded = ", ".join(map(repr, batch.lengths)) or "none is padded"
        if self.length_of is None and len(batch.lengths) > 1:
            raise UsageError(
                "several inputs are padded, and each may decide how many time steps a sample has",
                where="[finetune] ctc_input",
                got="nothing",
                expected=f"one of {padded}",
            )
        if self.length_of is not None and self.length_of not in batch.lengths:
            raise UsageError(
                "this input is not padded, so it does not tell how many time steps a sample has",
                where="[finetune] ctc_input",
                got=self.length_of,
                expected=padded,
                remedy="name it in [data] padding, or leave ctc_input out",
            )

    def _check_classes(self, labels: Tensor, classes: int) -> None:
        if self.blank >= classes:
            raise UsageError(
                "the blank is no class of the output",
                where="[finetune] ctc_blank",
                got=self.blank,
                expected=f"0 to {classes - 1}, the classes of output {self.output!r}",
            )
        taken = sorted(set(labels[labels >= 0].tolist()))
        wrong = [value for value in taken if value >= classes or value == self.blank]
        if wrong:
            raise misfit(
                _NAME,
                self.output,
                f"targets that hold {', '.join(map(str, wrong[:8]))}",
                f"classes below {classes}, without the blank, {self.blank}",
                "number the targets as the model's outputs are, or set [finetune] ctc_blank",
            )
        lengths = (labels >= 0).sum(dim=1)
        inside = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
        if not torch.equal(inside, labels >= 0):
            raise misfit(
                _NAME,
                self.output,
                "a target with padding before its end",
                "classes first, then -1 up to the longest target",
                "move the padding to the end",
            )

    def _check_lengths(self, labels: Tensor, steps: Tensor) -> None:
        # Between equal neighbours there has to be a blank (Graves et al., section 3.1).
        repeated = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)).sum(dim=1)
        needed = (labels >= 0).sum(dim=1) + repeated
        short = torch.nonzero(needed > steps)
        if len(short):
            row = int(short[0])
            raise misfit(
                _NAME,
                self.output,
                f"a target that needs {int(needed[row])} time steps, in a sample with "
                f"{int(steps[row])}",
                "at least as many time steps as the target has classes, and one more between equal "
                "neighbours",
                "leave such samples out",
            )

    def _time_first(self, output: Tensor) -> Tensor:
        """Log-probabilities `(time, batch, classes)`."""
        scores = self.ending.log_scores(output).log_softmax(dim=2)
        return scores if self.time_first else scores.transpose(0, 1)

    def _steps(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Time steps of each sample, `(batch,)`: its share of the padded input, rounded up."""
        steps, samples = log_probs.shape[:2]
        if not batch.lengths:
            return torch.full((samples,), steps, dtype=torch.int64, device=log_probs.device)
        name = self.length_of or next(iter(batch.lengths))
        lengths = batch.lengths[name]
        padded = padded_length(batch.inputs[name], int(lengths.max()))
        return (lengths * steps + padded - 1).div(padded, rounding_mode="floor").clamp(1, steps)


def padded_length(tensor: Tensor, longest: int) -> int:
    """Length of the padded axis of an input: the shortest that holds the longest sample."""
    return min((size for size in tensor.shape[1:] if size >= longest), default=longest)

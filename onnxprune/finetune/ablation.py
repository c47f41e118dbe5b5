"""What a model loses without some of its weights, before they are taken from it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnxprune.finetune.batch import Batch
from onnxprune.finetune.batches import BatchSource
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.step import Stepper
from onnxprune.sparsity import local_part

_LEAST_LOSS = 1e-3
"""Changes are taken relative to at least this, so that a loss near zero has no huge ones."""


@dataclass(frozen=True)
class Change:
    """What zeroing some weights changes, on one batch in evaluation mode.

    Attributes:
        loss: Rise of the loss as a share of it; negative where it falls.
        outputs: Largest change of an output, relative to the largest absolute output.
    """

    loss: float
    outputs: float


class Ablation:
    """Measures a model with and without some of its weights, on the same training samples.

    Args:
        stepper: Whose model and objective are used; the weights are put back afterwards.
        batches: Of whose samples the first batch is used.
        ranks: Every process measures on its part of the batch.
    """

    def __init__(self, stepper: Stepper, batches: BatchSource, ranks: Ranks) -> None:
        self._stepper = stepper
        self._batches = batches
        self._ranks = ranks

    def loss_change(self, removed: Mapping[str, Tensor]) -> float:
        """Rise of the loss without some weights, as a share of it.

        Args:
            removed: Tensor name -> boolean tensor (or this rank's part), True for those to zero.
        """
        return self.measure(removed).loss

    def measure(self, removed: Mapping[str, Tensor]) -> Change:
        """Loss and outputs without some weights, beside those with them; see `loss_change`."""
        with_them = self._pass()
        with self._zeroed(removed):
            without = self._pass()
        loss = with_them[0]
        scale = max((float(t.abs().max()) for t in with_them[1] if t.numel()), default=0.0)
        most = max(
            (
                float((new - old).abs().max())
                for old, new in zip(with_them[1], without[1], strict=True)
                if old.numel()
            ),
            default=0.0,
        )
        return Change(
            (without[0] - loss) / max(abs(loss), _LEAST_LOSS), most / scale if scale else 0
        )

    @cached_property
    def _batch(self) -> Batch:
        return next(self._batches.in_order(self._batches.batch_size))

    @torch.no_grad()
    def _pass(self) -> tuple[float, list[Tensor]]:
        stepper, batch = self._stepper, self._batch
        stepper.model.eval()
        total = torch.zeros((), device=stepper.device)
        outputs: list[Tensor] = []
        with stepper.accelerator.autocast():
            for part in batch.split(stepper.micro_batch or len(batch)):
                moved = part.to(stepper.device)
                teacher = None
                if stepper.teacher is not None:
                    teacher = stepper.teacher_outputs(stepper.teacher, moved)
                given = stepper.forward(stepper.model, moved)
                total += stepper.objective(given, moved, teacher) * (len(part) / batch.global_size)
                outputs += [t.float() for t in given.values() if t.is_floating_point()]
        return float(self._ranks.sum(total)), outputs

    @contextmanager
    def _zeroed(self, removed: Mapping[str, Tensor]) -> Iterator[None]:
        parameters = self._stepper.masks.parameters
        parts = {name: local_part(parameters[name].detach()) for name in removed}
        kept = {name: parts[name][gone].clone() for name, gone in removed.items()}
        with torch.no_grad():
            for name, gone in removed.items():
                parts[name].masked_fill_(gone, 0.0)
        try:
            yield
        finally:
            for name, gone in removed.items():
                parts[name][gone] = kept[name]

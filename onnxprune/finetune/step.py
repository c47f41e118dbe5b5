"""One optimizer step: passes over the parts of a batch, masks, update."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from onnxprune.errors import TrainingError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.engine import (
    gradients_unchanged,
    has_partial_gradients,
    in_memory_format,
    placed,
    uses_channels_last,
)
from onnxprune.finetune.losses import Objective
from onnxprune.finetune.optim import make_optimizer, sharpness_aware
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.sync_batchnorm import synchronise_batchnorm
from onnxprune.finetune.teachers import Teacher
from onnxprune.recipe import FinetuneTable
from onnxprune.sparsity import MaskSet


class Stepper:
    """Takes optimizer steps on a module.

    Attributes:
        module: The bare model, on its device.
        model: What forward passes go through: distributed, compiled, in mixed precision.
        optimizer: The bare optimizer.
        average: Moving average of the module; None without one.
        micro_batch: Samples a forward pass on this process; None for the whole of its batch.

    Args:
        module: Trained in place. Its forward takes inputs by name.
        output_names: Names of what it returns, in order.
        parameters: Trainable parameters by ONNX name.
        masks: Masks of those that are pruned.
        objective: The loss.
        teacher: The dense model's outputs; None without distillation.
        settings: The recipe's `[finetune]`.
        accelerator: Device, precision and process group.
        ranks: The processes.
        graph_batch: The only batch size that the graph takes, None for any. BatchNorm then keeps
            its statistics, which are no longer a batch's.
        message: Is told what the user should know.
        sample: A small batch, which several processes need to find out what gets no gradient.
        sharded: Whether the module's parameters are spread over the processes already.
    """

    def __init__(
        self,
        module: nn.Module,
        output_names: list[str],
        parameters: Mapping[str, nn.Parameter],
        masks: MaskSet,
        objective: Objective,
        teacher: Teacher | None,
        settings: FinetuneTable,
        accelerator: Accelerator,
        ranks: Ranks,
        graph_batch: int | None,
        message: Callable[[str], None],
        sample: Batch | None = None,
        sharded: bool = False,
    ) -> None:
        self.device = accelerator.device
        self.channels_last = uses_channels_last(module, settings)
        self.module = module if sharded else placed(module, settings, self.device)
        self.output_names = output_names
        self.parameters = parameters
        self.masks = masks
        self.objective = objective
        self.teacher = teacher
        self.settings = settings
        self.accelerator = accelerator
        self.ranks = ranks
        self.graph_batch = graph_batch
        self.micro_batch = graph_batch or settings.micro_batch
        self._message = message
        self.optimizer = make_optimizer(parameters, settings)
        self._decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self._prepared = accelerator.prepare_optimizer(self.optimizer)
        self._sam = sharpness_aware(self.optimizer, settings.sam_rho) if settings.sam_rho else None
        self.average = self._averaged() if settings.ema else None
        self.sharded = sharded
        self.model: nn.Module = self.module
        if sample is not None:
            self._prepare_exchange(sample)
        compiled = torch.compile(self.module) if settings.compile else self.module
        # Sharded parameters exchange their gradients themselves.
        self.model = accelerator.prepare_model(compiled, evaluation_mode=sharded)

    def _prepare_exchange(self, sample: Batch) -> None:
        """What processes that train together have to agree on before the first step."""
        if self.settings.sync_batchnorm:
            synchronise_batchnorm(self.module, self.ranks)
        if self.sharded:
            return
        partial = has_partial_gradients(self.module, lambda: self.loss(sample).backward())
        if self.ranks.any(partial):
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=True
            )

    def _averaged(self) -> AveragedModel:
        average = get_ema_multi_avg_fn(self.settings.ema)
        return AveragedModel(self.module, multi_avg_fn=average)

    def step(self, batch: Batch, lr: float, decay_factor: float = 1.0) -> Tensor:
        """One update on this process's part of a batch.

        Args:
            batch: The batch, or this process's part of it.
            lr: Learning rate.
            decay_factor: Factor on the weight decay of every tensor.

        Returns:
            This process's share of the batch's mean loss, a scalar on the device; the shares of all
            processes add up to the mean.

        Raises:
            TrainingError: The device is out of memory even for single samples.
        """
        for group, decay in zip(self.optimizer.param_groups, self._decays, strict=True):
            group["lr"], group["weight_decay"] = lr, decay * decay_factor
        loss = self._gradients(batch)
        self._finish_gradients()
        if self._sam is None:
            self._prepared.step()
        else:
            self._sam.first_step(zero_grad=True)
            self._gradients(batch)
            self._finish_gradients()
            self._sam.second_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masks.mask_weights()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return loss

    def _finish_gradients(self) -> None:
        """Gradients as the optimizer gets them: unscaled, masked and clipped."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self._prepared)
        self.masks.mask_gradients()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)

    def _gradients(self, batch: Batch) -> Tensor:
        """Add up the gradients over the batch."""
        return self._fitting(self._accumulate, batch)

    def _fitting(self, work: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Do something with a batch, in smaller parts where memory runs out."""
        while True:
            try:
                return work(batch)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            self._halve(len(batch), reason)

    def _accumulate(self, batch: Batch) -> Tensor:
        parts = batch.split(self._part_size(len(batch)))
        self._train_mode(min(len(part) for part in parts))
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            with self._synchronised(last=number == len(parts)):
                share = len(part) / batch.global_size
                loss = self.loss(part)
                # Distributed training averages gradients over processes; this makes it a sum.
                self.accelerator.backward(loss * (share * self.ranks.world))
            total += loss.detach() * share
        return total

    def _part_size(self, samples: int) -> int:
        """Samples a pass; parts are of like size, so that BatchNorm sees like batches."""
        if self.graph_batch is not None:
            return self.graph_batch
        passes = math.ceil(samples / (self.micro_batch or samples))
        return math.ceil(samples / passes)

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients once a step, in its last pass."""
        if last or self.ranks.world == 1 or self.sharded:
            return nullcontext()
        return self.accelerator.no_sync(self.model)

    def _halve(self, samples: int, reason: str) -> None:
        size = min(self.micro_batch or samples, samples)
        self.optimizer.zero_grad(set_to_none=True)
        if self.graph_batch is not None or size == 1 or self.ranks.world > 1:
            raise TrainingError(
                "the device is out of memory",
                got=f"{reason}, with {size} samples a pass",
                remedy="lower [finetune] micro_batch, or use --device cpu; continue with --resume",
            )
        self.micro_batch = (size + 1) // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._message(
            f"the device is out of memory: {self.micro_batch} samples pass at a time from now on, "
            "and gradients are accumulated over the batch"
        )

    def _train_mode(self, samples: int) -> None:
        """Training mode; BatchNorm keeps its statistics where a sample would be its own batch."""
        self.model.train()
        if self.graph_batch is not None or samples == 1:
            for module in self.module.modules():
                if hasattr(module, "running_mean"):
                    module.eval()

    def loss(self, batch: Batch) -> Tensor:
        """The objective on a batch that may still lie on the CPU."""
        batch = batch.to(self.device)
        return self._objective(self.forward(self.model, batch), batch)

    def _objective(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        teacher = None if self.teacher is None else self.teacher_outputs(self.teacher, batch)
        return self.objective(outputs, batch, teacher)

    def uninformed_loss(self, batch: Batch) -> Tensor:
        """What a model loses on a batch, and what it loses where it knows nothing.

        For the latter each sample is given the outputs of another one: answers as sure as those of
        this model, which have nothing to do with the question. Statistics and random state stay.

        Args:
            batch: The batch, or this process's part of it.

        Returns:
            This process's shares of both mean losses, `(2,)`, on the device.

        Raises:
            TrainingError: The device is out of memory even for single samples.
        """
        with gradients_unchanged(self.module), torch.no_grad(), self.accelerator.autocast():
            return self._fitting(self._exchanged, batch)

    def _exchanged(self, batch: Batch) -> Tensor:
        """See `uninformed_loss`; the bare model, which need not be compiled for a single pass."""
        size = self._part_size(len(batch))
        parts, others = batch.split(size), batch.reversed().split(size)
        self._train_mode(min(len(part) for part in parts))
        losses = torch.zeros(2, device=self.device)
        for part, other in zip(parts, others, strict=True):
            asked = part.to(self.device), other.to(self.device)
            outputs = self.forward(self.module, asked[0])
            found = torch.stack([self._objective(outputs, samples).float() for samples in asked])
            losses += found * (len(part) / batch.global_size)
        return losses

    def teacher_outputs(self, teacher: Teacher, batch: Batch) -> dict[str, Tensor]:
        """The dense model's outputs on the device."""
        return in_memory_format(teacher(batch), self.device, channels_last=False)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a model by name, one row a sample."""
        whole = batch.padded(self.graph_batch or 0)
        inputs = in_memory_format(whole.inputs, self.device, self.channels_last)
        outputs = named_outputs(model(**inputs), self.output_names)
        if len(whole) == len(batch):
            return outputs
        return {name: tensor[: len(batch)] for name, tensor in outputs.items()}


def named_outputs(outputs: object, names: list[str]) -> dict[str, Tensor]:
    """A tensor or tuple of tensors as a dictionary by name."""
    values = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return dict(zip(names, values, strict=True))

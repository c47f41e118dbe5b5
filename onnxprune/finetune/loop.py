"""The training loop: prune at the planned steps, train the kept weights, keep the masks."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from onnxprune.errors import Interrupted, TrainingError, UsageError
from onnxprune.finetune.batches import Batch, BatchSource
from onnxprune.finetune.checkpoint import (
    Checkpoint,
    CheckpointStore,
    optimizer_tensors,
    restore_optimizer,
)
from onnxprune.finetune.losses import Objective, accuracy_metrics
from onnxprune.finetune.optim import learning_rate, make_optimizer
from onnxprune.finetune.teachers import Teacher
from onnxprune.recipe import FinetuneTable
from onnxprune.sparsity import MaskSet


class Observer(Protocol):
    """Is told what happens in a run."""

    def record(self, entry: dict[str, Any]) -> None:
        """One line of the run's log; `entry["kind"]` is `train`, `event` or `eval`."""
        ...

    def message(self, text: str) -> None:
        """Something that the user should know."""
        ...


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimizer steps.

    Attributes:
        total_steps: Steps of the whole run, at least 0.
        steps_per_epoch: At least 1.
        events: Step -> number of masked weights from then on, before that step's update.
        evaluations: Steps after which accuracy is measured.
    """

    total_steps: int
    steps_per_epoch: int
    events: dict[int, int]
    evaluations: frozenset[int] = frozenset()


@dataclass
class Trainer:
    """Everything that one fine-tuning run consists of.

    Attributes:
        module: The imported model; trained in place. Its forward takes inputs by name.
        output_names: Names of what it returns, in order.
        parameters: Trainable parameters by name.
        masks: Masks of those that are pruned.
        choose: Number of zeros -> masks of all pruned tensors, from their current values.
        batches: Training data.
        objective: The loss.
        teacher: The dense model's outputs; None without distillation.
        settings: The recipe's `[finetune]`.
        plan: When things happen.
        observer: Is told of it.
        evaluation: Batches for measurements on the way, and their teacher.
        checkpoints: Where state is kept; None keeps none.
        stop: Whether to stop after the current step; the run can be resumed then.
        micro_batch: The only batch size that the model takes, None for any. Gradients of the parts
            of a batch add up, and BatchNorm keeps its statistics, which are no longer a batch's.
    """

    module: nn.Module
    output_names: list[str]
    parameters: dict[str, nn.Parameter]
    masks: MaskSet
    choose: Callable[[int], dict[str, Tensor]]
    batches: BatchSource
    objective: Objective
    teacher: Teacher | None
    settings: FinetuneTable
    plan: Plan
    observer: Observer
    evaluation: Callable[[], Iterator[Batch]] | None = None
    evaluation_teacher: Teacher | None = None
    checkpoints: CheckpointStore | None = None
    stop: Callable[[], bool] = lambda: False
    micro_batch: int | None = None
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.accelerator = make_accelerator(self.settings)
        self.device = self.accelerator.device
        self.optimizer = make_optimizer(self.parameters, self.settings)
        self.model = self.accelerator.prepare_model(self.module)
        self._losses = torch.zeros((), device=self.device)
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Load the newest whole checkpoint, if there is one; say which were damaged."""
        if self.checkpoints is None:
            return False
        checkpoint, damaged = self.checkpoints.latest()
        for line in damaged:
            self.observer.message(line)
        if checkpoint is None:
            return False
        tensors = checkpoint.tensors
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(tensors[f"model.{name}"])
        restore_optimizer(self.optimizer, dict(self.module.named_parameters()), tensors)
        masks = {name: tensors[f"mask.{name}"] for name in self.masks.masks}
        self.masks.update(masks)
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"])
        self.step = checkpoint.step
        return True

    def fit(self) -> None:
        """Train from the current step to the end of the plan.

        Raises:
            Interrupted: `stop` said so; a checkpoint was written.
            TrainingError: The loss is not finite.
        """
        batches = self.batches.shuffled(self.step)
        while self.step < self.plan.total_steps:
            self._prune_if_due()
            started = time.monotonic()
            batch = next(batches)
            loss, lr = self._train_step(batch)
            self.step += 1
            self._log(len(batch), loss, lr, time.monotonic() - started)
            if self.step in self.plan.evaluations:
                self._evaluate()
            if self.stop():
                self.save()
                raise Interrupted(
                    f"interrupted after step {self.step} of {self.plan.total_steps}",
                    remedy="continue with --resume",
                )
            if time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds:
                self.save()
        self._prune_if_due()

    def save(self) -> None:
        """Write a checkpoint of the current step.

        Raises:
            TrainingError: A loss was not finite; the last checkpoint stays as it was.
            OutputError: It cannot be written.
        """
        if self.checkpoints is None:
            return
        self._check_losses()
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in self.module.named_parameters()
        }
        tensors = {f"model.{name}": tensor for name, tensor in self._state().items()}
        tensors.update(optimizer_tensors(self.optimizer, names))
        tensors.update({f"mask.{name}": mask for name, mask in self.masks.masks.items()})
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        self.checkpoints.save(Checkpoint(self.step, tensors, {}))
        self._saved_at = time.monotonic()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs of the model by name, one row a sample."""
        whole = batch.padded(self.micro_batch or 0)
        outputs = named_outputs(self.model(**whole.inputs), self.output_names)
        if len(whole) == len(batch):
            return outputs
        return {name: tensor[: len(batch)] for name, tensor in outputs.items()}

    def _state(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    @property
    def _progress(self) -> float:
        return self.step / max(1, self.plan.total_steps)

    def _prune_if_due(self) -> None:
        zeros = self.plan.events.get(self.step)
        if zeros is None or zeros <= self.masks.zeros:
            return
        before = self.masks.zeros
        self.masks.update(self.choose(zeros), self.optimizer)
        self.observer.record(
            {
                "kind": "event",
                "step": self.step,
                "progress": self._progress,
                "target_sparsity": zeros / self.masks.total,
                "sparsity": self.masks.sparsity,
                "pruned": self.masks.zeros - before,
            }
        )

    def _train_step(self, batch: Batch) -> tuple[Tensor, float]:
        """One update; returns the mean loss of the batch and the learning rate."""
        lr = learning_rate(self.settings, (self.step + 0.5) / self.plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._train_mode(len(batch))
        total = torch.zeros((), device=self.device)
        for part in batch.split(self.micro_batch or len(batch)):
            loss = self.loss(part) * (len(part) / len(batch))
            self.accelerator.backward(loss)
            total += loss.detach()
        self.masks.mask_gradients()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masks.mask_weights()
        self._losses += total
        return total, lr

    def _train_mode(self, samples: int) -> None:
        """Training mode; BatchNorm keeps its statistics where a sample would be its own batch."""
        self.model.train()
        if self.micro_batch is not None or samples == 1:
            for module in self.module.modules():
                if hasattr(module, "running_mean"):
                    module.eval()

    def loss(self, batch: Batch) -> Tensor:
        """The objective on a batch that may still lie on the CPU."""
        batch = batch.to(self.device)
        teacher = None if self.teacher is None else _on(self.device, self.teacher(batch))
        return self.objective(self.forward(batch), batch, teacher)

    def _log(self, samples: int, loss: Tensor, lr: float, seconds: float) -> None:
        every = max(1, self.plan.total_steps // 2000)
        if self.step % every and self.step != self.plan.total_steps:
            return
        self._check_losses()
        self.observer.record(
            {
                "kind": "train",
                "step": self.step,
                "epoch": self.step / self.plan.steps_per_epoch,
                "progress": self._progress,
                "loss": float(loss),
                "lr": lr,
                "sparsity": self.masks.sparsity,
                "images_per_s": samples / max(seconds, 1e-9),
            }
        )

    def _check_losses(self) -> None:
        """Look at the losses since the last look, which on a GPU means to wait for them."""
        if not torch.isfinite(self._losses):
            raise TrainingError(
                "training diverged: the loss is not finite",
                where=f"step {self.step} of {self.plan.total_steps}",
                got=float(self._losses),
                remedy="lower [finetune] lr, or set clip_norm; the last checkpoint is kept",
            )
        self._losses.zero_()

    def _evaluate(self) -> None:
        if self.evaluation is None:
            return
        sums: dict[str, float] = {}
        count = 0
        self.model.eval()
        with torch.no_grad():
            for batch in (found.to(self.device) for found in self.evaluation()):
                teacher = self.evaluation_teacher
                expected = None if teacher is None else _on(self.device, teacher(batch))
                for part, wanted in _parts(batch, expected, self.micro_batch):
                    outputs = self.forward(part)
                    entry = accuracy_metrics(outputs, part, wanted, self.objective)
                    for key, value in entry.items():
                        sums[key] = sums.get(key, 0.0) + value
                count += len(batch)
        self.observer.record(
            {
                "kind": "eval",
                "step": self.step,
                "epoch": self.step / self.plan.steps_per_epoch,
                "progress": self._progress,
                "sparsity": self.masks.sparsity,
                "metrics": {name: total / count for name, total in sums.items()},
            }
        )


def named_outputs(outputs: object, names: list[str]) -> dict[str, Tensor]:
    """A tensor or tuple of tensors as a dictionary by name."""
    values = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return dict(zip(names, values, strict=True))


def make_accelerator(settings: FinetuneTable) -> Accelerator:
    """The accelerator for `[finetune] device` and `precision`.

    Raises:
        UsageError: CUDA is asked for and absent.
    """
    check_device(settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
    )


def check_device(settings: FinetuneTable) -> None:
    """Refuse a device that is not there.

    Raises:
        UsageError: CUDA is asked for and absent.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA device can be used",
            got="device = 'cuda'",
            remedy="use --device cpu, or install a driver and a CUDA build of PyTorch",
        )


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def _parts(
    batch: Batch, teacher: dict[str, Tensor] | None, size: int | None
) -> Iterator[tuple[Batch, dict[str, Tensor] | None]]:
    size = size or len(batch)
    for number, part in enumerate(batch.split(size)):
        rows = slice(number * size, (number + 1) * size)
        expected = None if teacher is None else {n: t[rows] for n, t in teacher.items()}
        yield part, expected

"""The training loop: prune at the planned steps, train the kept weights, keep the masks."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from onnxprune.errors import Interrupted, OnnxpruneError, OutputError, TrainingError
from onnxprune.finetune.ablation import Ablation
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.batches import BatchSource
from onnxprune.finetune.checkpoint import Checkpoint, CheckpointStore
from onnxprune.finetune.divergence import LossWatch
from onnxprune.finetune.losses import Objective
from onnxprune.finetune.measurement import Measurement
from onnxprune.finetune.optim import learning_rate
from onnxprune.finetune.plan import Plan, observation_steps
from onnxprune.finetune.pruner import Event, Pruner
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.state import TrainingState
from onnxprune.finetune.step import Stepper
from onnxprune.finetune.teachers import Teacher
from onnxprune.recipe import FinetuneTable
from onnxprune.sparsity import MaskSet

LOGGED_STEPS = 500
"""A run logs at most about twice this many training entries; a GPU is waited for at each."""


class Observer(Protocol):
    """Is told what happens in a run; with several processes, only the first one's is."""

    def record(self, entry: dict[str, Any]) -> None:
        """One line of the run's log, of kind `train`, `event`, `wait`, `shed`, `eval` or
        `rollback`.
        """
        ...

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        """The run goes on from an earlier step: entries after it will be recorded again."""
        ...

    def message(self, text: str) -> None:
        """Something that the user should know."""
        ...


@dataclass
class Trainer:
    """Everything that one fine-tuning run consists of.

    Attributes:
        module: The imported model; trained in place. Its forward takes inputs by name.
        output_names: Names of what it returns, in order.
        parameters: Trainable parameters by ONNX name.
        masks: Masks of those that are pruned.
        pruner: When weights go, and which.
        batches: Training data.
        objective: The loss.
        teacher: The dense model's outputs; None without distillation.
        settings: The recipe's `[finetune]`.
        plan: When things happen.
        observer: Is told of it.
        accelerator: Device, precision and process group.
        ranks: The processes that train together.
        evaluation: Batches for measurements on the way, and their teacher.
        checkpoints: Where state is kept; None keeps none, and rolls nothing back.
        stop: Whether to stop after the current step; the run can be resumed then.
        graph_batch: The only batch size that the model takes, None for any. Gradients of the parts
            of a batch add up, and BatchNorm keeps its statistics, which are no longer a batch's.
        loss_scale: Least loss of a model that knows nothing, for telling divergence.
        sharded: Whether the parameters are spread over the processes.
        step: Optimizer steps done.
    """

    module: nn.Module
    output_names: list[str]
    parameters: dict[str, nn.Parameter]
    masks: MaskSet
    pruner: Pruner
    batches: BatchSource
    objective: Objective
    teacher: Teacher | None
    settings: FinetuneTable
    plan: Plan
    observer: Observer
    accelerator: Accelerator
    ranks: Ranks
    evaluation: Callable[[], Iterator[Batch]] | None = None
    evaluation_teacher: Teacher | None = None
    checkpoints: CheckpointStore | None = None
    stop: Callable[[], bool] = lambda: False
    graph_batch: int | None = None
    loss_scale: float = 1.0
    sharded: bool = False
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.stepper = Stepper(
            self.module,
            self.output_names,
            self.parameters,
            self.masks,
            self.objective,
            self.teacher,
            self.settings,
            self.accelerator,
            self.ranks,
            self.graph_batch,
            self._message,
            next(self.batches.in_order(2)) if self.ranks.world > 1 else None,
            self.sharded,
        )
        self.state = TrainingState(
            self.module,
            self.parameters,
            self.stepper.optimizer,
            self.masks,
            self.pruner.monitor,
            self.stepper.average,
            self.ranks,
            self.settings.seed,
            self.sharded,
        )
        self.measurement = Measurement(self.stepper, self.objective, self.evaluation_teacher)
        self.ablation = Ablation(self.stepper, self.batches, self.ranks)
        self.watch = LossWatch(self.settings.explosion, self.loss_scale)
        self.lr_scale = 1.0
        self.rollbacks = 0
        self._observations = observation_steps(self.plan)
        self._went_back_to: int | None = None
        self._saved_at = time.monotonic()
        self._start_counting()

    def resume(self) -> bool:
        """Load the newest whole checkpoint, if there is one; say which were damaged.

        Raises:
            CheckpointError: There are checkpoints, but none that can be used.
        """
        found = self._restore_latest()
        if found is None:
            return False
        self.micro_batch = found["micro_batch"]
        if self.ranks.is_main:
            self.observer.rewound(self.step, self.masks.sparsity, self.rollbacks)
        return True

    def fit(self) -> None:
        """Train from the current step to the end of the plan.

        Raises:
            Interrupted: `stop` said so; a checkpoint was written.
            TrainingError: Training diverged again and again, or memory ran out.
            DataError: Data are damaged or gone; a checkpoint was written.
            OutputError: A checkpoint cannot be written; older ones stay.
        """
        if self.step == 0 and self.plan.total_steps:
            self._save_the_start()
        while True:
            try:
                self._fit()
                self._check_weights()
                return
            except _DivergedError as error:
                diverged = error
            self._roll_back(diverged)

    def _save_the_start(self) -> None:
        """A run that diverges before its first checkpoint goes back to here."""
        if not self.state.finite():
            raise TrainingError(
                "a weight is not finite before training has begun",
                remedy="start from a sound model",
            )
        self.save()

    def _fit(self) -> None:
        batches = self.batches.shuffled(self.step)
        self._start_counting()
        while self.step < self.plan.total_steps:
            batch = self._next(batches)
            self._measure_scale(batch)
            self._prune_if_due()
            self._restart_if_due()
            loss = self.stepper.step(batch, self._learning_rate(), self._decay_factor())
            self.step += 1
            self._count(batch, loss)
            self._observe_if_due()
            if self.step % self._log_every == 0 or self.step == self.plan.total_steps:
                self._log()
            if self.step in self.plan.evaluations:
                self._evaluate()
            self._stop_or_save()
        self._prune_if_due()

    def _measure_scale(self, batch: Batch) -> None:
        """Once in a run, before anything is pruned or trained: how high its losses may go."""
        if self.watch.measured is None:
            shares = self.stepper.uninformed_loss(batch)
            finite = [loss for loss in self.ranks.sum(shares).tolist() if math.isfinite(loss)]
            self.watch.measured = max(finite, default=0.0)

    def save(self) -> None:
        """Write a checkpoint of the current step; on all ranks at once.

        Raises:
            OutputError: It cannot be written.
        """
        if self.checkpoints is None:
            return
        store = self.checkpoints
        tensors = self.state.tensors()
        checkpoint = Checkpoint(self.step, tensors, self._facts(), self.rollbacks)
        self.ranks.run_on_main(lambda: store.save(checkpoint))
        self._went_back_to = None
        self._saved_at = time.monotonic()

    def finish(self) -> nn.Module:
        """Save the end of the run, and give the module with the weights that it ends with."""
        if self.plan.total_steps:
            self.save()
        self.accelerator.unwrap_model(
            self.stepper.model, keep_fp32_wrapper=False, keep_torch_compile=False
        )
        if self.stepper.average is not None:
            averages = dict(self.stepper.average.module.named_parameters())
            with torch.no_grad():
                for name, parameter in self.module.named_parameters():
                    parameter.copy_(averages[name])
        return self.module

    @property
    def micro_batch(self) -> int | None:
        """Samples that pass at a time on each process; None for the whole batch."""
        return self.stepper.micro_batch

    @micro_batch.setter
    def micro_batch(self, samples: int | None) -> None:
        self.stepper.micro_batch = samples

    @property
    def _progress(self) -> float:
        return self.step / max(1, self.plan.total_steps)

    @property
    def _log_every(self) -> int:
        return max(1, self.plan.total_steps // LOGGED_STEPS)

    def _learning_rate(self) -> float:
        controller = self.pruner.controller
        if controller is None:
            progress = self.plan.course(self.step).progress(self.step + 0.5)
        else:
            warmup, total = self.settings.warmup, self.plan.total_steps
            progress = controller.progress(self.step + 0.5, total, warmup)
        return learning_rate(self.settings, progress) * self.lr_scale

    def _decay_factor(self) -> float:
        controller = self.pruner.controller
        return 1.0 if controller is None else controller.decay_factor()

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; where reading fails, what was trained is saved first."""
        try:
            return next(batches)
        except OnnxpruneError:
            if self.ranks.world == 1:
                self._save_if_sound()
            raise

    def _save_if_sound(self) -> None:
        try:
            self._check_losses()
            self._check_weights()
            self.save()
        except (_DivergedError, OutputError):
            return
        if self.checkpoints is not None:
            self._message(f"step {self.step} is saved; continue with --resume")

    def _prune_if_due(self) -> None:
        if self.pruner.monitor.since is None:
            self.pruner.started(self.step)
        event = self.pruner.event(self.step, self.ablation.loss_change)
        if event is None:
            return
        if event.masks is not None:
            self._prune(event, event.masks)
        if event.put_off:
            self._record("wait", **self._shares(), put_off=event.put_off)

    def _prune(self, event: Event, masks: Mapping[str, Tensor]) -> None:
        before = self.masks.zeros
        self.masks.update(masks, self.stepper.optimizer)
        self._check_masks()
        self._mask_average()
        self.pruner.started(self.step)
        self._record(
            "event",
            **self._shares(),
            pruned=self.masks.zeros - before,
            closed=event.closed,
            harvested=event.harvested,
            waited=event.waited,
            kept=self.masks.kept,
        )

    def _shares(self) -> dict[str, float]:
        """What the schedule asks for from this step on, and what is so."""
        return {
            "target_sparsity": self.plan.events[self.step] / self.masks.total,
            "sparsity": self.masks.sparsity,
        }

    def _observe_if_due(self) -> None:
        """Count shed weights, before the step is saved."""
        if self.step not in self._observations:
            return
        count = self.pruner.observe(self.step)
        self._record(
            "shed",
            since=count.since,
            kept=count.kept,
            shed=count.total,
            shed_relative=count.total_relative,
            tensors={name: number for name, number in count.shed.items() if number},
        )

    def _check_masks(self) -> None:
        """Processes that hold copies must have chosen the same weights."""
        if not self.sharded and not self.ranks.all_same(self.masks.digest()):
            raise TrainingError(
                "the processes chose different weights, so their copies of the model have drifted "
                "apart",
                where=f"step {self.step} of {self.plan.total_steps}",
                remedy="continue with --resume, and please report this",
            )

    def _mask_average(self) -> None:
        if self.stepper.average is not None:
            averages = dict(self.stepper.average.module.named_parameters())
            keys = {id(p): name for name, p in self.module.named_parameters()}
            with torch.no_grad():
                for name, mask in self.masks.masks.items():
                    key = keys[id(self.masks.parameters[name])]
                    averages[key].masked_fill_(~mask, 0.0)

    def _restart_if_due(self) -> None:
        """Begin a course of the learning rate: optimizer state is cleared, weights may go back."""
        if self.step == self.plan.rewind_point and not self.state.rewind:
            self.state.keep_rewinding_point()
        if not self.plan.restarts(self.step):
            return
        self.stepper.optimizer.state.clear()
        if self.plan.rewinds(self.step):
            self.state.go_back()
            self.pruner.started(self.step)

    def _stop_or_save(self) -> None:
        due = time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds
        if self.ranks.world > 1:
            if self.step % self._log_every:
                return
            stopped, due = self.ranks.any(self.stop()), self.ranks.any(due)
        else:
            stopped = self.stop()
        if stopped or due:
            self._check_losses()
            self._check_weights()
            self.save()
        if stopped:
            raise Interrupted(
                f"interrupted after step {self.step} of {self.plan.total_steps}",
                remedy="continue with --resume",
            )

    def _start_counting(self) -> None:
        self._losses = torch.zeros((), device=self.device)
        self._steps = 0
        self._samples = 0
        self._counted_at = time.monotonic()

    def _count(self, batch: Batch, loss: Tensor) -> None:
        self._losses += loss
        self._steps += 1
        self._samples += batch.global_size

    def _log(self) -> None:
        samples, seconds = self._samples, time.monotonic() - self._counted_at
        loss = self._check_losses()
        self._record(
            "train",
            epoch=self.step / self.plan.steps_per_epoch,
            loss=loss,
            lr=self.stepper.optimizer.param_groups[0]["lr"],
            sparsity=self.masks.sparsity,
            images_per_s=samples / max(seconds, 1e-9),
        )

    def _check_losses(self) -> float:
        """Mean loss since the last look, for which a GPU has to be waited for.

        Raises:
            _DivergedError: It is not finite, or explodes.
        """
        if not self._steps:
            return 0.0
        loss = float(self.ranks.sum(self._losses)) / self._steps
        problem = self.watch.problem(loss)
        if problem is not None:
            raise _DivergedError(problem, self.step - 1 if self._steps == 1 else None)
        self._start_counting()
        return loss

    def _check_weights(self) -> None:
        """A loss may be the last finite one: what is saved must be sound itself."""
        if not self.state.finite():
            raise _DivergedError("a weight is not finite")

    def _roll_back(self, diverged: "_DivergedError") -> None:
        """Go back to the last good checkpoint with a lower learning rate."""
        failed_at, rollbacks, lr_scale = self.step, self.rollbacks + 1, self.lr_scale
        if self.checkpoints is None or self.rollbacks >= self.settings.max_rollbacks:
            raise TrainingError(
                "training diverged"
                + (f", also after {self.rollbacks} rollbacks" if self.rollbacks else ""),
                where=f"step {failed_at} of {self.plan.total_steps}",
                got=diverged.reason,
                remedy="lower [finetune] lr, raise warmup, or set clip_norm, in another --run-dir",
            )
        # A state that was gone back to may have been about to diverge when it was saved.
        store = self.checkpoints
        doubtful = [step for step in (self._went_back_to, diverged.state) if step is not None]
        self.ranks.run_on_main(lambda: store.discard(*doubtful))
        self._restore_latest()
        self.rollbacks = rollbacks
        self.lr_scale = lr_scale * self.settings.rollback_lr
        if self.ranks.is_main:
            self.observer.rewound(self.step, self.masks.sparsity, rollbacks - 1)
        self._record(
            "rollback",
            failed_at=failed_at,
            sparsity=self.masks.sparsity,
            reason=diverged.reason,
            lr_scale=self.lr_scale,
        )
        self.save()
        self._went_back_to = self.step
        self._message(
            f"training diverged at step {failed_at} ({diverged.reason}): it goes on from step "
            f"{self.step} with {self.lr_scale:g} times the learning rate"
        )

    def _restore_latest(self) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint and give its facts; None if there is none."""
        store = self.checkpoints
        if store is None:
            return None
        checkpoint: Checkpoint | None = None

        def read() -> tuple[int, dict[str, Any]] | None:
            nonlocal checkpoint
            checkpoint, damaged = store.latest()
            for line in damaged:
                self._message(line)
            return None if checkpoint is None else (checkpoint.step, checkpoint.facts)

        header = self.ranks.run_on_main(read)
        if header is None:
            return None
        self.step, facts = header
        self.state.restore({} if checkpoint is None else checkpoint.tensors, self.step)
        self.lr_scale = float(facts["lr_scale"])
        self.rollbacks = int(facts["rollbacks"])
        self.watch.measured = facts["uninformed_loss"]
        self.pruner.restore(facts["pruner"])
        if facts["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        return facts

    def _facts(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
            "micro_batch": self.micro_batch,
            "uninformed_loss": self.watch.measured,
            "pruner": self.pruner.facts(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _evaluate(self) -> None:
        """Measure on the evaluation batches; every process does, so that none waits."""
        if self.evaluation is None:
            return
        average = self.stepper.average
        model = self.module if average is None else average.module
        metrics = self.measurement.means(model, self.evaluation())
        self._record(
            "eval",
            epoch=self.step / self.plan.steps_per_epoch,
            sparsity=self.masks.sparsity,
            metrics=metrics,
        )

    def _record(self, kind: str, **facts: Any) -> None:
        """A line of the log, with the step that the run is at."""
        if self.ranks.is_main:
            entry = {"kind": kind, "step": self.step, "progress": self._progress}
            self.observer.record(entry | facts)

    def _message(self, text: str) -> None:
        if self.ranks.is_main:
            self.observer.message(text)


class _DivergedError(Exception):
    """The run has to be rolled back.

    Attributes:
        reason: What was noticed.
        state: Step whose weights are at fault already, since a step's loss is that of the weights
            before it; None where that is open.
    """

    def __init__(self, reason: str, state: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.state = state

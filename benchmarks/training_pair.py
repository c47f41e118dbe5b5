"""Our training step beside a hand-written native one: same weights, masks, batch and loss.

All that the benchmarks know of `Trainer` stands here. A step of ours is what the trainer does
between two requests for a batch, so nothing of its loop escapes: batch to device, forward, loss,
backward, masks, clipping, optimizer, and a log entry. Shed weights are counted about 100 times in a
run, which is planned to have 999 steps here.
"""

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from paired import ratio_of_rounds
from torch import Tensor, nn
from torch.onnx import TrainingMode

import onnxprune
from onnxprune.cascade import ShedMonitor
from onnxprune.errors import Interrupted
from onnxprune.finetune import (
    Batch,
    CrossEntropy,
    Distillation,
    Objective,
    Plan,
    Pruner,
    Ranks,
    Trainer,
    make_accelerator,
)
from onnxprune.recipe import DistillTable, FinetuneTable
from onnxprune.run_directory import RunDirectory
from onnxprune.sparsity import Magnitude, MaskSet, select_masks, target_zeros

WARMUP = 3
"""Rounds that are not counted: the pruning event, allocations, and the choice of kernels."""

_MOST_STEPS = 999
"""Length of the planned run: the longest in which the trainer logs at every step; it counts shed
weights at every ninth."""


@dataclass(frozen=True)
class Setting:
    """How a pair is trained.

    Attributes:
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16` (autocast).
        batch: Samples a step.
        size: Height and width of the images, in pixels.
        sparsity: Of the prunable weights, in [0, 1).
        seconds: Longest time for the counted rounds.
        rounds: Most counted rounds.
        seed: Seed of weights, batch and order.
    """

    device: str
    precision: str
    batch: int
    size: int
    sparsity: float = 0.8
    seconds: float = 25.0
    rounds: int = 500
    seed: int = 0

    def finetune(self) -> FinetuneTable:
        """The recipe's table for these steps; both sides clip the gradient."""
        return FinetuneTable(
            batch_size=self.batch,
            lr=1e-4,
            lr_schedule="constant",
            warmup=0.0,
            device=self.device,  # type: ignore[arg-type]
            # On the CPU the native step has PyTorch's own layout, and so has ours.
            channels_last=None if self.device == "cuda" else False,
            precision=self.precision,  # type: ignore[arg-type]
            seed=self.seed,
        )


class Watch:
    """A clock that waits for the device."""

    def __init__(self, device: str) -> None:
        self._wait = torch.cuda.synchronize if device == "cuda" else None

    def now(self) -> float:
        """Seconds, after all work that was handed to the device."""
        if self._wait is not None:
            self._wait()
        return time.perf_counter()


class TimedMasks(MaskSet):
    """Masks that note how long their upkeep takes."""

    def __init__(self, parameters: dict[str, nn.Parameter], watch: Watch) -> None:
        super().__init__(parameters)
        self.watch = watch
        self.seconds = 0.0
        self.ended = watch.now()

    def mask_gradients(self) -> None:
        """See `MaskSet`."""
        started = self.watch.now()
        super().mask_gradients()
        self.seconds += self.watch.now() - started

    def mask_weights(self) -> None:
        """See `MaskSet`."""
        started = self.watch.now()
        super().mask_weights()
        self.ended = self.watch.now()
        self.seconds += self.ended - started


class _Log:
    """The observer of a run: its entries go to the log file of a run directory."""

    def __init__(self, folder: Path) -> None:
        self._run = RunDirectory(folder)

    def record(self, entry: dict[str, Any]) -> None:
        self._run.append(entry)

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        raise AssertionError("nothing is resumed while steps are timed")

    def message(self, text: str) -> None:
        raise AssertionError(f"nothing is to be said while steps are timed: {text}")


class _OneBatch:
    """A batch source that hands out one batch for ever, and calls `turn` before each time."""

    steps_per_epoch = 1

    def __init__(self, batch: Batch, turn: Callable[[], None]) -> None:
        self.batch = batch
        self.batch_size = len(batch)
        self._turn = turn

    def shuffled(self, first_step: int) -> Iterator[Batch]:
        while True:
            self._turn()
            yield self.batch


def run_trainer(
    imported: onnxprune.ImportedModel,
    batch: Batch,
    masks: MaskSet,
    chosen: dict[str, Tensor],
    setting: Setting,
    turn: Callable[[], None],
    done: Callable[[], bool],
) -> None:
    """Train with our trainer on one batch, until `done` says so after a step.

    Args:
        imported: Trained in place.
        batch: On the CPU.
        masks: Masks of the pruned parameters, still all True.
        chosen: The masks that they get before the first step.
        setting: How.
        turn: Called when the trainer asks for a batch, which is between two steps.
        done: Asked after every step.
    """
    parameters = dict(imported.named_parameters())
    zeros = sum(int((~mask).sum()) for mask in chosen.values())
    settings = setting.finetune()
    accelerator = make_accelerator(settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            module=imported,
            output_names=imported.output_names,
            parameters={name: parameters[key] for key, name in imported.tensor_names.items()},
            masks=masks,
            pruner=Pruner(masks, {0: zeros}, lambda *_: chosen, ShedMonitor(0.01)),
            batches=_OneBatch(batch, turn),  # type: ignore[arg-type]
            objective=Objective(
                imported.output_names[0],
                CrossEntropy(imported.output_names[0]),
                Distillation(DistillTable(weight=0.0), ()),
            ),
            teacher=None,
            settings=settings,
            accelerator=accelerator,
            ranks=Ranks(accelerator.device),
            plan=Plan(_MOST_STEPS, steps_per_epoch=1, events={0: zeros}),
            observer=_Log(Path(folder)),
            stop=done,
        )
        try:
            trainer.fit()
        except Interrupted:
            return


@dataclass(frozen=True)
class Pair:
    """A native network, the same one imported, a batch for both, and masks by tensor name."""

    native: nn.Module
    imported: onnxprune.ImportedModel
    batch: Batch
    chosen: dict[str, Tensor]


def make_pair(name: str, setting: Setting) -> Pair:
    """An architecture of torchvision with random weights, and its twin through an ONNX file."""
    torch.manual_seed(setting.seed)
    native = torchvision.models.get_model(name).train()
    batch = random_batch("x", (3, setting.size, setting.size), 1000, setting)
    imported = exported(native, batch.inputs["x"][:2], TrainingMode.TRAINING)
    return Pair(native, imported, batch, magnitude_masks(imported, setting.sparsity))


def random_batch(name: str, shape: tuple[int, ...], classes: int, setting: Setting) -> Batch:
    """Noise with labels, in pinned memory where there is a GPU.

    Args:
        name: Of the input.
        shape: Of a sample.
        classes: Labels are drawn from as many.
        setting: Batch size, device and seed.
    """
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(setting.batch, *shape, generator=generator)
    labels = torch.randint(classes, (setting.batch,), generator=generator)
    if setting.device == "cuda":
        x, labels = x.pin_memory(), labels.pin_memory()
    return Batch(torch.arange(setting.batch), {name: x}, labels)


def exported(native: nn.Module, x: Tensor, mode: TrainingMode) -> onnxprune.ImportedModel:
    """A network after a trip through a file in which nothing is folded or fused.

    Args:
        native: Not changed.
        x: An example of its input.
        mode: `TRAINING` keeps Dropout, and BatchNorm uses the batch's statistics in evaluation
            mode, too; `PRESERVE` follows the network's own mode, and equal parameters are tied.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and keeps parameter names
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            copy.deepcopy(native),  # tracing in training form moves running statistics
            (x,),
            str(path),
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
            training=mode,
            do_constant_folding=False,
        )
        return onnxprune.load(path).train()


def pruned_parameters(imported: onnxprune.ImportedModel) -> dict[str, nn.Parameter]:
    """The parameters that are pruned by default, by tensor name."""
    parameters = dict(imported.named_parameters())
    return {
        name: parameters[key]
        for key, name in imported.tensor_names.items()
        if imported.tensors[name].prunable
    }


def magnitude_masks(imported: onnxprune.ImportedModel, sparsity: float) -> dict[str, Tensor]:
    """Global magnitude masks of the pruned parameters."""
    weights = {name: p.detach() for name, p in pruned_parameters(imported).items()}
    total = sum(weight.numel() for weight in weights.values())
    return select_masks(weights, target_zeros(sparsity, total), Magnitude())


class NativeStep:
    """A training step as one writes it by hand for a native module, masks included."""

    def __init__(self, pair: Pair, setting: Setting) -> None:
        settings = setting.finetune()
        self.device = setting.device
        self.autocast = setting.precision == "bf16"
        self.clip = settings.clip_norm
        self.model = pair.native.to(setting.device).train()
        self.batch = pair.batch
        self.losses: list[float] = []
        parameters = dict(self.model.named_parameters())
        self.weights = [parameters[name].data for name in pair.chosen]
        self.pruned = [parameters[name] for name in pair.chosen]
        self.factors = [mask.to(setting.device).float() for mask in pair.chosen.values()]
        torch._foreach_mul_(self.weights, self.factors)
        groups = [
            {"params": [p for p in parameters.values() if p.ndim >= 2]},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=1e-4, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def __call__(self) -> None:
        """One update, and the loss in a list."""
        assert self.batch.labels is not None
        x = self.batch.inputs["x"].to(self.device, non_blocking=True)
        labels = self.batch.labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            scores = self.model(x)
        loss = F.cross_entropy(scores.float(), labels)
        loss.backward()
        torch._foreach_mul_([p.grad for p in self.pruned], self.factors)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_mul_(self.weights, self.factors)
        self.losses.append(loss.item())


class _Duel:
    """Times our steps and native ones in turns; who goes first in a round is drawn."""

    def __init__(self, native: NativeStep, setting: Setting) -> None:
        self.native_step = native
        self.setting = setting
        self.watch = Watch(setting.device)
        self.ours: list[float] = []
        self.native: list[float] = []
        self._rng = np.random.default_rng(setting.seed)
        self._native_first = False
        self._started: float | None = None
        self._deadline = float("inf")

    def turn(self) -> None:
        """End our step, and run the native one where its turn is."""
        now = self.watch.now()
        if self._started is not None:
            self.ours.append(now - self._started)
            if not self._native_first:
                self._run_native()
        if len(self.ours) == WARMUP:
            self._deadline = time.perf_counter() + self.setting.seconds
        self._native_first = bool(self._rng.integers(2))
        if self._native_first:
            self._run_native()
        self._started = self.watch.now()

    def done(self) -> bool:
        """Whether there are rounds enough, or the time is up."""
        rounds = len(self.ours) - WARMUP
        return rounds >= self.setting.rounds or (
            rounds >= 5 and time.perf_counter() > self._deadline
        )

    def _run_native(self) -> None:
        started = self.watch.now()
        self.native_step()
        self.native.append(self.watch.now() - started)


def compare(name: str, setting: Setting) -> dict[str, Any]:
    """Ratio of our step's time to the native one's, with a bootstrap 95 % interval.

    Raises:
        AssertionError: The two do not hold the same zeros afterwards.
    """
    pair = make_pair(name, setting)
    native = NativeStep(pair, setting)
    duel = _Duel(native, setting)
    masks = MaskSet(pruned_parameters(pair.imported.to(setting.device)))
    run_trainer(pair.imported, pair.batch, masks, pair.chosen, setting, duel.turn, duel.done)
    _check_zeros(pair, masks)
    rounds = len(duel.ours)
    ours, theirs = (1e3 * np.array(t[WARMUP:rounds]) for t in (duel.ours, duel.native))
    ratio = ratio_of_rounds(ours, theirs, setting.seed)
    return {
        "ratio": round(ratio.ratio, 4),
        "low": round(ratio.low, 4),
        "high": round(ratio.high, 4),
        "rounds": len(ours),
        "ours_ms": round(float(np.median(ours)), 3),
        "native_ms": round(float(np.median(theirs)), 3),
        "masked_weights": masks.total,
    }


def _check_zeros(pair: Pair, masks: MaskSet) -> None:
    """Both must have pruned the same, or the comparison says nothing."""
    native = dict(pair.native.named_parameters())
    for name, parameter in masks.parameters.items():
        gone = ~pair.chosen[name].to(parameter.device)
        for weight in (parameter, native[name]):
            assert not weight[gone].any(), f"{name} holds weights that its mask removed"


def upkeep(
    imported: onnxprune.ImportedModel, batch: Batch, setting: Setting, steps: int
) -> dict[str, Any]:
    """What masks and logging cost on average, as a share of a step that is not taken apart.

    Logging is all that follows the masks' last call in a step: looking at the loss, counting shed
    weights, the log entry, and whether to stop or to save. On a GPU the clock waits for the device
    before and after each part, which adds to the parts and not to the step that they are divided
    by.
    """
    imported.to(setting.device)
    chosen = magnitude_masks(imported, setting.sparsity)
    watch = Watch(setting.device)
    marks: list[float] = []
    plain = MaskSet(pruned_parameters(imported))

    def mark() -> None:
        marks.append(watch.now())

    def enough() -> bool:
        return len(marks) > steps + WARMUP

    run_trainer(imported, batch, plain, chosen, setting, mark, enough)
    whole = np.diff(marks)[WARMUP:]
    timed = TimedMasks(pruned_parameters(imported), watch)
    masking: list[float] = []
    logging: list[float] = []

    def collect() -> None:
        logging.append(watch.now() - timed.ended)
        masking.append(timed.seconds)
        timed.seconds = 0.0

    run_trainer(
        imported, batch, timed, chosen, setting, collect, lambda: len(masking) > steps + WARMUP
    )
    step = float(np.mean(whole))
    parts = [float(np.mean(part[WARMUP + 1 :])) for part in (masking, logging)]
    return {
        "masked_weights": plain.total,
        "step_s": step,
        "masks_s": parts[0],
        "logging_s": parts[1],
        "share_of_step": sum(parts) / step,
    }

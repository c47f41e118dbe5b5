"""A trainer for a job: model, data, objective, dense outputs and pruning put together."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from onnxprune.calibration import Augmentation, Samples, shuffled_order, subset
from onnxprune.cascade import Controller, Foremost, Policy, ShedMonitor, courses_of
from onnxprune.cascade.controller import union
from onnxprune.closing import ModelClosure
from onnxprune.corrupt import CorruptSamples
from onnxprune.dense_outputs import DenseModel, only_batch
from onnxprune.finetune import (
    BatchSource,
    CheckpointStore,
    Close,
    CrossEntropy,
    Objective,
    Observer,
    Plan,
    Pruner,
    Ranks,
    Teacher,
    Trainer,
    placed,
    rank_seed,
    shard_parameters,
)
from onnxprune.importer import ImportedModel
from onnxprune.job import Job
from onnxprune.learning import make_objective
from onnxprune.recipe import Recipe
from onnxprune.sparsity import (
    Magnitude,
    MaskSet,
    RandomScore,
    Score,
    choose_masks,
    local_part,
    select_masks,
    select_replicated_masks,
)
from onnxprune.sparsity.shards import Whole, counts_before


@contextmanager
def deterministic(recipe: Recipe, rank: int, device: torch.device) -> Iterator[None]:
    """Seeded PyTorch, deterministic on the CPU; the process's own state is put back afterwards.

    On a GPU no file is promised to be identical, and deterministic kernels can be much slower.
    """
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(
            rank_seed(recipe.finetune.seed, 0, rank) if rank else recipe.finetune.seed
        )
        torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
        if recipe.finetune.threads is not None:
            torch.set_num_threads(recipe.finetune.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(was_deterministic)


class Host(Observer, Protocol):
    """What a job's work is told to; with several processes, the first one's is shown."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stretch of work that is shown and timed."""
        ...

    def work(self, done: int, total: int) -> None:
        """Progress within a stage."""
        ...


def is_sharded(job: Job, ranks: Ranks) -> bool:
    """Whether the processes hold parts of the model's parameters."""
    return ranks.world > 1 and job.recipe.finetune.sharding == "fsdp"


class Assembly:
    """Builds trainers for a job.

    Args:
        job: The job.
        evaluation: The evaluation samples that can be read; None measures nothing on the way.
        accelerator: Device, precision and process group.
        ranks: The processes that train together.
        host: Is told of stages, progress, log entries and messages.
    """

    def __init__(
        self,
        job: Job,
        evaluation: Samples | None,
        accelerator: Accelerator,
        ranks: Ranks,
        host: Host,
    ) -> None:
        self.job = job
        self.recipe = job.recipe
        self.evaluation = evaluation
        self.accelerator = accelerator
        self.ranks = ranks
        self.host = host
        self.sharded = is_sharded(job, ranks)

    def trainer(
        self,
        imported: ImportedModel,
        corrupt: CorruptSamples,
        stop: Callable[[], bool] = lambda: False,
    ) -> Trainer:
        """A trainer for the job, on the model that it will change.

        Args:
            imported: The dense model, imported from `job.traced`.
            corrupt: Tally of unreadable training samples.
            stop: Asked after every step.

        Raises:
            OnnxpruneError: What `make_objective` raises, or what goes wrong while the dense model
                runs over the data.
        """
        job, settings = self.job, self.recipe.finetune
        parameters = dict(imported.named_parameters())
        by_name = {onnx: parameters[key] for key, onnx in imported.tensor_names.items()}
        only = self._only_batch(imported)
        objective = make_objective(job, imported, only)
        dense = DenseModel(job, imported, only, self.host.work, self.ranks, corrupt)
        teacher = self._teacher(dense, objective)
        evaluation = self._progress_evaluation(dense, objective, corrupt)
        if self.sharded:
            placed(imported, settings, self.accelerator.device)
            parts = shard_parameters(imported, self.ranks)
            by_name = {onnx: parts[key] for key, onnx in imported.tensor_names.items()}
        pruned = {name: by_name[name] for name in job.plan.tensors}
        masks = MaskSet(pruned, self.ranks if self.sharded else None)
        closure = self._closure(imported, masks)
        trainer = Trainer(
            module=imported,
            output_names=imported.output_names,
            parameters=by_name,
            masks=masks,
            pruner=self.pruner(masks, closure),
            batches=self._batches(job.train, corrupt, job.augmentation)
            if job.train is not None
            else _no_batches(),
            objective=objective,
            teacher=teacher,
            settings=settings,
            plan=self._plan(),
            observer=self.host,
            accelerator=self.accelerator,
            ranks=self.ranks,
            **evaluation,
            checkpoints=self._checkpoints(),
            stop=stop,
            graph_batch=only,
            sharded=self.sharded,
            loss_scale=max(1.0, math.log(job.source.class_count or 1)),
        )
        if closure is not None and trainer.stepper.average is not None:
            closure.average = cast(ImportedModel, trainer.stepper.average.module)
        return trainer

    def _checkpoints(self) -> CheckpointStore:
        """Only the first process reads and writes them, so only it needs to know the data."""
        run_id = self.job.identity["run_id"] if self.ranks.is_main else ""
        return CheckpointStore(self.job.run.checkpoints, run_id)

    def _closure(self, imported: ImportedModel, masks: MaskSet) -> ModelClosure | None:
        """Structural closure, where the method and the recipe ask for it."""
        asked = self.recipe.sparsity.method == "cascade-gmp" and self.recipe.cascade.closure
        if not asked or not self.job.total_steps:
            return None
        if self.sharded:
            self.host.message(
                "dead weights are not looked for, since the parameters are sharded: they go by "
                "their magnitude"
            )
            return None
        plan = self.job.plan
        closure = ModelClosure(
            self.job.source, imported, masks, plan.floors, exact=plan.pattern is None
        )
        if closure.initial:
            listed = ", ".join(closure.initial[:6]) + (" ..." if len(closure.initial) > 6 else "")
            self.host.message(
                f"{len(closure.initial)} scales are zero in all channels and pass for initial "
                f"values: what they cut off does not count as dead: {listed}"
            )
        return closure

    def pruner(self, masks: MaskSet, close: Close | None = None) -> Pruner:
        """When weights go and which, for the method of the recipe.

        Args:
            masks: The masks in force.
            close: Structural closure; None leaves dead weights to their magnitude.
        """
        job, settings = self.job, self.recipe.cascade
        shards = self.ranks if self.sharded else None
        controlled = self.recipe.sparsity.method == "cascade-gmp"
        events = job.plan.events(job.total_steps)
        layerwise = self.recipe.sparsity.scope == "layerwise"
        return Pruner(
            masks,
            events,
            partial(self._select, masks),
            ShedMonitor(settings.tau, shards),
            Controller(
                Policy(settings.wait, settings.pressure, settings.hold_lr), events, job.plan.zeros
            )
            if controlled
            else None,
            close=close,
            harvest=controlled and settings.harvest,
            ahead="none" if job.plan.pattern else "dead" if layerwise else "all",
            floors=job.plan.floors,
            harvest_cost=settings.harvest_cost,
            shards=shards or Whole(),
            message=self.host.message,
        )

    def _select(
        self,
        masks: MaskSet,
        zeros: int,
        first: Mapping[str, Tensor] | None = None,
        dead: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See `finetune.pruner.Select`."""
        settings, plan = self.recipe.sparsity, self.job.plan
        current = masks.masks
        if dead is not None and plan.pattern is None:
            current = {name: mask & ~dead[name] for name, mask in current.items()}
        elif dead is not None:
            first = dead if first is None else union(first, dead)
        weights = {name: local_part(p.detach()) for name, p in masks.parameters.items()}
        score: Score = Magnitude()
        if settings.method == "random":
            score = RandomScore(self.recipe.finetune.seed)
        if first is not None:
            score = Foremost(score, first, self._starts(weights))
        limits: dict[str, Any] = {
            **{"floors": plan.floors, "scope": settings.scope, "axes": plan.axes},
            "shards" if self.sharded else "ranks": self.ranks,
        }
        choice = choose_masks(
            partial(select_masks if self.sharded else select_replicated_masks, weights, **limits),
            zeros,
            score,
            masks=current,
            pattern=plan.pattern,
            moment=settings.pattern_choice,
            last_zeros=plan.zeros,
            final=masks.final,
        )
        masks.final = choice.final
        return choice.masks

    def _starts(self, weights: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Where this process's part of each weight begins."""
        if not self.sharded:
            return None
        return counts_before(self.ranks, {name: part.numel() for name, part in weights.items()})

    def _plan(self) -> Plan:
        total = self.job.total_steps
        count = self.recipe.finetune.evaluations
        evaluations = {round(total * number / count) for number in range(1, count + 1)}
        rounds, rewind = self.job.plan.rounds, self.recipe.schedule.rewind
        restarted = rounds is not None and rewind != "none"
        steps = rounds.rewind_steps(total) if rounds is not None else 0
        return Plan(
            total,
            self.job.steps_per_epoch,
            self.job.plan.events(total),
            frozenset(evaluations - {0}),
            courses_of(rounds.starts(total), total, steps) if rounds and restarted else (),
            steps if rounds and rewind == "weights" else None,
        )

    def _batches(
        self, samples: Samples, corrupt: CorruptSamples, augment: Augmentation | None = None
    ) -> BatchSource:
        settings = self.recipe.finetune
        return BatchSource(
            samples,
            settings.batch_size,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=settings.seed,
            workers=settings.workers,
            cache_bytes=settings.cache_mb * 2**20,
            order=partial(shuffled_order, samples),
            augment=augment,
            corrupt=corrupt,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _teacher(self, dense: DenseModel, objective: Objective) -> Teacher | None:
        """The dense model on the training samples."""
        train, names = self.job.train, objective.distillation.names
        if train is None or self.job.total_steps == 0 or objective.distill_weight == 0:
            return None
        with self.host.stage("dense outputs for training"):
            kind, reason = dense.kind(names)
            if kind == "cached":
                return dense.cached(train, names)
            if reason is not None:
                self.host.message(f"{reason}: the dense model runs in each step")
            return dense.running(kind, names)

    def _progress_evaluation(
        self, dense: DenseModel, objective: Objective, corrupt: CorruptSamples
    ) -> dict[str, Any]:
        samples = self.evaluation
        settings = self.recipe.finetune
        if samples is None or settings.evaluations == 0 or self.job.total_steps == 0:
            return {}
        count = min(settings.progress_samples, len(samples))
        part = subset(samples, [index * len(samples) // count for index in range(count)])
        source = self._batches(part, corrupt)
        names = set(objective.distillation.names) if objective.distill_weight else set()
        if objective.task is None or isinstance(objective.task, CrossEntropy):
            names.add(objective.output)
        if not names:
            return {"evaluation": source.in_order}
        with self.host.stage("dense outputs for evaluation"):
            teacher = dense.on_evaluation(part, names)
        return {"evaluation": source.in_order, "evaluation_teacher": teacher}

    def _only_batch(self, imported: ImportedModel) -> int | None:
        """The only batch size that the graph takes; None for any."""
        samples = self.job.train if self.job.train is not None else self.job.eval
        size = only_batch(imported, self.job.source, samples)
        if size is not None and self.job.total_steps:
            self.host.message(
                f"the graph computes {size} sample{'s' if size > 1 else ''} at a time: gradients "
                "are accumulated, and BatchNorm keeps its statistics while training"
            )
        return size


def _no_batches() -> BatchSource:
    return BatchSource([None], 1)  # type: ignore[list-item]

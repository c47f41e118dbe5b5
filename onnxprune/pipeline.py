"""The main job, from a dense `.onnx` file to a pruned and validated one; reads like the data path.

This module composes the others and owns the order of things: everything that can be wrong with
model, recipe, output and data is found before anything long begins.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from onnxprune.calibration import Augmentation, Samples, recalibrate, shuffled_order, subset
from onnxprune.conclusion import Conclusion
from onnxprune.corrupt import CorruptSamples, corrupt_name
from onnxprune.dense_outputs import DenseModel, only_batch
from onnxprune.errors import (
    DataError,
    Interrupted,
    OutputError,
    TrainingError,
    UsageError,
)
from onnxprune.finetune import (
    BatchSource,
    CheckpointStore,
    CrossEntropy,
    Objective,
    Plan,
    Ranks,
    Teacher,
    Trainer,
    courses_of,
    full_tensors,
    make_accelerator,
    placed,
    rank_seed,
    shard_parameters,
    worker_deaths,
)
from onnxprune.importer import ImportedModel, load
from onnxprune.job import Job, prepare
from onnxprune.learning import make_objective
from onnxprune.recipe import Recipe
from onnxprune.run_directory import Status
from onnxprune.sparsity import (
    Magnitude,
    MaskSet,
    RandomScore,
    choose_masks,
    local_part,
    select_masks,
    select_replicated_masks,
)
from onnxprune.validate import write_report

ProgressCallback = Callable[[dict[str, Any]], None]


def prune(
    model: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    allow_python: bool = False,
    on_progress: ProgressCallback = lambda entry: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Prune a model file; `prepare` and then `execute`, whose arguments and errors these are."""
    job = prepare(model, output, recipe, run_dir=run_dir, resume=resume, allow_python=allow_python)
    return execute(job, on_progress=on_progress, stop=stop)


def execute(
    job: Job,
    *,
    on_progress: ProgressCallback = lambda entry: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a prepared job: prune, fine-tune, export, validate, report.

    Args:
        job: From `prepare`.
        on_progress: Called with every log entry, and with `{"kind": "stage", "name": ...}`,
            `{"kind": "work", "done": ..., "total": ...}` and `{"kind": "message", "text": ...}`.
        stop: Asked often; when it says yes, the run stops so that it can be resumed.

    Returns:
        The results, as written to `results.json`.

    Raises:
        Interrupted: `stop` said so.
        OnnxpruneError: Anything else that went wrong; the output file is then untouched, unless
            only its validation failed.
    """
    accelerator = make_accelerator(job.recipe.finetune, job.run.path)
    ranks = Ranks(accelerator.device)
    with ExitStack() as held:
        held.callback(accelerator.end_training)
        _check_batch(job, ranks)
        ranks.run_on_main(lambda: _start(job, held))
        results = _with_status(job, ranks, _Run(job, accelerator, ranks, on_progress, stop))
        if ranks.is_main:
            job.run.set_status("finished")
            write_report(job.run.path, job.run.report)
    return results


def _with_status(job: Job, ranks: Ranks, run: "_Run") -> dict[str, Any]:
    """Run, and note in the run directory how it ended."""
    status = partial(_set_status, job, ranks)
    try:
        with _deterministic(job.recipe, ranks.rank, ranks.device):
            return run.execute()
    except (Interrupted, KeyboardInterrupt):
        status("interrupted")
        raise
    except torch.OutOfMemoryError as error:
        status("failed", {"error": str(error)})
        raise TrainingError(
            "the device is out of memory",
            got=str(error).splitlines()[0],
            remedy="lower [finetune] batch_size, or use --device cpu",
        ) from error
    except RuntimeError as error:
        status("failed", {"error": str(error)})
        if ranks.world > 1 and _is_lost_connection(error):
            raise TrainingError(
                "another process of the run is gone",
                where=f"seen by process {ranks.rank} of {ranks.world}",
                got=str(error).splitlines()[0],
                remedy="see what it said; continue with --resume",
            ) from error
        raise
    except Exception as error:
        status("failed", {"error": str(error)})
        raise


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether it comes from the exchange between processes; gloo's errors have no type."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _check_batch(job: Job, ranks: Ranks) -> None:
    """Every process needs a part of every batch."""
    size = job.recipe.finetune.batch_size if job.train is None else len(job.train)
    size = min(size, job.recipe.finetune.batch_size)
    if size < ranks.world and job.total_steps:
        raise UsageError(
            "a batch has fewer samples than there are processes",
            where="[finetune] batch_size",
            got=f"{size} samples for {ranks.world} processes",
            expected=f"at least {ranks.world}",
            remedy="raise it, or start fewer processes",
        )


def _start(job: Job, held: ExitStack) -> None:
    """Take hold of the run directory, until `held` is closed, and begin."""
    held.enter_context(job.run.locked())
    job.run.start(job.identity, job.recipe.to_toml(), resume=job.resume)
    job.run.write_json(job.run.plan, job.plan.to_json(job.total_steps))


def _set_status(
    job: Job, ranks: Ranks, status: Status, facts: dict[str, Any] | None = None
) -> None:
    """Note how a run ended, unless the disk is full, which is then the error that counts."""
    if ranks.is_main:
        with suppress(OutputError):
            job.run.set_status(status, facts)


class _Run:
    """One execution of a job, stage by stage; with several processes, the part of one of them.

    All processes train. The first one alone talks to the user, and exports and validates in the
    end, while the others wait.
    """

    def __init__(
        self,
        job: Job,
        accelerator: Accelerator,
        ranks: Ranks,
        on_progress: ProgressCallback,
        stop: Callable[[], bool],
    ) -> None:
        self.job = job
        self.evaluation = job.eval
        self.recipe = job.recipe
        self.accelerator = accelerator
        self.ranks = ranks
        self.alone = ranks.world == 1
        self.sharded = ranks.world > 1 and self.recipe.finetune.sharding == "fsdp"
        self.on_progress = on_progress if ranks.is_main else lambda entry: None
        self.stop = stop
        self.notes: list[str] = []
        self.corrupt = CorruptSamples(
            0 if job.train is None else len(job.train),
            job.recipe.data.max_corrupt,
            "the training data",
            self.message,
        )
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        for note in self.job.notes:
            self.message(note)
        self._leave_out_corrupt()
        with self.stage("import"):
            imported = load(self.job.traced)
        trainer = self._trainer(imported)
        with self.stage("train"):
            if self.job.resume:
                self._resume(trainer)
            self._start_trackers()
            with warnings.catch_warnings():
                # Imported graphs change nothing in place, so a view between stages is harmless.
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
                with worker_deaths():
                    trainer.fit()
            trainer.finish()
        self._recalibrate(trainer, imported)
        masks = trainer.masks.masks
        if self.sharded:
            masks = full_tensors(masks, self.ranks)
            imported = self._whole(imported, trainer.parameters)
        imported.to("cpu").to(memory_format=torch.contiguous_format).eval()
        self.alone = True
        conclusion = Conclusion(self.job, self.evaluation, trainer.objective, self)
        return self.ranks.run_on_main(lambda: conclusion.reach(imported, masks, started))

    def _whole(
        self, sharded: ImportedModel, parts: Mapping[str, torch.nn.Parameter]
    ) -> ImportedModel:
        """The model with all of its parameters in one place, on the first process."""
        tensors = full_tensors(parts, self.ranks)
        whole = load(self.job.traced)
        parameters, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
        with torch.no_grad():
            for key, name in whole.tensor_names.items():
                if self.ranks.is_main:
                    parameters[key].copy_(tensors[name])
            for key, buffer in sharded.named_buffers():
                buffers[key].copy_(buffer)
        return whole

    def _leave_out_corrupt(self) -> None:
        """Read all evaluation samples once, so that accuracy is not found wanting at the end.

        Arrays were checked when they were opened.
        """
        samples = self.evaluation
        if samples is None or samples.preprocess is None:
            return
        share = self.recipe.data.max_corrupt
        corrupt = CorruptSamples(len(samples), share, "the evaluation data", self.message)
        with self.stage("evaluation data"):
            readable = self.ranks.run_on_main(lambda: self._readable(samples, corrupt))
        if len(readable) < len(samples):
            self.evaluation = subset(samples, readable)

    def _readable(self, samples: Samples, corrupt: CorruptSamples) -> list[int]:
        readable = []
        for index in range(len(samples)):
            try:
                samples[index]
            except DataError as error:
                samples.check_present()
                corrupt.add([(index, corrupt_name(error))])
                continue
            readable.append(index)
            self.work(index + 1, len(samples))
        return readable

    def _resume(self, trainer: Trainer) -> None:
        if trainer.resume():
            self.message(f"resumed after step {trainer.step} of {trainer.plan.total_steps}")
        else:
            self.rewound(0, 0.0, 0)

    def message(self, text: str) -> None:
        """Tell the user, and keep it for the report."""
        self.notes.append(text)
        self.on_progress({"kind": "message", "text": text})

    def record(self, entry: dict[str, Any]) -> None:
        """Log an entry of the training loop."""
        self.job.run.append(entry)
        self.on_progress(entry)
        if self.recipe.finetune.track:
            self.accelerator.log(_tracked(entry), step=entry["step"])

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        """Drop log entries that will be written again."""
        self.job.run.rewind_log(step, sparsity, rollbacks)

    def _start_trackers(self) -> None:
        if self.recipe.finetune.track:
            tables = self.recipe.portable()
            flat = {f"{t}.{key}": str(v) for t, keys in tables.items() for key, v in keys.items()}
            self.accelerator.init_trackers("onnxprune", config=flat)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stop_if_asked()
        self.on_progress({"kind": "stage", "name": name})
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def _stop_if_asked(self) -> None:
        """Stop at once where no other process waits for this one; training stops together."""
        if self.alone and self.stop():
            raise Interrupted("interrupted", remedy="continue with --resume")

    def work(self, done: int, total: int) -> None:
        self.on_progress({"kind": "work", "done": done, "total": total})
        self._stop_if_asked()

    def _trainer(self, imported: ImportedModel) -> Trainer:
        job, settings = self.job, self.recipe.finetune
        parameters = dict(imported.named_parameters())
        by_name = {onnx: parameters[key] for key, onnx in imported.tensor_names.items()}
        only = self._only_batch(imported)
        objective = make_objective(job, imported, only)
        dense = DenseModel(job, imported, only, self.work, self.ranks, self.corrupt)
        teacher = self._teacher(dense, objective)
        evaluation = self._progress_evaluation(dense, objective)
        if self.sharded:
            placed(imported, settings, self.accelerator.device)
            parts = shard_parameters(imported, self.ranks)
            by_name = {onnx: parts[key] for key, onnx in imported.tensor_names.items()}
        pruned = {name: by_name[name] for name in job.plan.tensors}
        masks = MaskSet(pruned, self.ranks if self.sharded else None)
        return Trainer(
            module=imported,
            output_names=imported.output_names,
            parameters=by_name,
            masks=masks,
            choose=lambda zeros: self._choose(masks, zeros),
            batches=self._batches(job.train, job.augmentation)
            if job.train is not None
            else _no_batches(),
            objective=objective,
            teacher=teacher,
            settings=settings,
            plan=self._plan(),
            observer=self,
            accelerator=self.accelerator,
            ranks=self.ranks,
            **evaluation,
            checkpoints=self._checkpoints(),
            stop=self.stop,
            graph_batch=only,
            sharded=self.sharded,
            loss_scale=max(1.0, math.log(job.source.class_count or 1)),
        )

    def _checkpoints(self) -> CheckpointStore:
        """Only the first process reads and writes them, so only it needs to know the data."""
        run_id = self.job.identity["run_id"] if self.ranks.is_main else ""
        return CheckpointStore(self.job.run.checkpoints, run_id)

    def _choose(self, masks: MaskSet, zeros: int) -> dict[str, torch.Tensor]:
        settings, plan = self.recipe.sparsity, self.job.plan
        random = settings.method == "random"
        weights = {name: local_part(p.detach()) for name, p in masks.parameters.items()}
        limits: dict[str, Any] = {
            **{"floors": plan.floors, "scope": settings.scope, "axes": plan.axes},
            "shards" if self.sharded else "ranks": self.ranks,
        }
        choice = choose_masks(
            partial(select_masks if self.sharded else select_replicated_masks, weights, **limits),
            zeros,
            RandomScore(self.recipe.finetune.seed) if random else Magnitude(),
            masks=masks.masks,
            pattern=plan.pattern,
            moment=settings.pattern_choice,
            last_zeros=plan.zeros,
            final=masks.final,
        )
        masks.final = choice.final
        return choice.masks

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

    def _batches(self, samples: Samples, augment: Augmentation | None = None) -> BatchSource:
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
            corrupt=self.corrupt,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _teacher(self, dense: DenseModel, objective: Objective) -> Teacher | None:
        """The dense model on the training samples."""
        train, names = self.job.train, objective.distillation.names
        if train is None or self.job.total_steps == 0 or objective.distill_weight == 0:
            return None
        with self.stage("dense outputs"):
            kind, reason = dense.kind(names)
            if kind == "cached":
                return dense.cached(train, names)
            if reason is not None:
                self.message(f"{reason}: the dense model runs in each step")
            return dense.running(kind, names)

    def _progress_evaluation(self, dense: DenseModel, objective: Objective) -> dict[str, Any]:
        samples = self.evaluation
        settings = self.recipe.finetune
        if samples is None or settings.evaluations == 0 or self.job.total_steps == 0:
            return {}
        count = min(settings.progress_samples, len(samples))
        part = subset(samples, [index * len(samples) // count for index in range(count)])
        source = self._batches(part)
        names = set(objective.distillation.names) if objective.distill_weight else set()
        if objective.task is None or isinstance(objective.task, CrossEntropy):
            names.add(objective.output)
        if not names:
            return {"evaluation": source.in_order}
        with self.stage("dense outputs"):
            teacher = dense.on_evaluation(part, names)
        return {"evaluation": source.in_order, "evaluation_teacher": teacher}

    def _only_batch(self, imported: ImportedModel) -> int | None:
        """The only batch size that the graph takes; None for any."""
        samples = self.job.train if self.job.train is not None else self.job.eval
        size = only_batch(imported, self.job.source, samples)
        if size is not None and self.job.total_steps:
            self.message(
                f"the graph computes {size} sample{'s' if size > 1 else ''} at a time: gradients "
                "are accumulated, and BatchNorm keeps its statistics while training"
            )
        return size

    def _recalibrate(self, trainer: Trainer, module: ImportedModel) -> None:
        count = self.recipe.finetune.recalibrate_batches
        single = trainer.graph_batch is not None or trainer.batches.batch_size == 1
        if not count or self.job.train is None or not module.buffer_names or single:
            return
        with self.stage("recalibrate"):
            samples = count * trainer.batches.batch_size
            batches = trainer.batches.spread(samples)
            recalibrate(module, (batch.to(trainer.device).inputs for batch in batches))


def _tracked(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log entry under names that trackers show by group."""
    kind = entry["kind"]
    values = {**entry, **entry.get("metrics", {})}
    return {
        f"{kind}/{key}": value
        for key, value in values.items()
        if isinstance(value, int | float) and key != "step"
    }


@contextmanager
def _deterministic(recipe: Recipe, rank: int, device: torch.device) -> Iterator[None]:
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


def _no_batches() -> BatchSource:
    return BatchSource([None], 1)  # type: ignore[list-item]

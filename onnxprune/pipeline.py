"""The main job, from a dense `.onnx` file to a pruned and validated one; reads like the data path.

This module composes the others and owns the order of things: everything that can be wrong with
model, recipe, output and data is found before anything long begins.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from onnxprune.assembly import Assembly, deterministic, is_sharded
from onnxprune.calibration import Samples, recalibrate, subset
from onnxprune.conclusion import Conclusion
from onnxprune.corrupt import CorruptSamples, corrupt_name
from onnxprune.errors import (
    DataError,
    Interrupted,
    OutputError,
    TrainingError,
    UsageError,
)
from onnxprune.finetune import (
    Ranks,
    Tracking,
    Trainer,
    full_tensors,
    make_accelerator,
    worker_deaths,
)
from onnxprune.importer import ImportedModel, load
from onnxprune.job import Job, prepare
from onnxprune.recipe import Recipe
from onnxprune.run_directory import Status
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
        run = _Run(job, accelerator, ranks, on_progress, stop)
        held.callback(run.tracking.close)
        results = _with_status(job, ranks, run)
        with suppress(RuntimeError):  # the run is finished, whoever is gone
            ranks.barrier()  # nobody leaves while another waits for the last message
        return results


def _with_status(job: Job, ranks: Ranks, run: "_Run") -> dict[str, Any]:
    """Run, and note in the run directory how it ended."""
    status = partial(_set_status, job, ranks)
    try:
        with deterministic(job.recipe, ranks.rank, ranks.device):
            results = run.execute()
        ranks.run_on_main(lambda: _report(job))
        return results
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


def _report(job: Job) -> None:
    """Write the report, and only then call the run finished, so that none is without one."""
    try:
        write_report(job.run.path, job.run.report, status="finished")
    except OutputError as error:
        raise OutputError(
            "the report cannot be written; the pruned model and its results are complete",
            where=job.run.report,
            got=error.got,
            remedy=f"{error.remedy}, then continue with --resume",
        ) from None
    job.run.set_status("finished")


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
        self.sharded = is_sharded(job, ranks)
        self.on_progress = on_progress if ranks.is_main else lambda entry: None
        self.stop = stop
        self.notes: list[str] = []
        self.corrupt = CorruptSamples(
            0 if job.train is None else len(job.train),
            job.recipe.data.max_corrupt,
            "the training data",
            self.message,
        )
        track = self.recipe.finetune.track if ranks.is_main else []
        self.tracking = Tracking(accelerator, track, job.run.path, self.message)
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        for note in self.job.notes:
            self.message(note)
        self._leave_out_corrupt()
        with self.stage("import"):
            imported = load(self.job.traced)
        assembly = Assembly(self.job, self.evaluation, self.accelerator, self.ranks, self)
        trainer = assembly.trainer(imported, self.corrupt, self.stop)
        with self.stage("train"):
            if self.job.resume:
                self._resume(trainer)
            self.ranks.run_on_main(lambda: self.tracking.start(self.recipe.portable()))
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
        self.tracking.record(entry)

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        """Drop log entries that will be written again."""
        self.job.run.rewind_log(step, sparsity, rollbacks)

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

    def _recalibrate(self, trainer: Trainer, module: ImportedModel) -> None:
        count = self.recipe.finetune.recalibrate_batches
        single = trainer.graph_batch is not None or trainer.batches.batch_size == 1
        if not count or self.job.train is None or not module.buffer_names or single:
            return
        with self.stage("recalibrate"):
            samples = count * trainer.batches.batch_size
            batches = trainer.batches.spread(samples)
            recalibrate(module, (batch.to(trainer.device).inputs for batch in batches))

"""The main job, from a dense `.onnx` file to a pruned and validated one; reads like the data path.

This module composes the others and owns the order of things: everything that can be wrong with
model, recipe, output and data is found before anything long begins.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxprune import export
from onnxprune import model as model_io
from onnxprune.calibration import Samples, open_data, recalibrate, split_holdout, subset
from onnxprune.errors import (
    DataError,
    Interrupted,
    ModelError,
    OnnxpruneError,
    UnsupportedModelError,
    UsageError,
)
from onnxprune.finetune import (
    Batch,
    BatchSource,
    CachedTeacher,
    CheckpointStore,
    Objective,
    Plan,
    Teacher,
    Trainer,
    named_outputs,
)
from onnxprune.importer import ImportedModel, load
from onnxprune.model import OnnxModel
from onnxprune.planning import PruningPlan, make_plan
from onnxprune.recipe import Recipe
from onnxprune.run_directory import SCHEMA_VERSION, RunDirectory
from onnxprune.sparsity import Magnitude, MaskSet, RandomScore, select_masks
from onnxprune.tensors import find_tensors
from onnxprune.validate import bench, evaluate, open_session, runtime_environment, write_report
from onnxprune.version import __version__

ProgressCallback = Callable[[dict[str, Any]], None]
MAX_RUNTIME_DIFFERENCE = 1e-2
"""Largest difference between the trained module and the written file, relative to the outputs."""

_HISTOGRAM_BINS = 60
_PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Job:
    """A prune job, checked and ready to run.

    Attributes:
        source: The dense model as read.
        output: Where the pruned model goes.
        recipe: The resolved recipe.
        plan: What is pruned, how far and when.
        train: Training samples; None prunes without fine-tuning.
        eval: Evaluation samples; None measures no accuracy.
        held_out: Whether `eval` was split off `train`.
        run: The run directory.
        resume: Continue from the run directory's last checkpoint.
        notes: What the user should know about the result.
    """

    source: OnnxModel
    output: Path
    recipe: Recipe
    plan: PruningPlan
    train: Samples | None
    eval: Samples | None
    held_out: bool
    run: RunDirectory
    resume: bool
    notes: list[str] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, at least 1."""
        if self.train is None:
            return 1
        return BatchSource(self.train, self.recipe.finetune.batch_size).steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        if self.train is None:
            return 0
        return round(self.recipe.finetune.epochs * self.steps_per_epoch)

    def identity(self) -> dict[str, Any]:
        """What decides the result; checkpoints of another identity are refused."""
        facts = {
            "tool_version": __version__,
            "source_sha256": self.source.sha256,
            "recipe_sha256": self.recipe.sha256(),
            "data_sha256": {name: facts["digest"] for name, facts in self.data_facts().items()},
        }
        run_id = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        return {**facts, "run_id": run_id}

    def data_facts(self) -> dict[str, dict[str, Any]]:
        """Number, digest and kind of the samples, without any path."""
        facts = {}
        for name, samples in (("train", self.train), ("eval", self.eval)):
            if samples is not None:
                facts[name] = {
                    "samples": len(samples),
                    "digest": samples.digest(),
                    "labelled": samples.labelled,
                }
        if "eval" in facts:
            facts["eval"]["held_out"] = self.held_out
        return facts


def prepare(
    model: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    allow_python: bool = False,
) -> Job:
    """Check everything that a prune job needs, before any work.

    Args:
        model: The dense `.onnx` file.
        output: The file to write. It must not be the model itself.
        recipe: What to do.
        run_dir: Folder for checkpoints, log and report; by default `OUTPUT` with `.run` for its
            extension.
        resume: Continue from the run directory.
        allow_python: Whether `python:` data specs may run code.

    Raises:
        UsageError: Recipe, output or run directory make no sense.
        ModelError: The model cannot be read or handled.
        DataError: The data are missing or do not fit.
    """
    source = model_io.read(model)
    output = Path(output)
    if output.exists() and source.path is not None and output.samefile(source.path):
        raise UsageError(
            "the output would overwrite the dense model", where=output, remedy="name another file"
        )
    model_io.check_writable(output)
    run = RunDirectory(Path(run_dir) if run_dir is not None else output.with_suffix(".run"))
    run.check(resume=resume)
    _check_training_flags(source, recipe)
    plan = make_plan(find_tensors(source.proto).values(), recipe)
    notes = [
        f"{len(plan.skipped)} weights stay dense: "
        + ", ".join(f"{name} ({why})" for name, why in list(plan.skipped.items())[:8])
        + (" ..." if len(plan.skipped) > 8 else "")
    ] if plan.skipped else []
    train, evaluation, held_out = _open_samples(source, recipe, allow_python, notes)
    return Job(source, output, recipe, plan, train, evaluation, held_out, run, resume, notes)


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
    job = prepare(
        model, output, recipe, run_dir=run_dir, resume=resume, allow_python=allow_python
    )
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
        OnnxpruneError: Anything else that went wrong; the output file is then untouched.
    """
    job.run.start(job.identity(), job.recipe.to_toml(), resume=job.resume)
    job.run.write_json(job.run.plan, job.plan.to_json(job.total_steps))
    try:
        with _deterministic(job.recipe):
            results = _Run(job, on_progress, stop).execute()
    except (Interrupted, KeyboardInterrupt):
        job.run.set_status("interrupted")
        raise
    except OnnxpruneError:
        job.run.set_status("failed")
        raise
    job.run.set_status("finished")
    write_report(job.run.path, job.run.report)
    return results


class _Run:
    """One execution of a job, stage by stage."""

    def __init__(
        self, job: Job, on_progress: ProgressCallback, stop: Callable[[], bool]
    ) -> None:
        self.job = job
        self.recipe = job.recipe
        self.on_progress = on_progress
        self.stop = stop
        self.notes = list(job.notes)
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        started = time.monotonic()
        with self._stage("import"):
            source_proto = self.job.source.proto
            if self.recipe.model.to_inference:
                source_proto = _inference_copy(self.job.source, self.notes)
            imported = load(OnnxModel(self.job.source.path, source_proto, self.job.source.sha256,
                                      self.job.source.size_bytes))
        trainer = self._trainer(imported)
        with self._stage("train"):
            if self.job.resume and trainer.resume():
                self.job.run.rewind_log(trainer.step)
                self.message(f"resumed after step {trainer.step} of {trainer.plan.total_steps}")
            trainer.fit()
            if trainer.plan.total_steps:
                trainer.save()
        module: ImportedModel = trainer.accelerator.unwrap_model(
            trainer.model, keep_fp32_wrapper=False
        )
        self._recalibrate(trainer, module)
        module.to("cpu").eval()
        with self._stage("export"):
            proto = self._export(source_proto, module, trainer.masks)
            difference = self._compare_with_runtime(module, proto)
            model_io.write(proto, self.job.output, external=self.job.source.has_external_data)
        validation = self._validate()
        latency = self._latency()
        self.seconds["total"] = time.monotonic() - started
        results = self._results(proto, validation, latency, difference)
        self.job.run.write_json(self.job.run.results, results)
        return results

    def message(self, text: str) -> None:
        """Tell the user, and keep it for the report."""
        self.notes.append(text)
        self.on_progress({"kind": "message", "text": text})

    def record(self, entry: dict[str, Any]) -> None:
        """Log an entry of the training loop."""
        self.job.run.append(entry)
        self.on_progress(entry)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._stop_if_asked()
        self.on_progress({"kind": "stage", "name": name})
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Interrupted("interrupted", remedy="continue with --resume")

    def _work(self, done: int, total: int) -> None:
        self.on_progress({"kind": "work", "done": done, "total": total})
        self._stop_if_asked()

    def _trainer(self, imported: ImportedModel) -> Trainer:
        job, settings = self.job, self.recipe.finetune
        parameters = dict(imported.named_parameters())
        by_name = {onnx: parameters[key] for key, onnx in imported.tensor_names.items()}
        objective = Objective(
            imported.output_names[0],
            imported.output_activations,
            job.train is not None and job.train.labelled,
            self.recipe.distill,
            settings.label_smoothing,
        )
        pruned = {name: by_name[name] for name in job.plan.tensors}
        masks = MaskSet(pruned)
        return Trainer(
            module=imported,
            output_names=imported.output_names,
            parameters=by_name,
            masks=masks,
            choose=lambda zeros: self._choose(masks, zeros),
            batches=self._batches(job.train) if job.train is not None else _no_batches(),
            objective=objective,
            teacher=self._teacher(imported, objective),
            settings=settings,
            plan=self._plan(),
            observer=self,
            **self._progress_evaluation(imported),
            checkpoints=CheckpointStore(job.run.checkpoints, job.identity()["run_id"]),
            stop=self.stop,
            micro_batch=self._micro_batch(imported),
        )

    def _choose(self, masks: MaskSet, zeros: int) -> dict[str, torch.Tensor]:
        settings = self.recipe.sparsity
        random = settings.method == "random"
        return select_masks(
            {name: parameter.detach() for name, parameter in masks.parameters.items()},
            zeros,
            RandomScore(self.recipe.finetune.seed) if random else Magnitude(),
            masks=masks.masks,
            floors=self.job.plan.floors,
            scope=settings.scope,
            pattern=self.job.plan.pattern,
            axes=self.job.plan.axes,
        )

    def _plan(self) -> Plan:
        total = self.job.total_steps
        count = self.recipe.finetune.evaluations
        evaluations = {round(total * number / count) for number in range(1, count + 1)}
        return Plan(
            total,
            self.job.steps_per_epoch,
            self.job.plan.events(total),
            frozenset(evaluations - {0}),
        )

    def _batches(self, samples: Samples) -> BatchSource:
        settings = self.recipe.finetune
        return BatchSource(
            samples,
            settings.batch_size,
            seed=settings.seed,
            workers=settings.workers,
            cache_bytes=settings.cache_mb * 2**20,
        )

    def _teacher(self, imported: ImportedModel, objective: Objective) -> Teacher | None:
        """The dense model's outputs on the training samples, from ONNX Runtime, kept on disk."""
        job = self.job
        if job.train is None or job.total_steps == 0 or objective.distill_weight == 0:
            return None
        if job.resume and job.run.teacher.is_file():
            outputs = _load_outputs(job.run.teacher, len(job.train))
            if outputs is not None:
                return CachedTeacher(outputs)
        with self._stage("dense outputs"):
            outputs = self._dense_outputs(job.train, imported)
            with job.run.teacher.open("wb") as stream:
                np.savez(stream, **_numbered(outputs))
        return CachedTeacher(outputs)

    def _dense_outputs(
        self, samples: Samples, imported: ImportedModel
    ) -> dict[str, np.ndarray]:
        """Every float output of the dense model for every sample, `(samples, ...)`."""
        session = open_session(
            self.job.source, self.recipe.validation.provider, self.recipe.validation.threads
        )
        size = fixed_batch(self.job.source) or self.recipe.finetune.batch_size
        source = BatchSource(samples, size)
        collected: dict[str, list[np.ndarray]] = {}
        done = 0
        for batch in source.in_order():
            feeds = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
            for name, array in session.run(_padded(feeds, fixed_batch(self.job.source))).items():
                if np.issubdtype(array.dtype, np.floating):
                    collected.setdefault(name, []).append(array[: len(batch)].astype(np.float32))
            done += len(batch)
            self._work(done, len(samples))
        return {name: np.concatenate(arrays) for name, arrays in collected.items()}

    def _progress_evaluation(self, imported: ImportedModel) -> dict[str, Any]:
        samples = self.job.eval
        settings = self.recipe.finetune
        if samples is None or settings.evaluations == 0 or self.job.total_steps == 0:
            return {}
        count = min(settings.progress_samples, len(samples))
        part = subset(samples, [index * len(samples) // count for index in range(count)])
        source = self._batches(part)
        with self._stage("dense outputs"):
            teacher = CachedTeacher(self._dense_outputs(part, imported))
        return {"evaluation": source.in_order, "evaluation_teacher": teacher}

    def _micro_batch(self, imported: ImportedModel) -> int | None:
        """The largest batch that the graph takes, found by trying; None for any."""
        if self.job.train is None or len(self.job.train) < 2:
            return None
        batch = next(BatchSource(self.job.train, 2).in_order())
        if takes_batches(imported, batch):
            return None
        limit = fixed_batch(self.job.source) or 1
        self.message(
            f"the graph computes {limit} sample{'s' if limit > 1 else ''} at a time: gradients "
            "are accumulated, and BatchNorm keeps its statistics while training"
        )
        return limit

    def _recalibrate(self, trainer: Trainer, module: ImportedModel) -> None:
        count = self.recipe.finetune.recalibrate_batches
        if not count or self.job.train is None or not module.buffer_names or trainer.micro_batch:
            return
        with self._stage("recalibrate"):
            samples = count * trainer.batches.batch_size
            batches = trainer.batches.spread(samples)
            recalibrate(module, (batch.to(trainer.device).inputs for batch in batches))

    def _export(
        self, source_proto: Any, module: ImportedModel, masks: MaskSet
    ) -> Any:
        tensors = {name: t.cpu().float().numpy() for name, t in module.export_tensors().items()}
        for name, mask in masks.masks.items():
            tensors[name] = np.where(mask.cpu().numpy(), tensors[name], 0.0).astype(np.float32)
        proto = export.write_back(source_proto, tensors)
        stored = find_tensors(proto)
        pattern = self.recipe.sparsity.pattern
        described = export.describe_tensors(
            (stored[name] for name in self.job.plan.tensors),
            dict.fromkeys(self.job.plan.tensors, pattern),
        )
        metadata = export.SparsityMetadata(
            tool_version=__version__,
            method=self.recipe.sparsity.method,
            target_sparsity=self.recipe.sparsity.resolved_target,
            sparsity=export.overall_sparsity(described),
            pattern=pattern,
            source_sha256=self.job.source.sha256,
            payload_sha256=model_io.payload_sha256(proto),
            recipe=self.recipe.portable(),
            data=self.job.data_facts(),
            tensors=described,
        )
        export.write_metadata(proto, metadata)
        if self.recipe.export.storage == "sparse":
            self._store_sparse(proto)
        return proto

    def _store_sparse(self, proto: Any) -> None:
        converted = export.to_sparse(proto, set(self.job.plan.tensors))
        self.message(
            f"{len(converted)} of {len(self.job.plan.tensors)} tensors are stored sparsely; the "
            f"others stay dense, since that is smaller below sparsity "
            f"{export.SPARSE_BREAK_EVEN:.2f}, or they are no initializers"
        )

    def _compare_with_runtime(self, module: ImportedModel, proto: Any) -> float | None:
        """Largest difference between the trained module and the written graph, on real samples."""
        samples = self.job.eval if self.job.eval is not None else self.job.train
        if samples is None:
            return None
        size = fixed_batch(self.job.source) or min(8, len(samples))
        batch = next(BatchSource(samples, size).spread(size))
        feeds = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        feeds = _padded(feeds, fixed_batch(self.job.source))
        actual = open_session(proto).run(feeds)
        with torch.no_grad():
            inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
            expected = named_outputs(module(**inputs), module.output_names)
        worst = 0.0
        for name, tensor in expected.items():
            wanted, found = tensor.numpy().astype(np.float64), actual[name].astype(np.float64)
            difference = float(np.abs(wanted - found).max(initial=0.0))
            scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
            if not difference <= MAX_RUNTIME_DIFFERENCE * scale:
                raise ModelError(
                    "the written graph does not compute what was trained",
                    where=f"output {name!r}",
                    got=f"a difference of {difference:.3g} under ONNX Runtime",
                    expected=f"at most {MAX_RUNTIME_DIFFERENCE * scale:.3g}",
                    remedy="please report this with the model; nothing was written",
                )
            worst = max(worst, difference)
        return worst

    def _validate(self) -> dict[str, Any]:
        if self.job.eval is None:
            return {"dense": {}, "pruned": {}, "samples": 0}
        settings = self.recipe.validation
        with self._stage("validate"):
            result = evaluate(
                [self.job.source, self.job.output],
                self.job.eval,
                batch_size=settings.batch_size,
                provider=settings.provider,
                threads=settings.threads,
                on_progress=self._work,
            ).to_json()
        dense, pruned = (model["metrics"] for model in result["models"])
        return {"dense": dense, "pruned": pruned, "samples": result["samples"]}

    def _latency(self) -> dict[str, Any] | None:
        settings = self.recipe.validation
        if not settings.latency:
            return None
        with self._stage("latency"):
            try:
                return bench(
                    [self.job.source, self.job.output],
                    batch=settings.latency_batch,
                    shapes=settings.shapes or None,
                    threads=settings.threads,
                    provider=settings.provider,
                    max_seconds=settings.latency_seconds,
                    seed=self.recipe.finetune.seed,
                ).to_json(samples=True)
            except UsageError as error:
                self.message(f"latency was not measured: {error.what}; {error.remedy}")
                return None

    def _results(
        self,
        proto: Any,
        validation: dict[str, Any],
        latency: dict[str, Any] | None,
        difference: float | None,
    ) -> dict[str, Any]:
        metadata = export.read_metadata(proto) or {}
        return {
            "schema_version": SCHEMA_VERSION,
            "tool_version": __version__,
            "output": self.job.output.name,
            "size_bytes": {
                "dense": self.job.source.size_bytes,
                "pruned": model_io.read(self.job.output).size_bytes,
            },
            **{
                key: metadata[key]
                for key in ("method", "pattern", "target_sparsity", "sparsity")
                + ("source_sha256", "payload_sha256")
            },
            "data": self.job.data_facts(),
            "validation": {**validation, "torch_vs_runtime_max_abs_error": difference},
            "latency": latency,
            "tensors": list(_tensor_table(self.job, proto)),
            "recipe": self.recipe.to_dict(),
            "environment": {**runtime_environment(), "torch": torch.__version__},
            "timing": {f"{name.replace(' ', '_')}_s": s for name, s in self.seconds.items()},
            "seed": self.recipe.finetune.seed,
            "notes": self.notes,
        }


def fixed_batch(source: OnnxModel) -> int | None:
    """The batch size that a model's inputs are fixed to; None if it is free."""
    sizes = {spec.shape[0] for spec in source.inputs if spec.shape}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if len(sizes) == 1 and fixed else None


def takes_batches(module: nn.Module, pair: Batch) -> bool:
    """Whether a model computes two samples at once as it computes each alone.

    A graph with a batch size baked into a Reshape fails here, or mixes samples.
    """
    module.eval()
    with torch.no_grad():
        try:
            together = _as_tuple(module(**pair.inputs))
            alone = [_as_tuple(module(**part.inputs)) for part in pair.split(1)]
        except (RuntimeError, ValueError, IndexError, OnnxpruneError):
            return False
    for index, output in enumerate(together):
        parts = [values[index] for values in alone]
        if not output.is_floating_point():
            continue
        if output.ndim == 0 or any(part.ndim == 0 for part in parts):
            return False
        expected = torch.cat(parts)
        if expected.shape != output.shape:
            return False
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        if float((output - expected).abs().max()) > _PROBE_TOLERANCE * scale:
            return False
    return True


def _as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _padded(feeds: dict[str, np.ndarray], batch: int | None) -> dict[str, np.ndarray]:
    """Inputs filled up to a fixed batch size by repeating the last sample."""
    if batch is None:
        return feeds
    return {
        name: np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
        for name, array in feeds.items()
    }


def _check_training_flags(source: OnnxModel, recipe: Recipe) -> None:
    nodes = export.training_nodes(source.proto)
    if nodes and not recipe.model.to_inference:
        raise UnsupportedModelError(
            "the file runs nodes in training mode: deployed, it would drop activations at random "
            "or normalise with the statistics of each batch",
            where=source.label,
            got=", ".join(nodes[:8]) + (" ..." if len(nodes) > 8 else ""),
            remedy="pass --to-inference, which clears these flags in the written file",
        )


def _inference_copy(source: OnnxModel, notes: list[str]) -> Any:
    proto = export.write_back(source.proto, {})
    changed = export.clear_training(proto)
    if changed:
        notes.append(f"training mode was cleared in {len(changed)} nodes: {', '.join(changed)}")
    return proto


def _open_samples(
    source: OnnxModel, recipe: Recipe, allow_python: bool, notes: list[str]
) -> tuple[Samples | None, Samples | None, bool]:
    def open_spec(spec: str, limit: int | None) -> Samples:
        return open_data(
            spec,
            inputs=source.inputs,
            preprocess=recipe.preprocess,
            classes=recipe.data.classes,
            num_classes=number_of_classes(source),
            allow_python=allow_python,
            limit=limit,
            seed=recipe.finetune.seed,
        )

    settings = recipe.data
    if settings.train is None and recipe.finetune.epochs > 0:
        raise UsageError(
            "there are no data to fine-tune on",
            remedy="give --data SPEC, or --epochs 0 to prune without fine-tuning",
        )
    evaluation = open_spec(settings.eval, None) if settings.eval is not None else None
    if settings.train is None:
        return None, evaluation, False
    train = open_spec(settings.train, settings.limit)
    if evaluation is not None:
        return train, evaluation, False
    if len(train) < 2:
        raise DataError(
            "too few samples to hold some out",
            where=settings.train,
            got=len(train),
            expected="at least 2",
            remedy="give more samples, or --eval-data SPEC",
        )
    train, evaluation = split_holdout(train, settings.holdout, recipe.finetune.seed)
    notes.append(
        f"no evaluation data were given: {len(evaluation)} samples ({settings.holdout:.0%}) of the "
        "training data are held out"
    )
    return train, evaluation, True


def number_of_classes(source: OnnxModel) -> int | None:
    """Length of the first output's class axis, if it has two axes and the graph states it."""
    shape = source.outputs[0].shape
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int):
        return shape[1]
    return None


def _no_batches() -> BatchSource:
    return BatchSource([None], 1)  # type: ignore[list-item]


def _numbered(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under file-safe names, with the real names beside them."""
    arrays = {f"output_{index}": array for index, array in enumerate(outputs.values())}
    return {**arrays, "names": np.array(list(outputs))}


def _load_outputs(path: Path, count: int) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [str(name) for name in file["names"]]
            outputs = {name: file[f"output_{index}"] for index, name in enumerate(names)}
    except (OSError, ValueError, KeyError):
        return None
    return outputs if all(len(array) == count for array in outputs.values()) else None


def _tensor_table(job: Job, proto: Any) -> Iterator[dict[str, Any]]:
    """Facts of every weight before and after, with histograms of those that were pruned."""
    before, after = find_tensors(job.source.proto), find_tensors(proto)
    for name, tensor in after.items():
        if not (tensor.prunable or name in job.plan.tensors):
            continue
        old, new = before[name].array(), tensor.array()
        entry: dict[str, Any] = {
            "name": name,
            "op_type": tensor.op_type,
            "shape": list(tensor.shape),
            "size": tensor.size,
            "nonzeros_before": int(np.count_nonzero(old)),
            "nonzeros": int(np.count_nonzero(new)),
            "sparsity_before": 1 - float(np.count_nonzero(old)) / max(1, old.size),
            "sparsity": 1 - float(np.count_nonzero(new)) / max(1, new.size),
            "prunable": name in job.plan.tensors,
        }
        if name in job.plan.tensors:
            entry["histogram"] = _histogram(old, new)
        yield entry


def _histogram(before: np.ndarray, after: np.ndarray) -> dict[str, list[float]]:
    """Counts of non-zero values in common bins, before and after."""
    before, after = before[before != 0].astype(np.float64), after[after != 0].astype(np.float64)
    both = np.concatenate([before.ravel(), after.ravel()])
    limit = float(np.quantile(np.abs(both), 0.999)) if both.size else 1.0
    edges = np.linspace(-limit, limit, _HISTOGRAM_BINS + 1) if limit > 0 else np.linspace(-1, 1, 3)
    return {
        "edges": edges.tolist(),
        "before": np.histogram(before, edges)[0].tolist(),
        "after": np.histogram(after, edges)[0].tolist(),
    }


@contextmanager
def _deterministic(recipe: Recipe) -> Iterator[None]:
    """Seeded, deterministic PyTorch; the process's own state is put back afterwards."""
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.finetune.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        if recipe.finetune.threads is not None:
            torch.set_num_threads(recipe.finetune.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(was_deterministic)

"""The end of a run: export, comparison with ONNX Runtime, validation, results."""

import copy
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from onnxprune.calibration import Samples
from onnxprune.cascade import Budget, kept_overlap, training_budget
from onnxprune.closing import closure_of
from onnxprune.dense_outputs import fixed_batch, padded
from onnxprune.errors import (
    ModelError,
    UsageError,
)
from onnxprune.export import (
    SPARSE_BREAK_EVEN,
    DataMetadata,
    SparsityMetadata,
    describe_tensors,
    overall_sparsity,
    pattern_holds,
    read_metadata,
    tapped,
    to_sparse,
    write_back,
    write_metadata,
    zeros_elsewhere,
)
from onnxprune.finetune import (
    CrossEntropy,
    Objective,
    first_batch,
    named_outputs,
)
from onnxprune.importer import ImportedModel
from onnxprune.job import Job, has_classes
from onnxprune.model import payload_sha256, read, write
from onnxprune.outcome import layer_costs, tensor_table
from onnxprune.run_directory import SCHEMA_VERSION
from onnxprune.sparsity import Magnitude, select_masks
from onnxprune.task_validation import evaluate_task
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.validate import bench, count_flops, describe_machine, evaluate, open_session
from onnxprune.validate.runtime_process import CPU
from onnxprune.validate.session import session_settings
from onnxprune.version import __version__

MAX_RUNTIME_DIFFERENCE = 1e-2
"""Largest difference between the trained module and the written file, relative to the outputs."""
_ROUNDING_FACTOR = 4.0
"""What is above it may exceed the effect of rounding by this factor; few draws of it are seen."""
_LAST_DIGIT = 2.0**-23
_DRAWS = 4

_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Run(Protocol):
    """The run that comes to its end.

    Attributes:
        notes: What the user was told.
        seconds: Time of each stage.
    """

    notes: list[str]
    seconds: dict[str, float]

    def message(self, text: str) -> None:
        """Tell the user, and keep it for the report."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stretch of work that is shown and timed."""
        ...

    def work(self, done: int, total: int) -> None:
        """Progress within a stage."""
        ...


@dataclass(frozen=True)
class Conclusion:
    """What follows on training, for one process alone.

    Attributes:
        job: The job.
        evaluation: The evaluation samples that can be read; None measures no accuracy.
        objective: What was minimised.
        run: Is told of it.
    """

    job: Job
    evaluation: Samples | None
    objective: Objective
    run: Run

    def reach(
        self, module: ImportedModel, masks: Mapping[str, torch.Tensor], started: float
    ) -> dict[str, Any]:
        """Export, validate, and write the results.

        Args:
            module: The trained model, on the CPU and in evaluation mode; half-precision tensors
                are rounded to what the file holds.
            masks: Masks of the pruned tensors by ONNX name.
            started: When the run began, on the monotonic clock.

        Returns:
            The results, as written to `results.json`.

        Raises:
            ModelError: The written graph does not compute what was trained.
            OutputError: The output cannot be written.
        """
        with self.run.stage("export"):
            proto = self._export(module, masks)
            difference = self._compare_with_runtime(module, proto)
            write(proto, self.job.output, external=self.job.source.has_external_data)
        validation = self._validate()
        latency = self._latency()
        self.run.seconds["total"] = time.monotonic() - started
        results = self._results(proto, masks, validation, latency, difference)
        self.job.run.write_json(self.job.run.results, results)
        return results

    def _export(self, module: ImportedModel, masks: Mapping[str, torch.Tensor]) -> Any:
        tensors = {name: t.cpu().float().numpy() for name, t in module.export_tensors().items()}
        for name, mask in masks.items():
            tensors[name] = np.where(mask.cpu().numpy(), tensors[name], 0.0).astype(np.float32)
        proto = write_back(self.job.source.proto, tensors)
        stored = find_tensors(proto)
        _round_to_stored(module, stored)
        patterns = self._patterns({name: stored[name] for name in self.job.plan.tensors})
        kinds = set(patterns.values())
        described = describe_tensors((stored[name] for name in patterns), patterns)
        metadata = SparsityMetadata(
            schema_version=1,
            tool_version=__version__,
            method=self.job.recipe.sparsity.method,
            target_sparsity=self.job.recipe.sparsity.resolved_target,
            sparsity=overall_sparsity(described),
            pattern=kinds.pop() if len(kinds) == 1 else "unstructured",
            source_sha256=self.job.source.sha256,
            payload_sha256=payload_sha256(proto),
            recipe=self.job.recipe.portable(),
            data={name: DataMetadata(**facts) for name, facts in self.job.data_facts.items()},
            tensors=described,
            zeros_elsewhere=zeros_elsewhere(proto, patterns),
        )
        write_metadata(proto, metadata)
        if self.job.recipe.export.storage == "sparse":
            self._store_sparse(proto)
        return proto

    def _patterns(self, tensors: Mapping[str, GraphTensor]) -> dict[str, str]:
        """The pattern of each tensor, which kept weights that are zero can break."""
        asked = self.job.recipe.sparsity.pattern
        broken = [name for name, tensor in tensors.items() if not pattern_holds(tensor, asked)]
        if broken:
            self.run.message(
                f"{len(broken)} of {len(tensors)} tensors have zeros beside those of the pattern "
                f"{asked}, as kept weights of the model are zero, and are called unstructured: "
                + ", ".join(broken[:6])
                + (" ..." if len(broken) > 6 else "")
            )
        return {name: "unstructured" if name in set(broken) else asked for name in tensors}

    def _store_sparse(self, proto: Any) -> None:
        converted = to_sparse(proto, set(self.job.plan.tensors))
        self.run.message(
            f"{len(converted)} of {len(self.job.plan.tensors)} tensors are stored sparsely; the "
            f"others stay dense, since that is smaller below sparsity "
            f"{SPARSE_BREAK_EVEN:.2f}, or they are no initializers"
        )

    def _compare_with_runtime(self, module: ImportedModel, proto: Any) -> float | None:
        """Largest difference between the trained module and the written graph, on real samples."""
        samples = self.evaluation if self.evaluation is not None else self.job.train
        if samples is None:
            return None
        size = fixed_batch(self.job.source) or min(8, len(samples))
        batch = first_batch(samples, size)
        feeds = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        feeds = padded(feeds, fixed_batch(self.job.source))
        threads = self.job.recipe.validation.threads
        actual = open_session(proto, threads=threads).run(feeds)
        computed = _computed(module, feeds)
        wanted = {name: computed[name] for name in actual}
        differences = {name: _difference(wanted[name], actual[name]) for name in actual}
        allowed = {
            name: MAX_RUNTIME_DIFFERENCE * max(1.0, float(np.abs(wanted[name]).max(initial=0.0)))
            for name in actual
        }
        if any(not differences[name] <= allowed[name] for name in actual):
            plain = open_session(proto, threads=threads, optimization="none").run(feeds)
            self._explain(wanted, plain, _rounding(module, feeds, wanted), differences, allowed)
        return max(differences.values(), default=0.0)

    def _explain(
        self,
        wanted: Mapping[str, np.ndarray],
        plain: Mapping[str, np.ndarray],
        rounding: Mapping[str, float],
        differences: Mapping[str, float],
        allowed: Mapping[str, float],
    ) -> None:
        """Tell a network that enlarges rounding errors from a graph that computes something else.

        Args:
            wanted: What the trained module computes.
            plain: What ONNX Runtime computes without its optimisation.
            rounding: How far rounding moves each output of this network.
            differences: How far ONNX Runtime is from the module with its optimisation.
            allowed: How far it may in most networks.

        Raises:
            ModelError: It is not rounding.
        """
        for name in wanted:
            difference = max(_difference(wanted[name], plain[name]), differences[name])
            most = max(allowed[name], _ROUNDING_FACTOR * rounding[name])
            if not difference <= most:
                raise ModelError(
                    "the written graph does not compute what was trained",
                    where=f"output {name!r}",
                    got=f"a difference of {difference:.3g} under ONNX Runtime",
                    expected=f"at most {most:.3g}",
                    remedy="please report this with the model; nothing was written",
                )
            if not differences[name] <= allowed[name]:
                self.run.message(
                    f"output {name!r} is sensitive to rounding: the last digit of the weights "
                    f"changes it by {rounding[name]:.3g}, and under ONNX Runtime, which adds in "
                    f"another order, it differs by {differences[name]:.3g}. Layers almost dead and "
                    "BatchNorms that enlarge what is left of them do this; less sparsity or a "
                    "higher `min_density` helps. The accuracy reported is that of ONNX Runtime"
                )

    def _validate(self) -> dict[str, Any]:
        samples, settings = self.evaluation, self.job.recipe.validation
        if samples is None:
            return {"dense": {}, "pruned": {}, "samples": 0, "against_dense": {}}
        against_dense: dict[str, Any] = {}
        by_class = self.objective.task is None or (
            isinstance(self.objective.task, CrossEntropy) and has_classes(samples)
        )
        with self.run.stage("validate"):
            if by_class and self.objective.output == self.job.source.outputs[0].name:
                result = evaluate(
                    [self.job.source, self.job.output],
                    samples,
                    batch_size=settings.batch_size,
                    provider=settings.provider,
                    threads=settings.threads,
                    on_progress=self.run.work,
                ).to_json()
                metrics = [model["metrics"] for model in result["models"]]
                against_dense = result["models"][1]["against_first"]
            else:
                features = list(self.job.recipe.distill.features)
                tapped_output = tapped(read(self.job.output), features, "[distill] features")
                metrics = evaluate_task(
                    [self.job.traced, tapped_output],
                    samples,
                    self.objective,
                    batch_size=settings.batch_size,
                    provider=settings.provider,
                    threads=settings.threads,
                    on_progress=self.run.work,
                )
        dense, pruned = metrics
        return {
            "dense": dense,
            "pruned": pruned,
            "samples": len(samples),
            "against_dense": against_dense,
        }

    def _latency(self) -> dict[str, Any] | None:
        settings = self.job.recipe.validation
        if not settings.latency:
            return None
        # Elsewhere than on the CPU the profiler times how nodes are started, not how they run.
        profile = session_settings(settings.provider, settings.threads).provider == CPU
        with self.run.stage("latency"):
            try:
                return bench(
                    [self.job.source, self.job.output],
                    batch=settings.latency_batch,
                    shapes=settings.shapes or None,
                    threads=settings.threads,
                    provider=settings.provider,
                    max_seconds=settings.latency_seconds,
                    seed=self.job.recipe.finetune.seed,
                    on_progress=self.run.work,
                    profile=profile,
                ).to_json(with_samples=True)
            except UsageError as error:
                self.run.message(f"latency was not measured: {error.what}; {error.remedy}")
                return None

    def _results(
        self,
        proto: Any,
        masks: Mapping[str, torch.Tensor],
        validation: dict[str, Any],
        latency: dict[str, Any] | None,
        difference: float | None,
    ) -> dict[str, Any]:
        metadata = read_metadata(proto) or {}
        closure = closure_of(proto, {name: mask.cpu() for name, mask in masks.items()})
        channels = {name: asdict(dead) for name, dead in closure.dead_channels.items()}
        tensors = tensor_table(self.job.source, proto, set(self.job.plan.tensors))
        written = read(self.job.output)
        return {
            "schema_version": SCHEMA_VERSION,
            "tool_version": __version__,
            "output": self.job.output.name,
            "output_path": str(self.job.output),
            "output_sha256": written.sha256,
            "source_path": str(self.job.source.path) if self.job.source.path else None,
            "size_bytes": {"dense": self.job.source.size_bytes, "pruned": written.size_bytes},
            **{
                key: metadata[key]
                for key in (
                    "method",
                    "pattern",
                    "target_sparsity",
                    "sparsity",
                    "source_sha256",
                    "payload_sha256",
                )
            },
            "data": self.job.data_facts,
            "budget": asdict(job_budget(self.job)),
            "overlap_with_one_shot": _overlap_with_one_shot(self.job, masks),
            "validation": {**validation, "torch_vs_runtime_max_abs_error": difference},
            "cost": layer_costs(self.job.source.proto, proto, latency),
            "latency": latency,
            "dead_weights": sum(closure.dead.values()),
            "dead_channels": {
                side: sum(dead[side] for dead in channels.values())
                for side in ("inputs", "outputs")
            },
            "tensors": [
                {
                    **entry,
                    "dead": closure.dead.get(entry["name"], 0),
                    "dead_channels": channels.get(entry["name"]),
                }
                for entry in tensors
            ],
            "recipe": self.job.recipe.to_dict(),
            "environment": {**describe_machine(), "torch": torch.__version__},
            "timing": {f"{name.replace(' ', '_')}_s": s for name, s in self.run.seconds.items()},
            "seed": self.job.recipe.finetune.seed,
            "notes": self.run.notes,
        }


def job_budget(job: Job) -> Budget:
    """What a run has cost by its log, for one sample size: that of the shapes in the graph."""
    source = job.source
    flops = count_flops(source.proto, find_tensors(source.proto))
    events = [
        (entry["step"], entry["kept"]) for entry in job.run.entries() if entry["kind"] == "event"
    ]
    batch = job.recipe.finetune.batch_size
    return training_budget(
        events,
        {name: tensor.size for name, tensor in job.plan.tensors.items()},
        job.total_steps,
        batch if job.train is None else min(batch, len(job.train)),
        job.steps_per_epoch,
        flops.by_tensor,
        flops.total,
        job.plan.events(job.total_steps),
    )


def _overlap_with_one_shot(job: Job, masks: Mapping[str, torch.Tensor]) -> dict[str, float] | None:
    """What the kept weights have in common with those that pruning the dense model once keeps.

    None for patterns other than unstructured, whose groups decide with the magnitudes.
    """
    if job.recipe.sparsity.pattern != "unstructured" or not masks:
        return None
    kept = {name: mask.cpu() for name, mask in masks.items()}
    dense = {
        name: torch.from_numpy(job.plan.tensors[name].array().astype(np.float32)) for name in kept
    }
    zeros = sum(int((~mask).sum()) for mask in kept.values())
    overlap = kept_overlap(select_masks(dense, zeros, Magnitude(), floors=job.plan.floors), kept)
    return {"jaccard": overlap.jaccard, "expected": overlap.expected}


def _computed(module: ImportedModel, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a module computes, by output."""
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
        outputs = named_outputs(module(**inputs), module.output_names)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _rounding(
    module: ImportedModel, feeds: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """How far each output moves if the last digit of all stored numbers is drawn anew."""
    generator = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(wanted, 0.0)
    for _ in range(_DRAWS):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in (*moved.parameters(), *moved.buffers()):
                if tensor.is_floating_point():
                    drawn = 2 * torch.rand(tensor.shape, generator=generator) - 1
                    tensor.mul_(1 + _LAST_DIGIT * drawn)
        found = _computed(moved, feeds)
        for name in wanted:
            largest[name] = max(largest[name], _difference(wanted[name], found[name]))
    return largest


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference between two outputs; infinities that are equal do not differ."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a - b)).max(initial=0.0))


def _round_to_stored(module: ImportedModel, stored: Mapping[str, GraphTensor]) -> None:
    """Round the tensors of a half-precision file, which train in float32, to what it holds."""
    state = module.state_dict()
    for key, name in (module.tensor_names | module.buffer_names).items():
        dtype = _HALF.get(stored[name].dtype.name) if name in stored else None
        if dtype is not None:
            state[key].copy_(state[key].to(dtype))

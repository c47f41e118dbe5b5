"""Is there cascade shedding in a model: treated and control arms over seeds, and what follows.

For each seed, treated arms lose a share of their weights before the first step, by magnitude or at
random; the control arm starts from the same weights and loses none. All train alike: data order,
learning rate, weight decay. What the treated arms shed beyond the control is the cascade.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from onnxprune.assembly import Assembly, deterministic
from onnxprune.cascade import (
    Overlap,
    ShedMonitor,
    kept_overlap,
)
from onnxprune.corrupt import CorruptSamples
from onnxprune.errors import Interrupted, UsageError
from onnxprune.finetune import Ranks, Trainer, make_accelerator
from onnxprune.importer import load
from onnxprune.job import Job, prepare
from onnxprune.probe_results import CONTROL, ProbePlan, probe_plan, probe_result
from onnxprune.recipe import Recipe
from onnxprune.sparsity import Magnitude, prunable_limit, select_masks, target_zeros

ProgressCallback = Callable[[dict[str, Any]], None]


def prepare_probe(
    model: str | Path,
    recipe: Recipe,
    *,
    run_dir: str | Path,
    allow_python: bool = False,
) -> Job:
    """Check everything that a probe needs; see `job.prepare` for arguments and errors.

    Raises:
        UsageError: There is nothing to train; so many weights are zero already that the treated
            arms would lose no other; or several processes were started.
        OnnxpruneError: Whatever `prepare` raises.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UsageError(
            "a probe runs in one process",
            where="onnxprune cascade",
            got=f"{processes} processes of a launcher",
            remedy="start it without torchrun or accelerate launch",
        )
    whole = {"target": recipe.cascade.prune, "method": "one-shot", "pattern": "unstructured"}
    whole["pattern_choice"] = "during"
    tables = recipe.model_dump(by_alias=True, exclude_unset=True)
    sparsity = {**tables.get("sparsity", {}), **whole}
    schedule = {**tables.get("schedule", {}), "begin": 0.0}
    first = Recipe.from_dict({**tables, "sparsity": sparsity, "schedule": schedule})
    job = prepare(model, None, first, run_dir=run_dir, resume=True, allow_python=allow_python)
    if not job.total_steps:
        raise UsageError(
            "a probe has to train",
            where="[finetune] epochs",
            got=recipe.finetune.epochs,
            expected="above 0, with --data",
        )
    target = recipe.sparsity.resolved_target
    prunable_limit(
        {name: tensor.size for name, tensor in job.plan.tensors.items()},
        job.plan.floors,
        target_zeros(target, job.plan.size),
        what=f"sparsity {target:g}",
    )
    zeros = sum(
        tensor.size - int(np.count_nonzero(tensor.array())) for tensor in job.plan.tensors.values()
    )
    if zeros >= job.plan.zeros:
        # Magnitude would take zeros only, and a gain for each weight pruned would be 0 / 0.
        raise UsageError(
            "the treated arms would lose only weights that are zero already",
            where="[cascade] prune",
            got=f"{recipe.cascade.prune} of {job.plan.size} weights, {zeros} of which are zero",
            expected=f"more than {zeros / job.plan.size:.4g}",
        )
    return job


def probe(
    job: Job,
    target: Recipe,
    seeds: int,
    *,
    on_progress: ProgressCallback = lambda entry: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the arms and say what they show.

    Arms that an earlier call with the same job finished are read from the run directory.

    Args:
        job: From `prepare_probe`.
        target: The recipe of the main job, for whose sparsity kept sets are compared, and for whose
            schedule and epochs events are recommended.
        seeds: Number of seeds, at least 1.
        on_progress: As in `pipeline.execute`; training entries carry `arm` and `seed`. Before each
            arm comes `{"kind": "arm", "name": ..., "seed": ..., "done": ..., "total": ...,
            "steps": ...}` with the number of finished arms, of all arms, and the steps of each.
        stop: Asked often; when it says yes, the probe stops. Finished arms are kept.

    Returns:
        JSON values; see `docs/reference/json.md`. Also written to `probe.json`.

    Raises:
        Interrupted: `stop` said so.
        OnnxpruneError: Anything that goes wrong in training.
    """
    plan = probe_plan(job, seeds)
    with ExitStack() as held:
        held.enter_context(job.run.locked())
        accelerator = make_accelerator(job.recipe.finetune, job.run.path)
        held.callback(accelerator.end_training)
        runner = _Arms(job, target, accelerator, on_progress, stop)
        arms = runner.run(plan)
    result = probe_result(job, target, plan, arms)
    job.run.write_json(job.run.probe, result)
    return result


class _Arms:
    """Trains arms, one after another."""

    def __init__(
        self,
        job: Job,
        target: Recipe,
        accelerator: Accelerator,
        on_progress: ProgressCallback,
        stop: Callable[[], bool],
    ) -> None:
        self.job = job
        self.target = target
        self.accelerator = accelerator
        self.ranks = Ranks(accelerator.device)
        self.on_progress = on_progress
        self.stop = stop

    def run(self, plan: ProbePlan) -> list[dict[str, Any]]:
        """The results of all arms, seed by seed."""
        known = finished_arms(self.job, self.target, plan)
        missing = [key for key in plan.runs if key not in known]
        for number, (name, seed) in enumerate(missing, start=len(known)):
            if self.stop():
                raise Interrupted(
                    "interrupted between two arms",
                    remedy="with --run-dir the same call goes on; without it, it begins again",
                )
            counts = {"done": number, "total": len(plan.runs), "steps": plan.steps}
            self.on_progress({"kind": "arm", "name": name, "seed": seed, **counts})
            known[name, seed] = self._arm(name, seed)
        return [known[key] for key in plan.runs]

    def _arm(self, name: str, seed: int) -> dict[str, Any]:
        job = self.arm_job(name, seed)
        with deterministic(job.recipe, 0, self.ranks.device):
            result = _Arm(self, job, name, seed).run()
        file = _arm_file(self.job, name, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        run_id = _arm_id(self.job, self.target, name, seed)
        self.job.run.write_json(file, {"run_id": run_id, **result})
        return result

    def arm_job(self, name: str, seed: int) -> Job:
        """The job of an arm."""
        plan = replace(self.job.plan, zeros=0) if name == CONTROL else self.job.plan
        recipe = _arm_recipe(self.job.recipe, name, seed)
        changed = self.job.augmentation
        if changed is not None:
            changed = changed.with_seed(seed)
        return replace(self.job, recipe=recipe, plan=plan, augmentation=changed, resume=True)


def finished_arms(
    job: Job, target: Recipe, plan: ProbePlan
) -> dict[tuple[str, int], dict[str, Any]]:
    """(name, seed) -> the result of each arm that an earlier call with the same job finished.

    Args:
        job: From `prepare_probe`.
        target: As in `probe`.
        plan: Of the probe.
    """
    stored = {
        (name, seed): read_arm(_arm_file(job, name, seed), _arm_id(job, target, name, seed))
        for name, seed in plan.runs
    }
    return {key: result for key, result in stored.items() if result is not None}


def _arm_recipe(recipe: Recipe, name: str, seed: int) -> Recipe:
    sparsity = recipe.sparsity.model_copy(
        update={"method": "random" if name == "random" else "one-shot"}
    )
    if name == CONTROL:
        sparsity = sparsity.model_copy(update={"target": 0.0})
    finetune = recipe.finetune.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"finetune": finetune, "sparsity": sparsity})


def _arm_file(job: Job, name: str, seed: int) -> Path:
    return job.run.arms / f"{seed}-{name}.json"


def _arm_id(job: Job, target: Recipe, name: str, seed: int) -> str:
    """What decides the result of an arm, with the sparsity for which kept sets are compared."""
    facts = {
        **job.identity,
        "run_id": None,
        "recipe_sha256": _arm_recipe(job.recipe, name, seed).sha256(),
        "target_sparsity": target.sparsity.resolved_target,
    }
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()


class _Arm:
    """One arm's training, and what it sheds on the way; the host of its trainer."""

    def __init__(self, arms: _Arms, job: Job, name: str, seed: int) -> None:
        self.arms = arms
        self.job = job
        self.name = name
        self.seed = seed
        self.points: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.watched: dict[str, tuple[ShedMonitor, dict[str, Tensor]]] = {}
        self.elsewhere: dict[str, list[dict[str, Any]]] = {}
        self.trainer: Trainer

    def run(self) -> dict[str, Any]:
        """Train, and say what was seen."""
        started = time.monotonic()
        job, arms = self.job, self.arms
        imported = load(job.traced)
        assembly = Assembly(job, job.eval, arms.accelerator, arms.ranks, self)
        assert job.train is not None
        corrupt = CorruptSamples(
            len(job.train), job.recipe.data.max_corrupt, "the training data", self.message
        )
        self.trainer = trainer = assembly.trainer(imported, corrupt, arms.stop)
        trainer.checkpoints = None
        dense = {n: p.detach().clone() for n, p in trainer.masks.parameters.items()}
        if self.name == CONTROL:
            self._watch_treated(dense)
        trainer.fit()
        masks, weights = trainer.masks.masks, trainer.masks.parameters
        lost = {name: ~mask for name, mask in masks.items()}
        change = trainer.ablation.measure(trainer.pruner.monitor.shed(weights, masks))
        return {
            "name": self.name,
            "seed": self.seed,
            "steps": trainer.plan.total_steps,
            "pruned": sum(int((dense[n][gone] != 0).sum()) for n, gone in lost.items()),
            "weights": trainer.masks.total,
            "shed": self.points,
            "elsewhere": self.elsewhere,
            "without_shed": {"loss_change": change.loss, "output_change": change.outputs},
            "metrics": self.metrics,
            "overlap_with_one_shot": self._overlap(dense, weights).__dict__,
            "seconds": time.monotonic() - started,
        }

    def _watch_treated(self, dense: Mapping[str, Tensor]) -> None:
        """Watch the positions that each treated arm keeps, which a control arm does not lose."""
        for name in self.job.recipe.cascade.scores:
            masks = self._treated_masks(name)
            monitor = ShedMonitor(self.job.recipe.cascade.tau)
            monitor.begin(0, dense, masks)
            self.watched[name] = monitor, masks
            self.elsewhere[name] = []

    def _treated_masks(self, name: str) -> dict[str, Tensor]:
        arms = self.arms
        job = arms.arm_job(name, self.seed)
        assembly = Assembly(job, None, arms.accelerator, arms.ranks, self)
        return assembly.pruner(self.trainer.masks).select(job.plan.zeros)

    def _overlap(self, dense: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Overlap:
        """How the weights that magnitude keeps now differ from those of the dense model."""
        target = self.arms.target.sparsity.resolved_target
        zeros = target_zeros(target, self.trainer.masks.total)
        floors = self.job.plan.floors

        def chosen(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
            plain = {name: weight.detach() for name, weight in weights.items()}
            return select_masks(plain, zeros, Magnitude(), floors=floors)

        return kept_overlap(chosen(dense), chosen(trained))

    def record(self, entry: dict[str, Any]) -> None:
        """See `Observer.record`."""
        if entry["kind"] == "shed":
            self.points.append(_point(entry))
            weights = self.trainer.masks.parameters
            for name, (monitor, masks) in self.watched.items():
                count = monitor.count(entry["step"], weights, masks)
                self.elsewhere[name].append(
                    {
                        "step": count.step,
                        "kept": count.kept,
                        "shed": count.total,
                        "shed_relative": count.total_relative,
                        "tensors": {n: number for n, number in count.shed.items() if number},
                    }
                )
        elif entry["kind"] == "eval":
            self.metrics = dict(entry["metrics"])
        self.arms.on_progress({**entry, "arm": self.name, "seed": self.seed})

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        """See `Observer.rewound`."""

    def message(self, text: str) -> None:
        """See `Observer.message`."""
        self.arms.on_progress({"kind": "message", "text": text})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `Host.stage`; arms are the stages that are shown."""
        yield

    def work(self, done: int, total: int) -> None:
        """See `Host.work`."""
        self.arms.on_progress({"kind": "work", "done": done, "total": total})


def _point(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("step", "kept", "shed", "shed_relative", "tensors")}


def read_arm(file: Path, run_id: str) -> dict[str, Any] | None:
    """The stored result of an arm of the same job; None if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.pop("run_id", None) != run_id:
        return None
    return value

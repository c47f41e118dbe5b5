"""What a probe for cascade shedding will do, and what its arms say together."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from onnxprune.cascade import (
    Gain,
    cascade_gain,
    decay_horizon,
    decay_reached,
    gain_over_seeds,
    recommend,
)
from onnxprune.finetune import learning_rate, weight_decay
from onnxprune.job import Job
from onnxprune.recipe import Recipe
from onnxprune.validate import describe_machine
from onnxprune.version import __version__

CONTROL = "control"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ProbePlan:
    """What a probe will do, known before it begins.

    Attributes:
        arms: Names of the arms of each seed, treated ones first.
        seeds: The seeds.
        steps: Optimizer steps of each arm.
        horizon_steps: Steps in which weight decay alone sheds an unused weight of the tensor that
            is decayed most, at the mean learning rate of the run; None without weight decay.
        horizon_reached: How much of that the run covers; at least 1 can show a complete cascade.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    horizon_steps: int | None
    horizon_reached: float

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(name, seed) of every run, seed by seed."""
        return [(name, seed) for seed in self.seeds for name in self.arms]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for `--dry-run`."""
        return {
            "arms": list(self.arms),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "decay_horizon_steps": self.horizon_steps,
            "decay_horizon_reached": self.horizon_reached,
            "warning": self.warning,
        }

    @property
    def warning(self) -> str | None:
        """What the run cannot show, if so."""
        if self.horizon_steps is None:
            return "without weight decay unused weights do not fall: nothing can be shed"
        if self.horizon_reached >= 1:
            return None
        return (
            f"the run covers {self.horizon_reached:.0%} of the decay horizon: weight decay needs "
            f"{self.horizon_steps:,} steps at this learning rate to shed a weight that nothing "
            f"holds up, and an arm has {self.steps:,}. It cannot show a complete cascade; raise "
            "--epochs, [finetune] lr or weight_decay"
        )


def probe_plan(job: Job, seeds: int) -> ProbePlan:
    """Arms, steps and decay horizon of a probe."""
    recipe, steps = job.recipe, job.total_steps
    settings = recipe.finetune
    momentum = settings.momentum if settings.optimizer == "sgd" else 0.0

    def rate(step: int) -> float:
        return learning_rate(settings, (step + 0.5) / steps)

    decay = max(
        weight_decay(name, len(tensor.shape), settings) for name, tensor in job.plan.tensors.items()
    )
    terms = (rate, decay, momentum, recipe.cascade.tau, steps)
    reached = decay_reached(*terms)
    within = decay_horizon(*terms)
    needed = within if within is not None else math.ceil(steps / reached) if reached else None
    first = settings.seed
    return ProbePlan(
        (*recipe.cascade.scores, CONTROL),
        tuple(range(first, first + seeds)),
        steps,
        needed,
        reached,
    )


def probe_result(
    job: Job, target: Recipe, plan: ProbePlan, arms: list[dict[str, Any]]
) -> dict[str, Any]:
    """What all arms of a probe say together, as JSON values.

    Args:
        job: The job of the probe.
        target: The recipe of the main job, for whose schedule and epochs events are recommended.
        plan: What was run.
        arms: The results of all arms.
    """
    by_name = {(arm["name"], arm["seed"]): arm for arm in arms}
    scores = plan.arms[:-1]
    gains = {score: _gain(score, plan, by_name, "shed") for score in scores}
    relative = {score: _gain(score, plan, by_name, "shed_relative") for score in scores}
    first = scores[0]
    curves = {score: _net_curve(score, plan, by_name) for score in scores}
    schedule = target.schedule
    main_steps = max(1, round(target.finetune.epochs * job.steps_per_epoch))
    advice = recommend(
        gains[first].verdict,
        curves[first],
        round((schedule.end - schedule.begin) * main_steps),
        schedule.events,
        plan.horizon_reached,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "model": None if job.source.path is None else job.source.path.name,
        "source_sha256": job.source.sha256,
        "verdict": gains[first].verdict,
        "score": first,
        "gain": _gain_json(gains[first]),
        "gains": {
            score: {
                "verdict": gains[score].verdict,
                **_gain_json(gains[score]),
                "relative": _gain_json(relative[score]),
                "seeds_that_would_decide": gains[score].seeds_needed()
                if gains[score].verdict == "inconclusive"
                else None,
            }
            for score in scores
        },
        "tau": job.recipe.cascade.tau,
        "pruned_share": job.recipe.cascade.prune,
        "target_sparsity": target.sparsity.resolved_target,
        "decay_horizon_steps": plan.horizon_steps,
        "decay_horizon_reached": plan.horizon_reached,
        "steps": plan.steps,
        "seeds": list(plan.seeds),
        "curves": {
            score: [{"step": step, "net_shed": shed} for step, shed in curve]
            for score, curve in curves.items()
        },
        "tensors": {score: _tensor_rows(score, job, plan, by_name) for score in scores},
        "without_shed": _worst_change(arms),
        "overlap_with_one_shot": {
            name: statistics.fmean(
                by_name[name, seed]["overlap_with_one_shot"]["jaccard"] for seed in plan.seeds
            )
            for name in plan.arms
        },
        "recommendation": asdict(advice),
        "notes": [*job.notes, *([plan.warning] if plan.warning else [])],
        "arms": arms,
        "recipe": target.model_copy(update={"preprocess": job.recipe.preprocess}).portable(),
        "data": job.data_facts,
        "environment": {**describe_machine(), "torch": torch.__version__},
    }


def _gain(
    score: str, plan: ProbePlan, arms: Mapping[tuple[str, int], dict[str, Any]], key: str
) -> Gain:
    values = []
    for seed in plan.seeds:
        treated, control = arms[score, seed], arms[CONTROL, seed]["elsewhere"][score]
        values.append(cascade_gain(treated["shed"][-1][key], control[-1][key], treated["pruned"]))
    return gain_over_seeds(values)


def _gain_json(gain: Gain) -> dict[str, Any]:
    """JSON has no infinity: the ends of an interval from one seed are null."""
    return {
        "mean": gain.mean,
        "low": gain.low if math.isfinite(gain.low) else None,
        "high": gain.high if math.isfinite(gain.high) else None,
        "values": list(gain.values),
    }


def _net_curve(
    score: str, plan: ProbePlan, arms: Mapping[tuple[str, int], dict[str, Any]]
) -> list[tuple[int, float]]:
    """(step, net shed weights), mean over the seeds."""
    curves = [
        [
            (treated["step"], treated["shed"] - control["shed"])
            for treated, control in zip(
                arms[score, seed]["shed"], arms[CONTROL, seed]["elsewhere"][score], strict=True
            )
        ]
        for seed in plan.seeds
    ]
    return [
        (points[0][0], statistics.fmean(value for _, value in points))
        for points in zip(*curves, strict=True)
    ]


def _tensor_rows(
    score: str, job: Job, plan: ProbePlan, arms: Mapping[tuple[str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Net shed weights of each tensor at the end, mean over the seeds; the largest first."""
    rows = []
    for name, tensor in job.plan.tensors.items():
        treated, control = (
            statistics.fmean(last["tensors"].get(name, 0) for last in ends)
            for ends in (
                [arms[score, seed]["shed"][-1] for seed in plan.seeds],
                [arms[CONTROL, seed]["elsewhere"][score][-1] for seed in plan.seeds],
            )
        )
        rows.append(
            {
                "name": name,
                "op_type": tensor.op_type,
                "size": tensor.size,
                "shed": treated,
                "control": control,
                "net_shed": treated - control,
            }
        )
    return sorted(rows, key=lambda row: -row["net_shed"])


def _worst_change(arms: list[dict[str, Any]]) -> dict[str, float]:
    """The largest changes that zeroing the shed weights made in any arm."""
    return {
        key: max((arm["without_shed"][key] for arm in arms), key=abs)
        for key in ("loss_change", "output_change")
    }

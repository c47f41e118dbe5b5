"""Read a run directory into one checked record.

A run that has not finished is a normal case, not an error.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onnxprune.errors import UsageError
from onnxprune.run_directory import (
    METRICS_FILE,
    PLAN_FILE,
    PROBE_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    RUN_FILE,
    Status,
)
from onnxprune.validate.record_files import (
    REMEDY,
    damaged,
    parse_toml,
    read_json,
    read_text,
    validated,
)


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class RunInfo(_Lenient):
    """`run.json`: which run this is, and how far it came."""

    status: Status
    schema_version: int = 1
    tool_version: str | None = None
    source_sha256: str | None = None
    error: str | None = None


class TrainPoint(_Lenient):
    """One training step of `metrics.jsonl`."""

    step: int = Field(ge=0)
    epoch: float | None = None
    progress: float | None = None
    loss: float | None = None
    lr: float | None = None
    sparsity: float | None = None
    images_per_s: float | None = None


class EventPoint(_Lenient):
    """One pruning event of `metrics.jsonl`."""

    step: int = Field(ge=0)
    progress: float | None = None
    target_sparsity: float | None = None
    sparsity: float
    pruned: int | None = Field(None, ge=0)
    closed: int = Field(0, ge=0)
    harvested: int = Field(0, ge=0)
    waited: int = Field(0, ge=0)

    @property
    def ranked(self) -> int | None:
        """Weights that went because of their score, not because they were dead or shed."""
        return None if self.pruned is None else max(0, self.pruned - self.closed - self.harvested)


class WaitPoint(_Lenient):
    """One pruning event of `metrics.jsonl` at which weights of small magnitude waited."""

    step: int = Field(ge=0)
    put_off: int = Field(ge=0)


class PlannedEvent(BaseModel):
    """One pruning event of `plan.json`: the sparsity that the schedule asks for from then on."""

    step: int = Field(ge=0)
    sparsity: float


class Plan(BaseModel):
    """`plan.json`, as far as it is checked; its other keys are shown as they are."""

    schedule: list[PlannedEvent] = []


class ShedPoint(_Lenient):
    """One count of shed weights of `metrics.jsonl`."""

    step: int = Field(ge=0)
    kept: int = Field(ge=0)
    shed: int = Field(ge=0)
    shed_relative: int = Field(ge=0)


class EvalPoint(_Lenient):
    """One evaluation of `metrics.jsonl`."""

    step: int = Field(ge=0)
    epoch: float | None = None
    sparsity: float | None = None
    metrics: dict[str, float | None] = {}


class Histogram(_Lenient):
    """Counts of a tensor's values in the bins between `edges`."""

    edges: list[float] = Field(min_length=2)
    before: list[float]
    after: list[float]


class TensorResult(_Lenient):
    """What became of one tensor."""

    name: str
    op_type: str | None = ""
    shape: list[int]
    size: int = Field(ge=0)
    nonzeros_before: int = Field(ge=0)
    nonzeros: int = Field(ge=0)
    sparsity_before: float
    sparsity: float
    prunable: bool
    histogram: Histogram | None = None


class Sizes(_Lenient):
    """File sizes in bytes."""

    dense: int = Field(ge=0)
    pruned: int = Field(ge=0)


class DataSet(_Lenient):
    """The samples that one side of the run used."""

    samples: int | None = None
    digest: str | None = None
    labelled: bool | None = None
    held_out: bool | None = None


class Difference(_Lenient):
    """A metric of the pruned model less that of the dense one, with its 95 % interval."""

    difference: float
    low: float
    high: float


class Validation(_Lenient):
    """Metrics of both models under ONNX Runtime."""

    dense: dict[str, float | None] = {}
    pruned: dict[str, float | None] = {}
    against_dense: dict[str, Difference] = {}
    samples: int | None = None
    torch_vs_runtime_max_abs_error: float | None = None


class Speedup(_Lenient):
    """Baseline latency over model latency, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class ModelLatency(_Lenient):
    """Latency of one model; `samples` are milliseconds in round order."""

    path: str
    latency_ms: dict[str, float | None]
    samples: list[float] = []
    load_ms: float | None = None
    speedup: Speedup | None = None


class Latency(_Lenient):
    """A paired bench; the first model is the baseline."""

    conclusive: bool | None = None
    verdict: str | None = None
    environment: dict[str, Any] = {}
    models: list[ModelLatency] = Field(min_length=1)


class LayerCostRecord(_Lenient):
    """What a layer costs for one sample, see `layer_costs.LayerCost`."""

    name: str
    op_type: str
    size: int = Field(ge=0)
    nonzeros: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    multiply_adds: int | None = Field(None, ge=0)
    multiply_adds_sparse: int | None = Field(None, ge=0)
    ms: float | None = None

    @model_validator(mode="after")
    def _plausible(self) -> "LayerCostRecord":
        if self.nonzeros > self.size:
            raise ValueError(f"{self.nonzeros} non-zeros in {self.size} weights")
        return self


class ModelCostRecord(_Lenient):
    """What the layers of a model cost."""

    multiply_adds: int | None = None
    layers: list[LayerCostRecord] = []
    left_out: int = 0


class CostResult(_Lenient):
    """What both models cost."""

    dense: ModelCostRecord
    pruned: ModelCostRecord


class BudgetResult(_Lenient):
    """What training cost; FLOPs are null where the graph's are not known."""

    epochs: float
    steps: int
    mean_density: float
    mean_density_planned: float | None = None
    training_flops_dense: int | None = None
    training_flops: int | None = None


class OverlapResult(_Lenient):
    """Jaccard index of two sets of kept weights, and that of random sets."""

    jaccard: float
    expected: float


class DeadChannelsResult(_Lenient):
    """Channels of pruned tensors without a weight that does anything."""

    inputs: int = Field(ge=0)
    outputs: int = Field(ge=0)


class Results(_Lenient):
    """`results.json`: what came out of a finished run."""

    output: str
    method: str
    pattern: str
    target_sparsity: float
    sparsity: float
    size_bytes: Sizes | None = None
    source_sha256: str | None = None
    payload_sha256: str | None = None
    data: dict[str, DataSet | None] = {}
    validation: Validation | None = None
    latency: Latency | None = None
    tensors: list[TensorResult] = []
    environment: dict[str, Any] = {}
    timing: dict[str, Any] = {}
    seed: int | None = None
    notes: list[str] = []
    budget: BudgetResult | None = None
    cost: CostResult | None = None
    output_path: str | None = None
    output_sha256: str | None = None
    source_path: str | None = None
    overlap_with_one_shot: OverlapResult | None = None
    dead_weights: int | None = Field(None, ge=0)
    dead_channels: DeadChannelsResult | None = None


@dataclass(frozen=True)
class RunRecord:
    """Everything a run directory says about its run."""

    path: Path
    info: RunInfo
    recipe_text: str
    recipe: dict[str, Any]
    plan: dict[str, Any]
    planned: list[PlannedEvent]
    train: list[TrainPoint]
    events: list[EventPoint]
    waits: list[WaitPoint]
    evals: list[EvalPoint]
    shed: list[ShedPoint]
    results: Results | None

    @property
    def last_step(self) -> int:
        """The last step that was recorded; 0 before the first."""
        steps = [point.step for point in self.train]
        steps += [point.step for point in self.events]
        steps += [point.step for point in self.evals]
        return max(steps, default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, as far as the plan or the recorded progress tells."""
        planned = self.plan.get("steps")
        if isinstance(planned, int) and not isinstance(planned, bool) and planned > 0:
            return planned
        for point in reversed(self.train):
            if point.progress:
                return max(point.step, round(point.step / point.progress))
        return None


def read_run(run_dir: Path) -> RunRecord:
    """Read and check the files of `run_dir`.

    Raises:
        UsageError: `run_dir` is no run directory, or one of its files is missing or damaged.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UsageError("this is not a run directory", where=run_dir, remedy=REMEDY)
    if not (run_dir / RUN_FILE).exists():
        raise UsageError(
            "this folder holds neither a run nor a probe",
            where=run_dir,
            expected=f"{RUN_FILE}, or {PROBE_FILE}",
            remedy=REMEDY,
        )
    info = validated(RunInfo, read_json(run_dir / RUN_FILE), run_dir / RUN_FILE)
    recipe_text = read_text(run_dir / RECIPE_FILE)
    plan_path = run_dir / PLAN_FILE
    results_path = run_dir / RESULTS_FILE
    results = None
    if info.status == "finished" or results_path.exists():
        results = validated(Results, read_json(results_path), results_path)
        _check_results(results, results_path)
    plan = read_json(plan_path) if plan_path.exists() else {}
    train, events, waits, evals, shed = _read_metrics(run_dir / METRICS_FILE)
    return RunRecord(
        path=run_dir,
        info=info,
        recipe_text=recipe_text,
        recipe=parse_toml(recipe_text, run_dir / RECIPE_FILE),
        plan=plan,
        planned=sorted(validated(Plan, plan, plan_path).schedule, key=lambda event: event.step),
        train=train,
        events=events,
        waits=waits,
        evals=evals,
        shed=shed,
        results=results,
    )


def _check_results(results: Results, path: Path) -> None:
    for index, tensor in enumerate(results.tensors):
        if max(tensor.nonzeros, tensor.nonzeros_before) > tensor.size:
            raise damaged(
                path,
                f"tensors.{index}: {max(tensor.nonzeros, tensor.nonzeros_before)} non-zeros",
                expected=f"at most its size, {tensor.size}",
            )
        histogram = tensor.histogram
        if histogram is not None and not (
            len(histogram.before) == len(histogram.after) == len(histogram.edges) - 1
        ):
            raise damaged(
                path,
                f"tensors.{index}.histogram: {len(histogram.edges)} edges, "
                f"{len(histogram.before)} and {len(histogram.after)} counts",
                expected="one count fewer than edges",
            )


def _read_metrics(
    path: Path,
) -> tuple[list[TrainPoint], list[EventPoint], list[WaitPoint], list[EvalPoint], list[ShedPoint]]:
    """The points of each kind, in step order; a repeated step keeps its last line.

    A step appears twice when a run was resumed from a checkpoint before it. The last line may be
    cut short, because a run can be killed (or still be running) while it writes.
    """
    if not path.exists():
        return [], [], [], [], []
    train: dict[int, TrainPoint] = {}
    events: dict[int, EventPoint] = {}
    waits: dict[int, WaitPoint] = {}
    evals: dict[int, EvalPoint] = {}
    sheds: dict[int, ShedPoint] = {}
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if number == len(lines):
                break
            raise damaged(path, f"line {number} is not JSON") from error
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind == "train":
            train_point = validated(TrainPoint, value, path, number)
            train[train_point.step] = train_point
        elif kind == "event":
            event = validated(EventPoint, value, path, number)
            events[event.step] = event
        elif kind == "wait":
            wait = validated(WaitPoint, value, path, number)
            waits[wait.step] = wait
        elif kind == "eval":
            evaluation = validated(EvalPoint, value, path, number)
            evals[evaluation.step] = evaluation
        elif kind == "shed":
            shed = validated(ShedPoint, value, path, number)
            sheds[shed.step] = shed
        elif not isinstance(kind, str):
            raise damaged(path, f"line {number} has no `kind`")
    return (
        [train[step] for step in sorted(train)],
        [events[step] for step in sorted(events)],
        [waits[step] for step in sorted(waits)],
        [evals[step] for step in sorted(evals)],
        [sheds[step] for step in sorted(sheds)],
    )

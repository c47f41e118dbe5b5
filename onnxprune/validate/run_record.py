"""Read a run directory into one checked record, without torch and without pickle.

A run directory is untrusted input: sizes are limited before reading, every file is validated, and
what is wrong names the file. A run that has not finished is a normal case, not an error.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxprune.errors import UsageError
from onnxprune.run_directory import (
    METRICS_FILE,
    PLAN_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    RUN_FILE,
    Status,
)

_MAX_FILE_BYTES = 256 * 1024**2
_REMEDY = "name the folder that `onnxprune prune --run-dir` wrote, or run it again"


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
    pruned: int | None = None


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


class Validation(_Lenient):
    """Metrics of both models under ONNX Runtime."""

    dense: dict[str, float | None] = {}
    pruned: dict[str, float | None] = {}
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


class BudgetResult(_Lenient):
    """What training cost; FLOPs are null where the graph's are not known."""

    epochs: float
    steps: int
    mean_density: float
    training_flops_dense: int | None = None
    training_flops: int | None = None


class OverlapResult(_Lenient):
    """Jaccard index of two sets of kept weights, and that of random sets."""

    jaccard: float
    expected: float


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
    overlap_with_one_shot: OverlapResult | None = None
    dead_weights: int | None = Field(None, ge=0)


@dataclass(frozen=True)
class RunRecord:
    """Everything a run directory says about its run."""

    path: Path
    info: RunInfo
    recipe_text: str
    recipe: dict[str, Any]
    plan: dict[str, Any]
    train: list[TrainPoint]
    events: list[EventPoint]
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
        raise UsageError("this is not a run directory", where=run_dir, remedy=_REMEDY)
    info = _validated(RunInfo, _read_json(run_dir / RUN_FILE), run_dir / RUN_FILE)
    recipe_text = _read_text(run_dir / RECIPE_FILE)
    plan_path = run_dir / PLAN_FILE
    results_path = run_dir / RESULTS_FILE
    results = None
    if info.status == "finished" or results_path.exists():
        results = _validated(Results, _read_json(results_path), results_path)
        _check_results(results, results_path)
    train, events, evals, shed = _read_metrics(run_dir / METRICS_FILE)
    return RunRecord(
        path=run_dir,
        info=info,
        recipe_text=recipe_text,
        recipe=_parse_toml(recipe_text, run_dir / RECIPE_FILE),
        plan=_read_json(plan_path) if plan_path.exists() else {},
        train=train,
        events=events,
        evals=evals,
        shed=shed,
        results=results,
    )


def _read_text(path: Path) -> str:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _MAX_FILE_BYTES:
            raise UsageError(
                "a file of the run directory is too large to be read",
                where=path,
                got=f"{size_bytes} bytes",
                expected=f"at most {_MAX_FILE_BYTES}",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(
            f"the run directory has no {path.name}", where=path, remedy=_REMEDY
        ) from error
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read", where=path, got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, f"bytes that are not UTF-8 at offset {error.start}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise _damaged(path, f"{error.msg} (line {error.lineno})") from error
    except RecursionError as error:
        raise _damaged(path, "values nested too deeply") from error
    if not isinstance(value, dict):
        raise _damaged(path, type(value).__name__, expected="a JSON object")
    return value


def _parse_toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, got: str, expected: str | None = None) -> UsageError:
    return UsageError(
        f"{path.name} is damaged", where=path, got=got, expected=expected, remedy=_REMEDY
    )


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(model: type[_Model], value: Any, path: Path, line: int | None = None) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"{key}: " if line is None else f"line {line}, {key}: "
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise _damaged(path, f"{where}{first['msg']}{more}") from error


def _check_results(results: Results, path: Path) -> None:
    for index, tensor in enumerate(results.tensors):
        if max(tensor.nonzeros, tensor.nonzeros_before) > tensor.size:
            raise _damaged(
                path,
                f"tensors.{index}: {max(tensor.nonzeros, tensor.nonzeros_before)} non-zeros",
                expected=f"at most its size, {tensor.size}",
            )
        histogram = tensor.histogram
        if histogram is not None and not (
            len(histogram.before) == len(histogram.after) == len(histogram.edges) - 1
        ):
            raise _damaged(
                path,
                f"tensors.{index}.histogram: {len(histogram.edges)} edges, "
                f"{len(histogram.before)} and {len(histogram.after)} counts",
                expected="one count fewer than edges",
            )


def _read_metrics(
    path: Path,
) -> tuple[list[TrainPoint], list[EventPoint], list[EvalPoint], list[ShedPoint]]:
    """The points of each kind, in step order; a repeated step keeps its last line.

    A step appears twice when a run was resumed from a checkpoint before it. The last line may be
    cut short, because a run can be killed (or still be running) while it writes.
    """
    if not path.exists():
        return [], [], [], []
    train: dict[int, TrainPoint] = {}
    events: dict[int, EventPoint] = {}
    evals: dict[int, EvalPoint] = {}
    sheds: dict[int, ShedPoint] = {}
    lines = _read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if number == len(lines):
                break
            raise _damaged(path, f"line {number} is not JSON") from error
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind == "train":
            train_point = _validated(TrainPoint, value, path, number)
            train[train_point.step] = train_point
        elif kind == "event":
            event = _validated(EventPoint, value, path, number)
            events[event.step] = event
        elif kind == "eval":
            evaluation = _validated(EvalPoint, value, path, number)
            evals[evaluation.step] = evaluation
        elif kind == "shed":
            shed = _validated(ShedPoint, value, path, number)
            sheds[shed.step] = shed
        elif not isinstance(kind, str):
            raise _damaged(path, f"line {number} has no `kind`")
    return (
        [train[step] for step in sorted(train)],
        [events[step] for step in sorted(events)],
        [evals[step] for step in sorted(evals)],
        [sheds[step] for step in sorted(sheds)],
    )

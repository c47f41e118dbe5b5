"""Read what `onnxprune cascade` found into one checked record."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from onnxprune.errors import UsageError
from onnxprune.run_directory import RunDirectory
from onnxprune.validate.record_files import damaged, read_json, validated

CONTROL = "control"


class GainResult(BaseModel):
    """A cascade gain: one value a seed, their mean and its 95 % interval, null with one seed."""

    mean: float
    low: float | None = None
    high: float | None = None
    values: list[float] = Field(min_length=1)


class ScoreResult(GainResult):
    """The gain of the arms that one score pruned; `relative` counts against the RMS of now."""

    verdict: Literal["present", "weak", "absent", "inconclusive"]
    relative: GainResult
    seeds_that_would_decide: int | None = None


class ShedCount(BaseModel):
    """Shed weights of an arm at a step, of those that could be."""

    step: int = Field(ge=0)
    kept: int = Field(ge=0)
    shed: int = Field(ge=0)
    shed_relative: int = Field(ge=0)


class Change(BaseModel):
    """What zeroing shed weights changes, as shares of the loss and of the largest output."""

    loss_change: float
    output_change: float


class ArmOverlap(BaseModel):
    """Jaccard index of kept weights and those of one-shot magnitude pruning."""

    jaccard: float
    by_tensor: dict[str, float] = Field(default_factory=dict)
    expected: float


class ArmResult(BaseModel):
    """One training run; `elsewhere` of a control arm counts where each treated arm kept weights."""

    name: str
    seed: int
    steps: int = Field(ge=1)
    pruned: int = Field(ge=0)
    weights: int = Field(ge=1)
    shed: list[ShedCount] = Field(min_length=1)
    elsewhere: dict[str, list[ShedCount]] = Field(default_factory=dict)
    without_shed: Change
    metrics: dict[str, float | None] = Field(default_factory=dict)
    overlap_with_one_shot: ArmOverlap
    seconds: float | None = None


class TensorShed(BaseModel):
    """Shed weights of one tensor at the end, means over the seeds."""

    name: str
    op_type: str = ""
    size: int = Field(ge=0)
    shed: float = Field(ge=0)
    control: float = Field(ge=0)
    net_shed: float


class Advice(BaseModel):
    """The schedule that is recommended, and why."""

    method: str
    events: int
    settle_steps: int | None = None
    reason: str


class ProbeRecord(BaseModel):
    """`probe.json`: everything that a probe found."""

    tool_version: str | None = None
    model: str | None = None
    source_sha256: str | None = None
    verdict: str
    score: str
    gains: dict[str, ScoreResult] = Field(min_length=1)
    tau: float
    pruned_share: float
    target_sparsity: float | None = None
    decay_horizon_steps: int | None = None
    decay_horizon_reached: float
    steps: int = Field(ge=1)
    seeds: list[int] = Field(min_length=1)
    tensors: dict[str, list[TensorShed]]
    without_shed: Change
    overlap_with_one_shot: dict[str, float]
    recommendation: Advice
    notes: list[str] = Field(default_factory=list)
    arms: list[ArmResult]
    recipe: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: dict[str, dict[str, Any]] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the arms of each seed, treated ones first."""
        return [*self.gains, CONTROL]

    def over_seeds(self, name: str) -> list[ArmResult]:
        """The arms of a name, in the order of the seeds."""
        by_seed = {arm.seed: arm for arm in self.arms if arm.name == name}
        return [by_seed[seed] for seed in self.seeds]

    def treated_curves(self, score: str) -> list[list[ShedCount]]:
        """Shed weights of the arms that a score pruned, over steps, by seed."""
        return [arm.shed for arm in self.over_seeds(score)]

    def control_curves(self, score: str) -> list[list[ShedCount]]:
        """Those of the control arms, counted where these arms kept weights."""
        return [arm.elsewhere.get(score, []) for arm in self.over_seeds(CONTROL)]


def chosen(score: str) -> str:
    """How a score chooses what is pruned, in words: "by magnitude"."""
    return "at random" if score == "random" else f"by {score}"


def read_probe(folder: Path) -> ProbeRecord:
    """Read and check `probe.json` in `folder`.

    Raises:
        UsageError: The probe has not finished, or the file is missing or damaged.
    """
    run = RunDirectory(Path(folder))
    if not run.probe.exists():
        raise UsageError(
            "this probe has not finished",
            where=run.path,
            got=f"{len(list(run.arms.glob('*.json')))} finished arms and no {run.probe.name}",
            remedy="call `onnxprune cascade` again as before: it goes on there",
        )
    probe = validated(ProbeRecord, read_json(run.probe), run.probe)
    _check(probe, run.probe)
    return probe


def _check(probe: ProbeRecord, path: Path) -> None:
    """Every arm is there, and all were counted at the same steps."""
    if probe.score not in probe.gains:
        raise damaged(path, f"score: {probe.score!r}", expected=", ".join(probe.gains))
    present = {(arm.name, arm.seed) for arm in probe.arms}
    missing = [(n, s) for n in probe.names for s in probe.seeds if (n, s) not in present]
    if missing:
        name, seed = missing[0]
        raise damaged(path, f"arms: none is {name!r} with seed {seed}")
    if missing_names := [n for n in probe.names if n not in probe.overlap_with_one_shot]:
        raise damaged(path, f"overlap_with_one_shot: {missing_names[0]!r} is missing")
    steps = [point.step for point in probe.arms[0].shed]
    for score, gain in probe.gains.items():
        if score not in probe.tensors:
            raise damaged(path, f"tensors: {score!r} is missing")
        if not len(gain.values) == len(gain.relative.values) == len(probe.seeds):
            raise damaged(
                path,
                f"gains.{score}: {len(gain.values)} and {len(gain.relative.values)} values",
                expected=f"one for each of {len(probe.seeds)} seeds",
            )
        for curve in (*probe.treated_curves(score), *probe.control_curves(score)):
            if [point.step for point in curve] != steps:
                raise damaged(path, f"arms: shed weights of {score!r} lack some of the steps")

"""Treated and control arms of one point of a grid, by the product's own probe.

A probe has arms over several seeds on one model. Here every seed has a dense model of its own, so a
probe is done for each, and their gains are put together as the product does it.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from journal import Entry, digest
from lab import Job, Lab
from runs import Run, Tables, Workplace, recipe_of

import onnxprune
from onnxprune.cascade import Gain, gain_over_seeds
from onnxprune.probe import prepare_probe, probe

CRITERIA = ("random", "magnitude")
CONTROL = "control"

COURSE: Tables = {
    "finetune": {"lr_schedule": "step", "lr_milestones": [0.8], "lr_gamma": 0.1, "warmup": 0.0}
}
"""The peak learning rate holds for four fifths of training, so that decay has its time."""


@dataclass(frozen=True)
class Point:
    """A pruning event whose consequences are watched, at random and by magnitude.

    Attributes:
        network: Name in `networks.NETWORKS`.
        data: Name of the data set.
        sparsity: Share of the weights that goes in the event, in (0, 1).
        lr: Learning rate.
        weight_decay: L2.
        epochs: Training after the event.
    """

    network: str
    data: str
    sparsity: float
    lr: float
    weight_decay: float
    epochs: float

    def run(self, seed: int, samples: int) -> Run:
        """The training as a run of `prune`, whose accuracy is measured on `samples` at the end."""
        tables = {
            "finetune": {**COURSE["finetune"], "evaluations": 1, "progress_samples": samples},
            "cascade": {"prune": self.sparsity, "scores": list(CRITERIA)},
        }
        return Run(
            *(self.network, self.data, "gmp", 0.9, self.epochs, seed),
            lr=self.lr,
            weight_decay=self.weight_decay,
            tables=tables,
        )


def probe_all(points: Sequence[Point], lab: Lab) -> dict[Point, dict[int, Entry]]:
    """What was seen at every point, by seed; points and seeds that are missing are left out."""
    cells = [(point, seed) for point in points for seed in lab.scale.seeds]
    lab.train_dense((point.network, point.data, seed) for point, seed in cells)
    entries = lab.jobs([_job(point, seed, lab) for point, seed in cells])
    found: dict[Point, dict[int, Entry]] = {}
    for (point, seed), entry in zip(cells, entries, strict=True):
        if entry is not None:
            found.setdefault(point, {})[seed] = entry
    return found


def _job(point: Point, seed: int, lab: Lab) -> Job:
    run = point.run(seed, lab.scale.sizes.test)
    label = (
        f"{point.network} {point.data} {point.sparsity:.0%} pruned, lr {point.lr:g}, weight decay "
        f"{point.weight_decay:g}, seed {seed}"
    )
    return Job({"probe": run.key(lab.scale)}, partial(_probe_dense, run, lab.place), label)


def _probe_dense(run: Run, place: Workplace, stop: Callable[[], bool]) -> Entry:
    model = place.dense(run.network, run.data, run.seed)
    folder = place.folder / "probes" / digest(run.key(place.scale))
    return probe_model(model, recipe_of(run, place), folder, stop)


def probe_model(
    model: Path, recipe: onnxprune.Recipe, folder: Path, stop: Callable[[], bool]
) -> Entry:
    """Probe a model with one seed, or go on.

    Args:
        model: The dense `.onnx` file.
        recipe: Its `[cascade]` says which arms there are, and what they lose.
        folder: Run directory of the probe.
        stop: Asked often.

    Returns:
        `criteria`, each with `gain`, `gain_relative`, `pruned`, and a `curve` of step and the
        shares of weights shed in the treated and in the control arm on the same positions;
        `accuracy` by arm, `decay_horizon_steps`, `decay_horizon_reached`, `without_shed` (the
        largest changes that zeroing the shed weights makes), `seconds`.

    Raises:
        Interrupted: `stop` said so.
    """
    started, busy = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = prepare_probe(model, recipe, run_dir=folder)
        result = probe(job, recipe, 1, stop=stop)
    arms = {arm["name"]: arm for arm in result["arms"]}
    criteria = {}
    for name, gains in result["gains"].items():
        pairs = zip(arms[name]["shed"], arms[CONTROL]["elsewhere"][name], strict=True)
        criteria[name] = {
            "gain": gains["values"][0],
            "gain_relative": gains["relative"]["values"][0],
            "pruned": arms[name]["pruned"],
            "curve": [
                (one["step"], one["shed"] / one["kept"], other["shed"] / other["kept"])
                for one, other in pairs
            ],
        }
    return {
        "criteria": criteria,
        "accuracy": {name: arm["metrics"].get("top1") for name, arm in arms.items()},
        "decay_horizon_steps": result["decay_horizon_steps"],
        "decay_horizon_reached": result["decay_horizon_reached"],
        "without_shed": result["without_shed"],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
    }


def gain_of(entries: Mapping[int, Entry], criterion: str, key: str = "gain") -> Gain:
    """The gain over the seeds, whose verdict is that of the product."""
    return gain_over_seeds([entry["criteria"][criterion][key] for entry in entries.values()])


def gain_json(gain: Gain) -> dict[str, Any]:
    """Mean, interval and verdict; ends that one seed leaves open are None."""
    known = len(gain.values) > 1
    return {
        "verdict": gain.verdict,
        "mean": round(gain.mean, 4),
        "low": round(gain.low, 4) if known else None,
        "high": round(gain.high, 4) if known else None,
        "values": [round(value, 4) for value in gain.values],
    }


def mean_curve(entries: Iterable[Entry], criterion: str) -> list[tuple[int, float, float]]:
    """Step, and the mean shares shed in the treated and in the control arm."""
    curves = [entry["criteria"][criterion]["curve"] for entry in entries]
    return [
        (
            rows[0][0],
            round(sum(row[1] for row in rows) / len(rows), 5),
            round(sum(row[2] for row in rows) / len(rows), 5),
        )
        for rows in zip(*curves, strict=True)
    ]


def describe(point: Point) -> dict[str, Any]:
    """The settings of a point as JSON values."""
    return asdict(point)

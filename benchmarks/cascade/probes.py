"""Treated and control arms of one point of a grid, measured by the product's own probe."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from lab import Entry, Job, Lab
from runs import Run, Tables, Workplace, recipe_of

COURSE: Tables = {
    "finetune": {"lr_schedule": "step", "lr_milestones": [0.8], "lr_gamma": 0.1, "warmup": 0.0}
}
"""The peak learning rate holds for four fifths of training, so that decay has its time."""

_CRITERIA = {"magnitude": "one-shot", "random": "one-shot random"}


@dataclass(frozen=True)
class Point:
    """A pruning event whose consequences are watched.

    Attributes:
        network: Name in `networks.NETWORKS`.
        data: Name of the data set.
        criterion: `magnitude` or `random`.
        sparsity: Share of the weights that goes in the event, in (0, 1).
        lr: Learning rate.
        weight_decay: L2.
        epochs: Training after the event.
        seeds: Each with a dense model of its own, a treated arm and a control arm.
    """

    network: str
    data: str
    criterion: str
    sparsity: float
    lr: float
    weight_decay: float
    epochs: float
    seeds: tuple[int, ...]

    def run(self, seed: int) -> Run:
        """The same event and training as a run of `prune`."""
        return Run(
            *(self.network, self.data, _CRITERIA[self.criterion], self.sparsity, self.epochs),
            seed=seed,
            lr=self.lr,
            weight_decay=self.weight_decay,
            tables=COURSE,
        )

    def control(self, seed: int) -> Run:
        """The same training of the dense model, with nothing pruned."""
        return Run(
            *(self.network, self.data, "gmp", 0.0, self.epochs, seed),
            lr=self.lr,
            weight_decay=self.weight_decay,
            tables=COURSE,
        )


def can_probe() -> bool:
    """Whether this version of the product has a probe."""
    return find_spec("onnxprune.probe") is not None


def probe_all(points: list[Point], lab: Lab) -> list[Entry | None]:
    """Verdict, gain and shed curves of every point, in their order."""
    lab.train_dense((p.network, p.data, seed) for p in points for seed in p.seeds)
    return lab.jobs([_job(point, lab) for point in points])


def probe_job(point: Point, place: Workplace, stop: Callable[[], bool]) -> Entry:
    """Run the arms of one point.

    Returns:
        `verdict`, `gain` (mean, low, high), `decay_horizon_steps`, and `arms`, each with `name`,
        `seed`, `steps` and `shed`.

    Raises:
        Interrupted: `stop` said so.
    """
    from onnxprune.probe import probe

    models = {seed: place.dense(point.network, point.data, seed) for seed in point.seeds}
    recipes = {seed: recipe_of(point.run(seed), place) for seed in point.seeds}
    found: Entry = probe(models, recipes, stop=stop)
    return found


def _job(point: Point, lab: Lab) -> Job:
    key: dict[str, Any] = {"probe": asdict(point)} | {
        "run": point.run(point.seeds[0]).key(lab.scale)
    }
    label = (
        f"{point.network} {point.data} {point.criterion} {point.sparsity:g}, lr {point.lr:g}, "
        f"weight decay {point.weight_decay:g}"
    )
    return Job(key, partial(probe_job, point, lab.place), label)

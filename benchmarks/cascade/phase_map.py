"""Where does a cascade appear, and does random pruning gain from it?

    python benchmarks/cascade/phase_map.py

Each point of the grid is one pruning event on a trained network, by magnitude or at random, and
the training that follows, beside control arms in which nothing is pruned. The probe gives the shed
curves, the cascade gain with its interval, and the verdict; then the same events and training are
done by `prune`, for the accuracy that random pruning loses against magnitude pruning, and both
against the control. Last, the two are held against each other: if a cascade helps random pruning,
its loss is smaller where the gain is larger.

At `--scale cpu` learning rate and weight decay are varied at one sparsity, and sparsity at one
learning rate and weight decay, on one data set; at `--scale gpu` everything is combined.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired, rank_correlation
from lab import Entry, Lab
from plots import Band, Grid, Panel, draw, draw_grids
from probes import Point, can_probe, probe_all
from record import write_results
from runs import Run
from scales import options_of, parser_of

LRS = (0.05, 0.1, 0.2)
DECAYS = (5e-4, 2e-3, 5e-3)
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.6)
CENTRE_LR, CENTRE_DECAY, CENTRE_SPARSITY = 0.1, 5e-3, 0.3
CRITERIA = ("random", "magnitude")
EPOCHS = {"cpu": 10.0, "gpu": 30.0, "quick": 1.0}
"""Scale -> training after an event. With 8 000 samples and batches of 64, ten epochs are enough for
the decay horizon of the centre; a run that does not reach it cannot show a whole cascade."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Probes, accuracies, and how they go together."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=("probes", "accuracy"), help="one of the two parts")
    given = parser.parse_args(arguments)
    options = options_of(given, "phase_map")
    lab = Lab(options)
    epochs = given.epochs or EPOCHS[options.scale_name]
    all_data = given.data or options.scale_name == "gpu"
    data_sets = options.scale.data if all_data else options.scale.data[:1]
    points = [
        Point(network, data, *cell, epochs, options.scale.seeds)
        for network, data in itertools.product(options.scale.networks, data_sets)
        for cell in cells_of(options.scale_name)
    ]
    probing = given.only != "accuracy" and can_probe()
    if given.only == "probes" and not probing:
        raise SystemExit("this version of onnxprune has no probe: nothing is measured")
    probed: list[Entry | None] = probe_all(points, lab) if probing else [None] * len(points)
    outcomes = [] if given.only == "probes" else accuracies(points, lab)
    results = {
        "probes": [
            describe(point) | entry
            for point, entry in zip(points, probed, strict=True)
            if entry is not None
        ],
        "accuracy": [outcome.to_json() for outcome in outcomes],
        "together": together(points, probed, outcomes),
    }
    settings = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "epochs": epochs,
        "left_out": [] if probing or given.only else ["probes: this version has none"],
    }
    write_results(options.name, settings, results, options.results)
    plot(points, probed, options.results, options.name)


def cells_of(scale: str) -> list[tuple[str, float, float, float]]:
    """Criterion, sparsity, learning rate and weight decay of every point."""
    if scale == "gpu":
        return list(itertools.product(CRITERIA, SPARSITIES, LRS, DECAYS))
    if scale == "quick":
        return [(criterion, CENTRE_SPARSITY, CENTRE_LR, CENTRE_DECAY) for criterion in CRITERIA]
    map_ = itertools.product(CRITERIA, (CENTRE_SPARSITY,), LRS, DECAYS)
    sweep = itertools.product(CRITERIA, SPARSITIES, (CENTRE_LR,), (CENTRE_DECAY,))
    return list(dict.fromkeys((*map_, *sweep)))


def describe(point: Point) -> dict[str, Any]:
    """The settings of a point as JSON values."""
    return {
        "network": point.network,
        "data": point.data,
        "criterion": point.criterion,
        "sparsity": point.sparsity,
        "lr": point.lr,
        "weight_decay": point.weight_decay,
    }


@dataclass(frozen=True)
class Outcome:
    """Accuracy after an event at random, after one by magnitude, and after none.

    Attributes:
        point: The event at random.
        random: Seed -> accuracy.
        magnitude: Seed -> accuracy.
        control: Seed -> accuracy.
    """

    point: Point
    random: dict[int, float]
    magnitude: dict[int, float]
    control: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Means with intervals, and differences seed by seed."""
        row: dict[str, Any] = {
            key: value for key, value in describe(self.point).items() if key != "criterion"
        }
        for name in ("random", "magnitude", "control"):
            values = getattr(self, name)
            row[name] = interval(values.values()).to_json() if values else None
        for name, one, other in (
            ("random_against_magnitude", self.random, self.magnitude),
            ("random_against_control", self.random, self.control),
            ("magnitude_against_control", self.magnitude, self.control),
        ):
            difference = paired(one, other)
            row[name] = difference.to_json() if difference else None
        return row


def accuracies(points: Sequence[Point], lab: Lab) -> list[Outcome]:
    """The accuracy of every event by `prune`, as pairs of the two criteria with their control."""
    chosen = [point for point in points if point.criterion == "random"]
    runs: list[Run] = []
    for point in chosen:
        other = replace(point, criterion="magnitude")
        for seed in point.seeds:
            runs += [point.run(seed), other.run(seed), point.control(seed)]
    entries = iter(lab.runs(runs))
    outcomes = []
    for point in chosen:
        found: tuple[dict[int, float], ...] = ({}, {}, {})
        for seed, values in itertools.product(point.seeds, found):
            entry = next(entries)
            if entry is not None and "accuracy" in entry:
                values[seed] = entry["accuracy"]
        outcomes.append(Outcome(point, *found))
    return outcomes


def together(
    points: Sequence[Point], probed: Sequence[Entry | None], outcomes: Iterable[Outcome]
) -> list[dict[str, Any]]:
    """Per network and data set: random pruning's loss by verdict, and against the gain by rank."""
    gains = {p: e for p, e in zip(points, probed, strict=True) if e is not None}
    pairs = []
    for outcome in outcomes:
        difference = paired(outcome.random, outcome.control)
        entry = gains.get(outcome.point)
        if entry is not None and difference is not None:
            pairs.append((outcome.point, entry, difference.mean))
    found = []
    for (network, data), same in by(pairs, lambda p: (p[0].network, p[0].data)).items():
        by_verdict = by(same, lambda pair: pair[1]["verdict"])
        found.append(
            {
                "network": network,
                "data": data,
                "random_against_control": {
                    verdict: interval(loss for _, _, loss in group).to_json()
                    for verdict, group in by_verdict.items()
                },
                "rank_correlation_with_gain": rank_correlation(
                    [entry["gain"]["mean"] for _, entry, _ in same], [loss for *_, loss in same]
                ),
            }
        )
    return found


def plot(points: Sequence[Point], probed: Sequence[Entry | None], folder: Path, name: str) -> None:
    """Phase maps of the gain, and the gain against sparsity."""
    done = [(p, e) for p, e in zip(points, probed, strict=True) if e is not None]
    for (network, data), same in by(done, lambda pair: (pair[0].network, pair[0].data)).items():
        groups = by(same, lambda pair: pair[0].criterion)
        grids = [_grid(criterion, group) for criterion, group in groups.items()]
        draw_grids(folder / f"{name}-{network}-{data}.svg", grids)
        bands = []
        for criterion, group in groups.items():
            swept = [
                (point.sparsity, entry["gain"])
                for point, entry in group
                if (point.lr, point.weight_decay) == (CENTRE_LR, CENTRE_DECAY)
            ]
            bands.append(Band(criterion, [s for s, _ in swept], [gain for _, gain in swept]))
        title = f"{network}, {data}, lr {CENTRE_LR:g}, weight decay {CENTRE_DECAY:g}"
        panel = Panel(title, "weights pruned in the event", "cascade gain", bands)
        draw(folder / f"{name}-{network}-{data}-sparsity.svg", [panel])


def _grid(criterion: str, group: Iterable[tuple[Point, Entry]]) -> Grid:
    """The gain over learning rate and weight decay at the sparsity of the centre."""
    cells = {
        (point.lr, point.weight_decay): entry
        for point, entry in group
        if point.sparsity == CENTRE_SPARSITY
    }
    return Grid(
        f"{criterion}, {CENTRE_SPARSITY:.0%} pruned: cascade gain",
        "weight decay",
        "learning rate",
        [f"{decay:g}" for decay in DECAYS],
        [f"{lr:g}" for lr in LRS],
        [[_cell(cells.get((lr, decay))) for decay in DECAYS] for lr in LRS],
        limit=1.0,
    )


def _cell(entry: Entry | None) -> tuple[float, str] | None:
    if entry is None:
        return None
    gain = entry["gain"]
    return gain["mean"], f"{gain['mean']:+.2f}\n[{gain['low']:+.2f}, {gain['high']:+.2f}]\n" + (
        entry["verdict"]
    )


if __name__ == "__main__":
    main()

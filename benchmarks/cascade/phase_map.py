"""Where does a cascade appear, and does random pruning gain from it?

    python benchmarks/cascade/phase_map.py

Each point of the grid is one pruning event on a trained network and the training that follows: an
arm that loses weights at random, one that loses the smallest, and a control arm that loses none.
From the product's probe come the shed curves, the cascade gain with its interval, and the verdict;
beside them stands the test accuracy that each arm ends with. If a cascade helps random pruning,
then random pruning loses less against the control where its gain is larger.

At `--scale cpu` learning rate and weight decay are varied at one sparsity, and sparsity at one
learning rate and weight decay, on one data set; at `--scale gpu` everything is combined.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired, rank_correlation, seed_rows
from journal import Entry
from lab import Lab
from plots import Band, Grid, Panel, draw, draw_grids
from probes import CONTROL, CRITERIA, Point, describe, gain_json, gain_of, mean_curve, probe_all
from record import write_results
from scales import options_of, parser_of

LRS = (0.05, 0.1, 0.2)
DECAYS = (5e-4, 2e-3, 5e-3)
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.6)
CENTRE_LR, CENTRE_DECAY, CENTRE_SPARSITY = 0.1, 5e-3, 0.3
EPOCHS = {"cpu": 10.0, "gpu": 30.0, "quick": 1.0}
"""Scale -> training after an event. With 8 000 samples and batches of 64, ten epochs are enough for
the decay horizon of the centre; a run that does not reach it cannot show a whole cascade."""

Probed = Mapping[Point, Mapping[int, Entry]]


def main(arguments: Sequence[str] | None = None) -> None:
    """All points and seeds."""
    parser = parser_of(__doc__)
    parser.add_argument("--sparsities", nargs="+", type=float, help="instead of the scale's grid")
    parser.add_argument("--lrs", nargs="+", type=float, default=[CENTRE_LR], help="with these")
    parser.add_argument("--decays", nargs="+", type=float, default=[CENTRE_DECAY], help="and these")
    parser.add_argument(
        "--point",
        nargs=3,
        type=float,
        action="append",
        metavar=("SPARSITY", "LR", "DECAY"),
        help="these points and no others; may be repeated",
    )
    given = parser.parse_args(arguments)
    options = options_of(given, "phase_map")
    lab = Lab(options)
    epochs = given.epochs or EPOCHS[options.scale_name]
    all_data = given.data or options.scale_name == "gpu"
    data_sets = options.scale.data if all_data else options.scale.data[:1]
    asked = list(itertools.product(given.sparsities or (), given.lrs, given.decays))
    named = [(sparsity, lr, decay) for sparsity, lr, decay in given.point or ()]
    cells = named or asked or cells_of(options.scale_name)
    points = [
        Point(network, data, *cell, epochs)
        for network, data in itertools.product(options.scale.networks, data_sets)
        for cell in cells
    ]
    probed = probe_all(points, lab)
    results = {
        "points": [
            describe(point) | outcome(entries, criterion)
            for point, entries in probed.items()
            for criterion in CRITERIA
        ],
        "together": together(probed),
    }
    settings = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "epochs": epochs,
        "dense_epochs": options.scale.dense_epochs,
        "batch": options.scale.batch,
        "train": options.scale.sizes.train,
    }
    write_results(options.name, settings, results, options.results)
    plot(probed, options.results, options.name)


def cells_of(scale: str) -> list[tuple[float, float, float]]:
    """Sparsity, learning rate and weight decay of every point."""
    if scale == "gpu":
        return list(itertools.product(SPARSITIES, LRS, DECAYS))
    if scale == "quick":
        return [(CENTRE_SPARSITY, CENTRE_LR, CENTRE_DECAY)]
    map_ = itertools.product((CENTRE_SPARSITY,), LRS, DECAYS)
    sweep = itertools.product(SPARSITIES, (CENTRE_LR,), (CENTRE_DECAY,))
    return list(dict.fromkeys((*map_, *sweep)))


def outcome(entries: Mapping[int, Entry], criterion: str) -> dict[str, Any]:
    """What a criterion led to at a point, over the seeds."""
    first = next(iter(entries.values()))
    treated, control = accuracy(entries, criterion), accuracy(entries, CONTROL)
    difference = paired(treated, control)
    return {
        "criterion": criterion,
        "gain": gain_json(gain_of(entries, criterion)),
        "gain_relative": gain_json(gain_of(entries, criterion, "gain_relative")),
        "decay_horizon_steps": first["decay_horizon_steps"],
        "decay_horizon_reached": round(first["decay_horizon_reached"], 3),
        "accuracy": interval(treated.values()).to_json(),
        "against_control": difference.to_json() if difference else None,
        "by_seed": seed_rows(treated),
        "control_by_seed": seed_rows(control),
        "without_shed": {
            key: max((entry["without_shed"][key] for entry in entries.values()), key=abs)
            for key in ("loss_change", "output_change")
        },
        "curve": mean_curve(entries.values(), criterion),
    }


def accuracy(entries: Mapping[int, Entry], arm: str) -> dict[int, float]:
    """Seed -> test accuracy of an arm."""
    return {seed: entry["accuracy"][arm] for seed, entry in entries.items()}


def together(probed: Probed) -> list[dict[str, Any]]:
    """How a cascade goes together with what random pruning loses.

    For each network and data set: the accuracy of random pruning against the control, by verdict,
    as mean and range over the points; and Spearman's rank correlation of it with the gain, over the
    points of one sparsity. Points share their dense models, so neither has an interval.
    """
    rows = []
    for point, entries in probed.items():
        loss = paired(accuracy(entries, "random"), accuracy(entries, CONTROL))
        if loss is not None:
            rows.append((point, gain_of(entries, "random"), loss.mean))
    found = []
    for (network, data), group in by(rows, lambda row: (row[0].network, row[0].data)).items():
        at_centre = [row for row in group if row[0].sparsity == CENTRE_SPARSITY]
        found.append(
            {
                "network": network,
                "data": data,
                "random_against_control": {
                    verdict: _range([loss for *_, loss in same])
                    for verdict, same in by(group, lambda row: row[1].verdict).items()
                },
                "rank_correlation_with_gain": rank_correlation(
                    [gain.mean for _, gain, _ in at_centre], [loss for *_, loss in at_centre]
                ),
            }
        )
    return found


def _range(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(fmean(values), 5),
        "lowest": round(min(values), 5),
        "highest": round(max(values), 5),
        "points": len(values),
    }


def plot(probed: Probed, folder: Path, name: str) -> None:
    """Phase maps of the gain, gain and accuracy against sparsity, and shed curves."""
    for (network, data), group in by(probed, lambda p: (p.network, p.data)).items():
        stem, title = f"{name}-{network}-{data}", f"{network}, {data}"
        if any(point.sparsity == CENTRE_SPARSITY for point in group):
            draw_grids(folder / f"{stem}.svg", [_grid(probed, group, c) for c in CRITERIA])
        lr, decay = _swept(group)
        swept = [p for p in group if (p.lr, p.weight_decay) == (lr, decay)]
        xs = [point.sparsity for point in swept]
        gains = [Band(c, xs, [gain_json(gain_of(probed[p], c)) for p in swept]) for c in CRITERIA]
        accuracies = [
            Band(arm, xs, [interval(accuracy(probed[p], arm).values()).to_json() for p in swept])
            for arm in (*CRITERIA, CONTROL)
        ]
        pruned = "share of the weights that the event takes"
        centre = f"lr {lr:g}, weight decay {decay:g}"
        panels = [
            Panel(f"{title}, {centre}", pruned, "cascade gain", gains),
            Panel(f"{title}, {centre}", pruned, "test accuracy", accuracies),
        ]
        draw(folder / f"{stem}-sparsity.svg", panels)
        middle = [point for point in swept if point.sparsity == CENTRE_SPARSITY]
        if middle:
            draw(folder / f"{stem}-curves.svg", [_curves(probed[p], title) for p in middle])


def _swept(group: Sequence[Point]) -> tuple[float, float]:
    """Learning rate and weight decay with the most sparsities, the centre before others."""
    settings = [(p.lr, p.weight_decay) for p in group]
    centre = CENTRE_LR, CENTRE_DECAY
    return max(dict.fromkeys(settings), key=lambda s: (settings.count(s), s == centre))


def _curves(entries: Mapping[int, Entry], title: str) -> Panel:
    """Shed curves of both criteria and of the control on the positions that each keeps."""
    bands = []
    for criterion in CRITERIA:
        curves = [entry["criteria"][criterion]["curve"] for entry in entries.values()]
        for column, label in ((1, criterion), (2, f"control, where {criterion} keeps")):
            points = [
                interval(row[column] for row in rows).to_json()
                for rows in zip(*curves, strict=True)
            ]
            bands.append(Band(label, [row[0] for row in curves[0]], points))
    return Panel(f"{title}, {CENTRE_SPARSITY:.0%} pruned", "step", "shed / kept weights", bands)


def _grid(probed: Probed, group: Sequence[Point], criterion: str) -> Grid:
    """The gain over learning rate and weight decay at the sparsity of the centre."""
    cells = {
        (point.lr, point.weight_decay): gain_json(gain_of(probed[point], criterion))
        for point in group
        if point.sparsity == CENTRE_SPARSITY
    }
    lrs, decays = sorted({lr for lr, _ in cells}), sorted({decay for _, decay in cells})
    return Grid(
        f"{criterion}, {CENTRE_SPARSITY:.0%} pruned: cascade gain",
        "weight decay",
        "learning rate",
        [f"{decay:g}" for decay in decays],
        [f"{lr:g}" for lr in lrs],
        [[_cell(cells.get((lr, decay))) for decay in decays] for lr in lrs],
        limit=1.0,
    )


def _cell(gain: dict[str, Any] | None) -> tuple[float, str] | None:
    if gain is None:
        return None
    ends = "one seed" if gain["low"] is None else f"[{gain['low']:+.2f}, {gain['high']:+.2f}]"
    text = f"{gain['mean']:+.2f}\n{ends}\n{gain['verdict']}"
    return gain["mean"], text


if __name__ == "__main__":
    main()

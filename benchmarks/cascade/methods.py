r"""Which pruning method is best: accuracy at equal sparsity, and accuracy for what training costs.

    python benchmarks/cascade/methods.py

Three stages, each of which only does what the journal lacks:

1. Tuning, on the validation part and with a dense model that no other stage uses. Every method of
   `--tune` gets the same effort: the whole grid of learning rate, weight decay and, where it prunes
   gradually, the length of pruning, at each of two sparsities. Methods that are not tuned take
   gmp's values.
2. Comparison, on the test part: all methods at all sparsities, with the same epochs, data and dense
   models; beside it how far the kept sets of methods overlap, see `kept_sets.py`.
3. Cost, on the test part: the tuned methods with pruning phases and runs of several lengths, each
   with the best learning rate and weight decay that tuning found for that length of pruning.

A method that this version does not know is left out, and the results say so. What of cascade-gmp
matters shows beside two more arms:

    python benchmarks/cascade/methods.py --name methods_ablation \
        --methods cascade-gmp "cascade-gmp pressure" "gmp, held learning rate" gmp \
        --tune cascade-gmp "cascade-gmp pressure" "gmp, held learning rate" gmp
"""

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, front, interval, paired
from data import CLASSES
from journal import Entry
from kept_sets import overlaps
from lab import Lab
from plots import Band, Panel, draw
from record import write_results
from runs import DENSE_WEIGHT_DECAY, Run, supported
from scales import options_of, parser_of

TUNED = ("cascade-gmp", "gmp")
METHODS = (
    *(*TUNED, "layerwise-gmp", "random", "one-shot"),
    *("iterative learning-rate", "iterative weights"),
)
ABLATION = (
    *("cascade-gmp pressure", "cascade-gmp, held learning rate"),
    "gmp, held learning rate",
)
"""For `--methods` and `--tune`; see `runs.METHODS`. `cascade-gmp pressure` tries the weight decays
of the others while weights go, so its grid is as large as theirs."""

COSTED = (*TUNED, *ABLATION)
"""Methods whose accuracy is measured at several costs."""

GRADUAL = (*TUNED, *ABLATION, "layerwise-gmp", "random")
REFERENCE = "gmp"
"""What other methods are compared with, seed by seed."""

TUNING_SEED = 1000


@dataclass(frozen=True)
class Plan:
    """The grid of the experiment.

    Attributes:
        sparsities: At which methods are compared.
        tuned_at: Sparsity -> the one whose tuning it uses.
        lrs: Peak learning rates.
        decays: Weight decays.
        ends: Lengths of pruning, as progress.
        shares: Of the epochs, for runs of the last stage.
    """

    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    tuned_at: tuple[float, ...] = (0.9, 0.9, 0.98, 0.98)
    lrs: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    decays: tuple[float, ...] = (5e-4, 2e-3, 5e-3)
    ends: tuple[float, ...] = (0.15, 0.3, 0.65)
    shares: tuple[float, ...] = (0.5, 1.0)

    def tuning_of(self, sparsity: float) -> float:
        """The sparsity at which a run of another was tuned."""
        return dict(zip(self.sparsities, self.tuned_at, strict=True))[sparsity]


QUICK = Plan((0.9,), (0.9,), (0.05, 0.1), (5e-4,), (0.3, 0.65), (1.0,))
PLANS = {
    "full": Plan(),
    # The highest sparsity first: there methods differ most, and time may end.
    "short": Plan((0.98, 0.95, 0.9), (0.98, 0.98, 0.9), (0.1, 0.2, 0.4), (2e-3,), (0.3, 0.65), ()),
}
"""For `--plan`. `short` has a sixth of the grid and no cost stage."""


def main(arguments: Sequence[str] | None = None) -> None:
    """All stages that are asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--stage", choices=("tune", "compare", "all"), default="all")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full")
    parser.add_argument(
        "--sparsities",
        nargs="+",
        type=float,
        help="compare at these instead of the plan's, and tune at each of them",
    )
    parser.add_argument(
        "--tuned-at",
        nargs="+",
        type=float,
        metavar="SPARSITY",
        help="for each of --sparsities, the one at which its settings were tuned",
    )
    parser.add_argument("--shares", nargs="+", type=float, help="of the epochs; cost stage")
    parser.add_argument("--lrs", nargs="+", type=float, help="instead of the plan's")
    parser.add_argument("--decays", nargs="+", type=float, help="instead of the plan's")
    parser.add_argument("--ends", nargs="+", type=float, help="of pruning, instead of the plan's")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--tune", nargs="+", default=TUNED)
    given = parser.parse_args(arguments)
    options = options_of(given, "methods")
    plan = QUICK if given.quick else PLANS[given.plan]
    if given.sparsities:
        own = tuple(given.sparsities)
        plan = replace(plan, sparsities=own, tuned_at=tuple(given.tuned_at or own))
    asked = {"lrs": given.lrs, "decays": given.decays, "ends": given.ends, "shares": given.shares}
    plan = replace(plan, **{key: tuple(values) for key, values in asked.items() if values})
    lab = Lab(options)
    methods = [method for method in given.methods if supported(method)]
    tuned = [method for method in dict.fromkeys((*given.tune, REFERENCE)) if supported(method)]
    places = [(options.scale.networks[0], data) for data in options.scale.data[:1]]
    if given.networks or given.data:
        places = list(itertools.product(options.scale.networks, options.scale.data))
    results = []
    for network, data in places:
        grid = [run for method in tuned for run in tuning_runs(network, data, method, plan, lab)]
        chosen = Tuning(grid, lab.runs(grid))
        if given.stage == "tune":
            continue
        compared = list(comparison_runs(network, data, methods, plan, chosen, lab))
        costed = list(cost_runs(network, data, methods, plan, chosen, lab))
        entries = lab.runs([*compared, *costed])
        results.append(
            {
                "network": network,
                "data": data,
                "tuning": chosen.to_json(),
                "comparison": comparison(compared, entries[: len(compared)]),
                "cost": cost(costed, entries[len(compared) :]),
                "overlap": overlaps(compared, entries[: len(compared)], lab.place),
                "runs": rows([*compared, *costed], entries),
            }
        )
    if given.stage == "tune":
        return
    settings = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "epochs": options.scale.epochs,
        "tuned": tuned,
        "left_out": [method for method in given.methods if method not in methods],
        "tuned_at": dict(zip(plan.sparsities, plan.tuned_at, strict=True)),
        "grid": {"lr": plan.lrs, "weight_decay": plan.decays, "pruning_end": plan.ends},
    }
    write_results(options.name, settings, results, options.results)
    for result in results:
        plot(result, options.results, options.name)


def tuning_runs(network: str, data: str, method: str, plan: Plan, lab: Lab) -> list[Run]:
    """The grid of a method, at the sparsities at which it is tuned."""
    ends = plan.ends if method in GRADUAL else plan.ends[-1:]
    runs = []
    for sparsity in dict.fromkeys(plan.tuned_at):
        for lr, decay, end in itertools.product(plan.lrs, plan.decays, ends):
            run = Run(
                *(network, data, method, sparsity, lab.scale.epochs, TUNING_SEED),
                lr=lr,
                weight_decay=decay,
                pruning_end=end,
                judged_on="valid",
            )
            runs.append(_under_pressure(run) if method.endswith(" pressure") else run)
    return runs


def _under_pressure(run: Run) -> Run:
    """The same weight decay while weights go, and the dense model's afterwards."""
    pressure = run.weight_decay / DENSE_WEIGHT_DECAY
    return replace(run, weight_decay=DENSE_WEIGHT_DECAY, tables={"cascade": {"pressure": pressure}})


class Tuning:
    """What tuning found.

    Attributes:
        scored: Runs with their accuracy on the validation part; a run that diverged has 0.
    """

    def __init__(self, grid: Iterable[Run], entries: Iterable[Entry | None]) -> None:
        pairs = zip(grid, entries, strict=True)
        self.scored = [(run, e.get("accuracy", 0.0)) for run, e in pairs if e is not None]

    def best(self, method: str, sparsity: float, end: float | None = None) -> Run | None:
        """The best run of a method, or of gmp if that was not tuned; None if there is none.

        Args:
            method: Any method.
            sparsity: At which tuning took place.
            end: Only runs whose pruning is of this length.
        """
        tuned = {run.method for run, _ in self.scored}
        method = method if method in tuned else REFERENCE
        fitting = [
            (run, score)
            for run, score in self.scored
            if run.method == method
            and run.sparsity == sparsity
            and (end is None or run.pruning_end == end)
        ]
        return max(fitting, key=lambda pair: pair[1])[0] if fitting else None

    def at_edge(self, run: Run) -> list[str]:
        """Settings of the best run of a grid at which a wider grid might do better still."""
        found = []
        for key in ("lr", "weight_decay", "pruning_end"):
            tried = {getattr(r, key) for r, _ in self.scored if r.method == run.method}
            if len(tried) > 1 and getattr(run, key) in (min(tried), max(tried)):
                found.append(key)
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Every point of the grids, the best of each method and sparsity first."""
        return [
            {
                "method": run.method,
                "sparsity": run.sparsity,
                "lr": run.lr,
                "weight_decay": run.weight_decay,
                "pruning_end": run.pruning_end,
                **_pressure(run),
                "accuracy": round(score, 4),
                **({"best": True, "at_edge": self.at_edge(run)} if number == 0 else {}),
            }
            for group in by(self.scored, lambda p: (p[0].method, p[0].sparsity)).values()
            for number, (run, score) in enumerate(sorted(group, key=lambda pair: -pair[1]))
        ]


def comparison_runs(
    network: str, data: str, methods: Iterable[str], plan: Plan, tuning: Tuning, lab: Lab
) -> Iterable[Run]:
    """All methods at all sparsities, over the seeds."""
    for sparsity, method in itertools.product(plan.sparsities, methods):
        best = tuning.best(method, plan.tuning_of(sparsity))
        if best is not None:
            for seed in lab.scale.seeds:
                yield replace(best, method=method, sparsity=sparsity, seed=seed, judged_on="test")


def cost_runs(
    network: str, data: str, methods: Sequence[str], plan: Plan, tuning: Tuning, lab: Lab
) -> Iterable[Run]:
    """Gradual pruning of several lengths, over the seeds, at all sparsities but the lowest."""
    chosen = [method for method in COSTED if method in methods]
    sparsities = sorted(plan.sparsities)[1:] or plan.sparsities
    for sparsity, method, end in itertools.product(sparsities, chosen, plan.ends):
        best = tuning.best(method, plan.tuning_of(sparsity), end)
        if best is None:
            continue
        for share, seed in itertools.product(plan.shares, lab.scale.seeds):
            yield replace(
                best,
                method=method,
                sparsity=sparsity,
                epochs=share * lab.scale.epochs,
                seed=seed,
                judged_on="test",
            )


def rows(runs: Iterable[Run], entries: Iterable[Entry | None]) -> list[dict[str, Any]]:
    """A line for each run."""
    wanted = (
        *("accuracy", "accuracy_before", "overlap_with_start", "closed", "harvested"),
        *("rollbacks", "seconds", "cpu_seconds", "failed"),
    )
    return [
        {
            "method": run.method,
            "sparsity": run.sparsity,
            "seed": run.seed,
            "lr": run.lr,
            "weight_decay": run.weight_decay,
            "pruning_end": run.pruning_end,
            **_pressure(run),
            "epochs": run.epochs,
            **{key: entry[key] for key in wanted if key in entry},
            **{key: value for key, value in entry.get("budget", {}).items() if "flops" in key},
            "mean_density": entry.get("budget", {}).get("mean_density"),
            "shed_share": shed_share(entry),
        }
        for run, entry in zip(runs, entries, strict=True)
        if entry is not None
    ]


def _pressure(run: Run) -> dict[str, float]:
    pressure = run.tables.get("cascade", {}).get("pressure")
    return {} if pressure is None else {"pressure": pressure}


def shed_share(entry: Entry) -> float | None:
    """The largest share of the kept weights that was shed at any moment of a run."""
    shares = [line["shed"] / line["kept"] for line in entry.get("shed", []) if line["kept"]]
    return max(shares) if shares else None


def comparison(runs: Sequence[Run], entries: Sequence[Entry | None]) -> list[dict[str, Any]]:
    """Accuracy, its loss against the dense model, and the difference to gmp, seed by seed."""
    values: dict[tuple[str, float], dict[int, Entry]] = {}
    chance = 0.0
    for run, entry in zip(runs, entries, strict=True):
        if entry is not None:
            values.setdefault((run.method, run.sparsity), {})[run.seed] = entry
            chance = 1 / CLASSES[run.data]
    found = []
    for (method, sparsity), cells in values.items():
        accuracy = accuracies(cells, chance)
        against = paired(accuracy, accuracies(values.get((REFERENCE, sparsity), {}), chance))
        done = [entry for entry in cells.values() if "accuracy" in entry]
        found.append(
            {
                "method": method,
                "sparsity": sparsity,
                "accuracy": interval(accuracy.values()).to_json(),
                "against_gmp": against.to_json() if against and method != REFERENCE else None,
                "diverged": len(cells) - len(done),
            }
        )
        if done:
            loss = interval(e["accuracy"] - e["accuracy_before"] for e in done)
            density = interval(e["budget"]["mean_density"] for e in done)
            found[-1] |= {
                "against_dense": loss.to_json(),
                "mean_density": round(density.mean, 4),
                "seconds": round(interval(e["seconds"] for e in done).mean, 1),
            }
    return found


def accuracies(entries: Mapping[int, Entry], chance: float) -> dict[int, float]:
    """Seed -> accuracy; a run that diverged is no better than guessing."""
    return {seed: entry.get("accuracy", chance) for seed, entry in entries.items()}


def cost(runs: Sequence[Run], entries: Sequence[Entry | None]) -> list[dict[str, Any]]:
    """Accuracy against training FLOPs, which points no other beats at lower cost, and gmp beside.

    FLOPs at actual density are theory on dense hardware. The seconds are what the runs took, with
    others beside them; those of the CPU leave out what it did for others.
    """
    pairs = [
        (run, entry)
        for run, entry in zip(runs, entries, strict=True)
        if entry is not None and "accuracy" in entry
    ]
    points = []
    scores = []
    groups = by(pairs, lambda p: (p[0].method, p[0].sparsity, p[0].pruning_end, p[0].epochs))
    for (method, sparsity, end, epochs), cells in groups.items():
        flops = interval(entry["budget"]["training_flops"] for _, entry in cells)
        scores.append({run.seed: entry["accuracy"] for run, entry in cells})
        points.append(
            {
                "method": method,
                "sparsity": sparsity,
                "pruning_end": end,
                "epochs": epochs,
                "training_flops": flops.mean,
                **{
                    key: round(interval(entry[key] for _, entry in cells).mean, 1)
                    for key in ("seconds", "cpu_seconds")
                    if all(key in entry for _, entry in cells)
                },
                "accuracy": interval(scores[-1].values()).to_json(),
            }
        )
    for sparsity in {point["sparsity"] for point in points}:
        same = [point for point in points if point["sparsity"] == sparsity]
        best = front(same, lambda p: p["training_flops"], lambda p: p["accuracy"]["mean"])
        for point in same:
            point["on_front"] = point in best
    for point, score in zip(points, scores, strict=True):
        if point["method"] != REFERENCE:
            point["gmp_at_this_cost"] = at_cost(point, score, points, scores)
            point["share_of_gmp_flops"] = share_of_flops(point, points)
    return points


def at_cost(
    point: Mapping[str, Any],
    score: Mapping[int, float],
    points: Sequence[dict[str, Any]],
    scores: Sequence[dict[int, float]],
) -> dict[str, Any] | None:
    """The best point of gmp that costs no more (by 2 %), and the difference to it, seed by seed."""
    fitting = [
        (other, theirs)
        for other, theirs in zip(points, scores, strict=True)
        if other["method"] == REFERENCE
        and other["sparsity"] == point["sparsity"]
        and other["training_flops"] <= 1.02 * point["training_flops"]
    ]
    if not fitting:
        return None
    other, theirs = max(fitting, key=lambda pair: pair[0]["accuracy"]["mean"])
    difference = paired(score, theirs)
    return {
        "pruning_end": other["pruning_end"],
        "epochs": other["epochs"],
        "difference": difference.to_json() if difference else None,
    }


def share_of_flops(point: Mapping[str, Any], points: Sequence[dict[str, Any]]) -> float | None:
    """FLOPs of a point over the least with which gmp is as good on average; None if it never is."""
    as_good = [
        other["training_flops"]
        for other in points
        if other["method"] == REFERENCE
        and other["sparsity"] == point["sparsity"]
        and other["accuracy"]["mean"] >= point["accuracy"]["mean"]
    ]
    return round(point["training_flops"] / min(as_good), 4) if as_good else None


def plot(result: dict[str, Any], folder: Path, name: str) -> None:
    """Accuracy against sparsity, and against training FLOPs."""
    stem = f"{name}-{result['network']}-{result['data']}"
    bands = [
        Band(
            method,
            [1 - cell["sparsity"] for cell in cells],
            [cell["accuracy"] for cell in cells],
        )
        for method, cells in by(result["comparison"], lambda cell: cell["method"]).items()
    ]
    title = f"{result['network']}, {result['data']}"
    draw(
        folder / f"{stem}-sparsity.svg",
        [Panel(title, "density", "test accuracy", bands, log_x=True, falling_x=True)],
    )
    panels = []
    for sparsity, points in by(result["cost"], lambda point: point["sparsity"]).items():
        groups = by(points, lambda point: (point["method"], point["pruning_end"]))
        bands = [
            Band(
                f"{method}, pruning ends at {end:g}",
                [point["training_flops"] / 1e12 for point in cells],
                [point["accuracy"] for point in cells],
            )
            for (method, end), cells in groups.items()
        ]
        label = f"{title}, {sparsity:.0%} sparse"
        panels.append(Panel(label, "training FLOPs / 10¹²", "test accuracy", bands))
    if panels:
        draw(folder / f"{stem}-cost.svg", panels)


if __name__ == "__main__":
    main()

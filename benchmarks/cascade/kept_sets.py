"""Does shedding change which weights are kept, and what does that mean for N:M and blocks?

    python benchmarks/cascade/kept_sets.py

Overlap: the Jaccard index of the sets that methods keep of one dense model at equal sparsity, with
each other, and with one-shot magnitude pruning of that model, beside what independent random sets
with as many weights of each tensor would have. gmp is run a second time with the data in another
order, and its overlap with itself says how much is left to chance.

Patterns: accuracy of N:M and block masks chosen before, during and after the unstructured phase
(`[sparsity] pattern_choice`), at equal epochs. Left out, and named as such, where the product does
not know a pattern or the key.
"""

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired, seed_rows
from journal import Entry
from lab import Lab
from plots import Band, Panel, draw
from record import write_results
from runs import Run, Workplace, load_masks, supported
from scales import options_of, parser_of

from onnxprune.cascade import kept_overlap

METHODS = ("one-shot", "gmp", "cascade-gmp", "iterative learning-rate", "random")
OTHER_ORDER = 500
"""Added to the seed of a run, but not to that of its dense model."""

LARGEST = "the dense model's largest"
CHOICES = ("before", "during", "after")


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        sparsities: At which kept sets are compared.
        patterns: Pattern -> sparsity at which it is judged.
    """

    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    patterns: Mapping[str, float] = field(
        default_factory=lambda: {
            **{"2:4": 0.5, "1:4": 0.75, "2:8": 0.75},
            **{"block:4x1": 0.8, "block:4x4": 0.8},
        }
    )


PLANS = {"full": Plan(), "short": Plan((0.8, 0.95), {"1:4": 0.75, "block:4x4": 0.8})}
"""For `--plan`. `short` is less than half of it."""

QUICK = Plan((0.8,), {"2:4": 0.5})


def main(arguments: Sequence[str] | None = None) -> None:
    """Overlaps, then patterns."""
    parser = parser_of(__doc__)
    parser.add_argument("--plan", choices=sorted(PLANS), default="full")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=2e-3)
    given = parser.parse_args(arguments)
    options = options_of(given, "kept_sets")
    lab = Lab(options)
    methods = [method for method in METHODS if supported(method)]
    plan = QUICK if given.quick else PLANS[given.plan]
    known = [
        (pattern, choice)
        for pattern, choice in itertools.product(plan.patterns, CHOICES)
        if supported("gmp", pattern_tables(pattern, choice))
    ]
    networks = options.scale.networks if given.networks else options.scale.networks[:1]
    data = options.scale.data if given.data else options.scale.data[:1]
    overlapping, patterned = [], []
    for network, name, seed in itertools.product(networks, data, options.scale.seeds):
        base = Run(
            *(network, name, "gmp", 0.5, options.scale.epochs, seed),
            lr=given.lr,
            weight_decay=given.weight_decay,
        )
        overlapping += [
            replace(base, method=method, sparsity=sparsity)
            for method, sparsity in itertools.product(methods, plan.sparsities)
        ]
        reordered = {"finetune": {"seed": seed + OTHER_ORDER}}
        overlapping += [replace(base, sparsity=s, tables=reordered) for s in plan.sparsities]
        patterned += [
            replace(base, sparsity=plan.patterns[pattern], tables=pattern_tables(pattern, choice))
            for pattern, choice in known
        ]
    entries = lab.runs([*overlapping, *patterned])
    results = {
        "overlap": overlaps(overlapping, entries[: len(overlapping)], lab.place),
        "patterns": patterns(patterned, entries[len(overlapping) :]),
    }
    missing = [pair for pair in itertools.product(plan.patterns, CHOICES) if pair not in known]
    settings = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "epochs": options.scale.epochs,
        "sparsities": plan.sparsities,
        "lr": given.lr,
        "weight_decay": given.weight_decay,
        "left_out": {
            "methods": [method for method in METHODS if method not in methods],
            "patterns": [f"{pattern} {choice}" for pattern, choice in missing],
        },
    }
    write_results(options.name, settings, results, options.results)
    plot(results["overlap"], options.results / f"{options.name}.svg")


def pattern_tables(pattern: str, choice: str) -> dict[str, dict[str, Any]]:
    """What the recipe says for a pattern that is chosen at some time."""
    return {"sparsity": {"pattern": pattern, "pattern_choice": choice}}


def overlaps(
    runs: Iterable[Run], entries: Iterable[Entry | None], place: Workplace
) -> list[dict[str, Any]]:
    """Overlap of methods with each other, and with one-shot pruning of the dense model."""
    done = [
        (run, entry)
        for run, entry in zip(runs, entries, strict=True)
        if entry is not None and "accuracy" in entry and place.masks(run).is_file()
    ]
    found = []
    groups = by(done, lambda pair: (pair[0].network, pair[0].data, pair[0].sparsity))
    for (network, data, sparsity), pairs in groups.items():
        values: dict[tuple[str, str], list[float]] = {}
        chance: dict[tuple[str, str], list[float]] = {}
        for same in by(pairs, lambda pair: pair[0].seed).values():
            kept = {name_of(run): load_masks(place.masks(run)) for run, _ in same}
            for run, entry in same:
                pair = name_of(run), LARGEST
                values.setdefault(pair, []).append(entry["overlap_with_start"])
                chance.setdefault(pair, []).append(entry["overlap_by_chance"])
            for one, other in itertools.combinations(kept, 2):
                overlap = kept_overlap(kept[one], kept[other])
                values.setdefault((one, other), []).append(overlap.jaccard)
                chance.setdefault((one, other), []).append(overlap.expected)
        found += [
            {
                "network": network,
                "data": data,
                "sparsity": sparsity,
                "sets": [one, other],
                "jaccard": interval(numbers).to_json(),
                "by_chance": round(fmean(chance[one, other]), 4),
            }
            for (one, other), numbers in values.items()
        ]
    return found


def name_of(run: Run) -> str:
    """The method, and whether the data came in another order."""
    return f"{run.method}, another order" if "finetune" in run.tables else run.method


def patterns(runs: Iterable[Run], entries: Iterable[Entry | None]) -> list[dict[str, Any]]:
    """Accuracy of patterns by the time of choice, and the difference to choosing before."""
    values: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for run, entry in zip(runs, entries, strict=True):
        if entry is not None and "accuracy" in entry:
            keys = run.tables["sparsity"]
            group = (run.network, run.data, keys["pattern"], keys["pattern_choice"])
            values.setdefault(group, {})[run.seed] = entry["accuracy"]
    found = []
    for (network, data, pattern, choice), accuracy in values.items():
        against = paired(accuracy, values.get((network, data, pattern, "before"), {}))
        found.append(
            {
                "network": network,
                "data": data,
                "pattern": pattern,
                "choice": choice,
                "accuracy": interval(accuracy.values()).to_json(),
                "by_seed": seed_rows(accuracy),
                "against_before": against.to_json() if against and choice != "before" else None,
            }
        )
    return found


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Overlap with the dense model's largest weights against density, and chance beside it."""
    panels = []
    for (network, data), same in by(cells, lambda cell: (cell["network"], cell["data"])).items():
        with_dense = [cell for cell in same if cell["sets"][1] == LARGEST]
        bands = [
            Band(
                method,
                [1 - cell["sparsity"] for cell in group],
                [cell["jaccard"] for cell in group],
            )
            for method, group in by(with_dense, lambda cell: cell["sets"][0]).items()
        ]
        chance = {1 - cell["sparsity"]: cell["by_chance"] for cell in with_dense}
        flat = [{"mean": value, "low": value, "high": value} for value in chance.values()]
        bands.append(Band("by chance", list(chance), flat))
        panels.append(
            Panel(f"{network}, {data}", "density", "Jaccard index", bands, falling_x=True)
        )
    if panels:
        draw(path, panels)


if __name__ == "__main__":
    main()

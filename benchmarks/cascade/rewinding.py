"""Rewinding against fine-tuning, at equal retraining, with what is shed along each.

    python benchmarks/cascade/rewinding.py

A dense model is trained for D epochs; then each arm retrains the pruned network for R rounds of
D - 1 epochs, in each of which the same share of the remaining weights goes by magnitude:

- `fine-tuning`: a constant learning rate, a tenth of the dense model's;
- `learning-rate rewinding` (Renda et al., arXiv 2003.02389): the dense model's course of the
  learning rate starts again in each round;
- `weight rewinding` (Frankle et al., arXiv 1912.05671): so do the kept weights, from epoch 1 of
  training the dense model, which is part of the same run.

With one round this is one-shot pruning, with several it is iterative. All arms have the dense
model's weight decay, and none was tuned.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired, seed_rows
from journal import Entry
from lab import Lab
from plots import Band, Panel, draw
from record import write_results
from runs import DENSE_LR, DENSE_WEIGHT_DECAY, Run, Tables
from scales import options_of, parser_of

FINE_TUNING, LEARNING_RATE, WEIGHTS = ARMS = (
    "fine-tuning",
    "learning-rate rewinding",
    "weight rewinding",
)
REWIND_EPOCH = 1.0


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        sparsities: At the end; those that matter most first, since time may end.
        rounds: Of retraining.
        dense_epochs: In which the dense model is trained; None leaves it to the scale.
    """

    sparsities: tuple[float, ...] = (0.98, 0.9)
    rounds: tuple[int, ...] = (1, 3)
    dense_epochs: float | None = None


PLANS = {"full": Plan(), "short": Plan(rounds=(1, 2), dense_epochs=6.0)}
"""For `--plan`. With a dense model of six epochs, `short` takes a third of the time."""

QUICK = Plan((0.9,), (1,))


def main(arguments: Sequence[str] | None = None) -> None:
    """All arms, rounds, sparsities and seeds."""
    parser = parser_of(__doc__)
    parser.add_argument("--plan", choices=sorted(PLANS), default="full")
    parser.add_argument("--rounds", nargs="+", type=int)
    parser.add_argument("--sparsities", nargs="+", type=float)
    given = parser.parse_args(arguments)
    plan = QUICK if given.quick else PLANS[given.plan]
    options = options_of(given, "rewinding")
    if plan.dense_epochs is not None:
        options = replace(options, scale=replace(options.scale, dense_epochs=plan.dense_epochs))
    lab = Lab(options)
    rounds, sparsities = given.rounds or plan.rounds, given.sparsities or plan.sparsities
    networks = options.scale.networks if given.networks else options.scale.networks[:1]
    data = options.scale.data if given.data else options.scale.data[:1]
    order = itertools.product(networks, data, sparsities, rounds, ARMS, options.scale.seeds)
    cells = [
        (network, name, n, sparsity, arm, seed) for network, name, sparsity, n, arm, seed in order
    ]
    entries = lab.runs([run_of(*cell, lab.scale.dense_epochs) for cell in cells])
    results = summary(cells, entries)
    settings = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "dense_epochs": options.scale.dense_epochs,
        "rewind_epoch": REWIND_EPOCH,
    }
    write_results(options.name, settings, results, options.results)
    plot(results, options.results / f"{options.name}.svg")


def run_of(
    network: str,
    data: str,
    rounds: int,
    sparsity: float,
    arm: str,
    seed: int,
    dense_epochs: float,
) -> Run:
    """The run of an arm."""
    rewind = min(REWIND_EPOCH, dense_epochs / 2)
    length = dense_epochs - rewind
    tables: Tables = {
        "sparsity": {"method": "iterative"},
        "schedule": {"rounds": rounds, "rewind": "learning-rate"},
    }
    epochs, lr, start = rounds * length, DENSE_LR, "dense"
    if arm == FINE_TUNING:
        lr = DENSE_LR / 10
        tables = {
            "sparsity": {"method": "iterative"},
            "schedule": {"rounds": rounds, "rewind": "none"},
            "finetune": {"lr_schedule": "constant", "warmup": 0.0},
        }
    if arm == WEIGHTS:
        # Before the first round the run itself trains the dense model, for as long as it was.
        epochs, start = dense_epochs + rounds * length, "untrained"
        tables = {
            "sparsity": {"method": "iterative"},
            "schedule": {"rounds": rounds, "rewind": "weights", "rewind_epoch": rewind},
        }
    return Run(
        *(network, data, "iterative", sparsity, epochs, seed, lr, DENSE_WEIGHT_DECAY),
        start=start,
        tables=tables,
    )


Cell = tuple[str, str, int, float, str, int]
"""Network, data, rounds, sparsity, arm, seed."""


def summary(cells: Iterable[Cell], entries: Iterable[Entry | None]) -> list[dict[str, Any]]:
    """Accuracy of every arm, its difference to fine-tuning seed by seed, and what was shed."""
    values: dict[tuple[Any, ...], dict[int, Entry]] = {}
    for (*group, seed), entry in zip(cells, entries, strict=True):
        if entry is not None and "accuracy" in entry:
            values.setdefault(tuple(group), {})[seed] = entry
    found = []
    for (network, data, rounds, sparsity, arm), by_seed in values.items():
        accuracy = {seed: entry["accuracy"] for seed, entry in by_seed.items()}
        base = values.get((network, data, rounds, sparsity, FINE_TUNING), {})
        against = paired(accuracy, {seed: entry["accuracy"] for seed, entry in base.items()})
        found.append(
            {
                "network": network,
                "data": data,
                "rounds": rounds,
                "sparsity": sparsity,
                "arm": arm,
                "accuracy": interval(accuracy.values()).to_json(),
                "by_seed": seed_rows(accuracy),
                "against_fine_tuning": against.to_json() if against else None,
                "shed": {str(seed): shed_curve(entry) for seed, entry in by_seed.items()},
            }
        )
    return found


def shed_curve(entry: Entry) -> list[tuple[int, float]]:
    """Step, and the share of the kept weights that was shed since the last pruning event."""
    return [
        (line["step"], round(line["shed"] / line["kept"], 5))
        for line in entry.get("shed", [])
        if line["kept"]
    ]


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against sparsity, a panel for each network, data set and number of rounds."""
    panels = []
    groups = by(results, lambda cell: (cell["network"], cell["data"], cell["rounds"]))
    for (network, data, rounds), cells in groups.items():
        bands = [
            Band(
                arm,
                [1 - cell["sparsity"] for cell in same],
                [cell["accuracy"] for cell in same],
            )
            for arm, same in by(cells, lambda cell: cell["arm"]).items()
        ]
        title = f"{network}, {data}, {rounds} round{'s' if rounds > 1 else ''}"
        panels.append(Panel(title, "density", "test accuracy", bands, log_x=True, falling_x=True))
    if panels:
        draw(path, panels)


if __name__ == "__main__":
    main()

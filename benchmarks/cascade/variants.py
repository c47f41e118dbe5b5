"""What of cascade-gmp matters: variants of it beside plain gradual pruning, changed in one thing.

    python benchmarks/cascade/variants.py

All arms prune gradually with the same epochs, data and dense models, and the learning rate, weight
decay and length of pruning that were best for gmp when `methods.py` tuned it. Those with pressure
have that many times the dense model's weight decay while weights go, and once that afterwards.

This is a search, so accuracy is on the validation part, and differences to gmp are paired by seed.
An arm whose interval lies above zero here is a candidate for a test, not a result: one in 40 does
so by chance.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import interval, paired, seed_rows
from journal import Entry
from lab import Lab
from methods import shed_share
from record import write_results
from runs import DENSE_WEIGHT_DECAY, Run, Tables
from scales import options_of, parser_of

REFERENCE = "gmp"
_PLAIN = {"closure": False, "harvest": False, "wait": 0}


def _cascade(**settings: Any) -> Tables:
    return {"sparsity": {"method": "cascade-gmp"}, "cascade": settings}


ARMS: dict[str, Tables] = {
    REFERENCE: {},
    "gmp, linear schedule": {"schedule": {"kind": "linear"}},
    "gmp, 60 events": {"schedule": {"events": 60}},
    "gmp, distilled": {"distill": {"weight": 0.5}},
    "closure alone": _cascade(**_PLAIN | {"closure": True}),
    "harvest alone": _cascade(**_PLAIN | {"harvest": True}),
    "harvest alone, τ 0.1": _cascade(**_PLAIN | {"harvest": True}, tau=0.1),
    "held learning rate alone": _cascade(**_PLAIN | {"hold_lr": True}),
    "pressure alone, 4": _cascade(**_PLAIN, pressure=4.0),
    "pressure alone, 10": _cascade(**_PLAIN, pressure=10.0),
    "cascade-gmp": _cascade(),
    "cascade-gmp, τ 0.1": _cascade(tau=0.1),
    "cascade-gmp, τ 0.1, no brake": _cascade(tau=0.1, harvest_cost=1.0),
    "cascade-gmp, wait 0": _cascade(wait=0),
    "cascade-gmp, wait 3": _cascade(wait=3),
    "cascade-gmp, held learning rate": _cascade(hold_lr=True),
    "cascade-gmp, 5 events": {**_cascade(), "schedule": {"events": 5}},
    "cascade-gmp, 60 events": {**_cascade(), "schedule": {"events": 60}},
    "cascade-gmp, pressure 4": _cascade(pressure=4.0),
    "cascade-gmp, distilled": {**_cascade(), "distill": {"weight": 0.5}},
}
"""Name of an arm -> keys of the recipe."""


def main(arguments: Sequence[str] | None = None) -> None:
    """All arms at all sparsities, over the seeds."""
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.98])
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-3)
    parser.add_argument("--pruning-end", type=float, default=0.65)
    given = parser.parse_args(arguments)
    options = options_of(given, "variants")
    arms = list(dict.fromkeys((REFERENCE, *given.arms[: 2 if given.quick else None])))
    lab = Lab(options)
    network, data = options.scale.networks[0], options.scale.data[0]
    cells = list(itertools.product(given.sparsities, arms, options.scale.seeds))
    entries = lab.runs(
        [
            run_of(
                Run(
                    *(network, data, "gmp", sparsity, options.scale.epochs, seed),
                    lr=given.lr,
                    weight_decay=given.weight_decay,
                    pruning_end=given.pruning_end,
                    judged_on="valid",
                ),
                arm,
            )
            for sparsity, arm, seed in cells
        ]
    )
    settings = {
        "scale": options.scale_name,
        "network": network,
        "data": data,
        "seeds": list(options.scale.seeds),
        "epochs": options.scale.epochs,
        "lr": given.lr,
        "weight_decay": given.weight_decay,
        "pruning_end": given.pruning_end,
        "arms": {arm: ARMS[arm] for arm in arms},
    }
    write_results(options.name, settings, summary(cells, entries), options.results)


def run_of(plain: Run, arm: str) -> Run:
    """A run of gmp, changed as an arm says."""
    tables = ARMS[arm]
    pressure = tables.get("cascade", {}).get("pressure")
    decay = plain.weight_decay if pressure is None else DENSE_WEIGHT_DECAY
    return replace(plain, weight_decay=decay, tables=tables)


def summary(
    cells: Iterable[tuple[float, str, int]], entries: Iterable[Entry | None]
) -> list[dict[str, Any]]:
    """Accuracy, its difference to gmp, cost and what was shed and taken, for each arm."""
    found: dict[tuple[float, str], dict[int, Entry]] = {}
    diverged: Counter[tuple[float, str]] = Counter()
    for (sparsity, arm, seed), entry in zip(cells, entries, strict=True):
        if entry is not None and "accuracy" not in entry:
            diverged[sparsity, arm] += 1
        elif entry is not None:
            found.setdefault((sparsity, arm), {})[seed] = entry
    rows = []
    for (sparsity, arm), by_seed in found.items():
        against = paired(_accuracy(by_seed), _accuracy(found.get((sparsity, REFERENCE), {})))
        runs = list(by_seed.values())
        rows.append(
            {
                "sparsity": sparsity,
                "arm": arm,
                "accuracy": interval(run["accuracy"] for run in runs).to_json(),
                "by_seed": seed_rows(_accuracy(by_seed)),
                "diverged": diverged[sparsity, arm],
                "against_gmp": against.to_json() if against and arm != REFERENCE else None,
                "mean_density": round(interval(r["budget"]["mean_density"] for r in runs).mean, 4),
                "closed": [run["closed"] for run in runs],
                "harvested": [run["harvested"] for run in runs],
                "shed_share": [round(shed_share(run) or 0.0, 4) for run in runs],
            }
        )
    return rows


def _accuracy(entries: Mapping[int, Entry]) -> dict[int, float]:
    return {seed: entry["accuracy"] for seed, entry in entries.items()}


if __name__ == "__main__":
    main()

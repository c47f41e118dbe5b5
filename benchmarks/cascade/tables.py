"""The tables of docs/concepts/cascade-measured.md, made from the results files.

    python benchmarks/cascade/tables.py            # write them into the page
    python benchmarks/cascade/tables.py --check    # say whether the page has them as they are

A table stands between the lines `<!-- table NAME -->` and `<!-- end -->`.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis import paired

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "concepts" / "cascade-measured.md"
RESULTS = ROOT / "benchmarks" / "results" / "cascade"
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]

HELD = "cascade-gmp, held learning rate"

_HOLDING = (
    *("methods_glyphs_95", "methods_fashion_95"),
    *("methods_glyphs_98", "methods_glyphs_98_equal", "methods_glyphs_98_wide"),
)
"""Results with several ways of holding the learning rate."""

DEFAULT = "cascade-gmp"

_PHASE = (
    *("phase_map_shares", "phase_map_glyphs", "phase_map_resnet20", "phase_map_resnet20_grid"),
    *("phase_map_mobilenet", "phase_map_mobilenet_grid"),
)
"""Results of `phase_map.py` beside the first."""

_BESIDE_GMP = ("methods_free_fashion", "methods_fashion_80_equal")
"""Results of `methods.py` with cascade-gmp as it is by default."""

_REAL = (
    *("real_models", "real_models_lite0", "real_models_lite0_probes"),
    *("real_models_recogniser", "real_models_recogniser_probes"),
)

_PARTS = ("methods_mobilenet_98_equal",)
"""With closure and harvest by themselves."""

_OWN = ("methods_fashion_nine", "methods_glyphs_own", "methods_mobilenet_nine")
"""Those where both are tuned at the sparsities at which they are compared."""

_EQUAL = ("methods_fashion_95_equal", "methods_mobilenet_98_again")
"""Where those differ, again with equal settings."""

_COSTED = ("methods_fashion_own", "methods_mobilenet")
"""Earlier ones with fewer seeds, and runs of half the length."""

_FARTHEST_BEHIND = -0.003
"""How far behind gmp the default of cascade-gmp may be, as a difference of accuracies."""

_SETTINGS = ("lr", "weight_decay", "pruning_end")


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    page = PAGE.read_text(encoding="utf-8")
    made = MARKED.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", page)
    if not parser.parse_args().check:
        PAGE.write_text(made, encoding="utf-8")
    elif made != page:
        sys.exit("the page differs from the results files: run benchmarks/cascade/tables.py")


def table(name: str) -> str:
    """A table in Markdown."""
    makers = {
        "bar": bar,
        "phase": phase,
        "phase-beside": phase_beside,
        "methods": methods,
        "methods-against-gmp": methods_against_gmp,
        "tuning": tuning,
        "methods-mobilenet": partial(methods, "methods_mobilenet_all"),
        "methods-mobilenet-against-gmp": partial(methods_against_gmp, "methods_mobilenet_all"),
        "methods-glyphs": partial(methods, "methods_glyphs"),
        "methods-glyphs-against-gmp": partial(methods_against_gmp, "methods_glyphs"),
        "tuning-glyphs": partial(tuning, "methods_glyphs"),
        "tuning-differences": tuning_differences,
        "learning-rate": learning_rate,
        "beside-gmp": partial(learning_rate, *_BESIDE_GMP),
        "real": real,
        "real-probes": real_probes,
        "own": partial(learning_rate, *_OWN),
        "own-equal": partial(learning_rate, *_EQUAL),
        "parts": partial(learning_rate, *_PARTS),
        "tuning-own": partial(tuning, *_OWN),
        "cost": cost,
        "cost-own": partial(cost, *_COSTED),
        "variants": variants,
        "kept-sets-glyphs": kept_sets,
        "kept-sets-learning-rate": partial(
            kept_sets, "methods_glyphs_95", "methods_glyphs_98_equal"
        ),
        "kept-sets-order": another_order,
        "pattern-choice": pattern_choice,
        "iterative": iterative,
        "rewinding": rewinding,
        "closure": closure,
    }
    return makers[name]()


def phase() -> str:
    """The gain over learning rate and weight decay, and what random pruning costs."""
    head = ["pruned", "learning rate", "weight decay", "decay horizon covered"]
    head += ["gain, magnitude", "gain, random", "accuracy after random pruning, against control"]
    return markdown(head, [row for _, row in _phase_rows("phase_map")])


def phase_beside() -> str:
    """The same for other networks, data and shares."""
    rows = []
    for file in _PHASE:
        shed = _shed_at_the_end(file)
        for (network, data), row in _phase_rows(file):
            shown = [network, data, *row[:4], shed[network, data, *row[:3]], *row[4:]]
            if shown not in rows:
                rows.append(shown)
    head = ["network", "data", "pruned", "learning rate", "weight decay", "decay horizon covered"]
    head += ["shed, random / its control", "gain, magnitude", "gain, random"]
    return markdown([*head, "random, against control"], rows)


def _shed_at_the_end(file: str) -> dict[tuple[str, ...], str]:
    """By point, the shares of the kept weights that are shed after random pruning and without."""
    found = {}
    for point in results(file)["points"]:
        if point["criterion"] == "random":
            _, treated, control = point["curve"][-1]
            settings = f"{point['lr']:g}", f"{point['weight_decay']:g}"
            place = point["network"], point["data"], _share(point["sparsity"])
            found[*place, *settings] = f"{100 * treated:.1f} / {100 * control:.1f} %"
    return found


def _phase_rows(file: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Network and data of each point, and its row."""
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for point in results(file)["points"]:
        place = point["network"], point["data"]
        key = *place, point["sparsity"], point["lr"], point["weight_decay"]
        cells.setdefault(key, {})[point["criterion"]] = point
    for (network, data, sparsity, lr, decay), both in sorted(cells.items()):
        yield (
            (network, data),
            [
                _share(sparsity),
                *(f"{lr:g}", f"{decay:g}"),
                f"{both['magnitude']['decay_horizon_reached']:.2f}",
                *(with_ends(both[score]["gain"]) for score in ("magnitude", "random")),
                points(both["random"]["against_control"]),
            ],
        )


def methods(file: str = "methods") -> str:
    """Accuracy of each method at each sparsity, in percent."""
    return _by_sparsity(file, lambda cell: percent(cell["accuracy"]))


def methods_against_gmp(file: str = "methods") -> str:
    """Differences to gmp, in points."""
    return _by_sparsity(file, lambda cell: points(cell["against_gmp"]), without="gmp")


def _by_sparsity(file: str, show: Any, without: str | None = None) -> str:
    cells: dict[str, dict[float, str]] = {}
    for cell in results(file)[0]["comparison"]:
        if cell["method"] != without:
            cells.setdefault(cell["method"], {})[cell["sparsity"]] = show(cell)
    sparsities = sorted({sparsity for row in cells.values() for sparsity in row})
    head = ["method", *(_share(sparsity) for sparsity in sparsities)]
    rows = [[name, *(row.get(s, "–") for s in sparsities)] for name, row in cells.items()]
    return markdown(head, rows)


def tuning(*files: str) -> str:
    """The best point of each tuned method, on the validation part."""
    found = [result for file in files or ("methods",) for result in results(file)]
    several = len(found) > 1
    rows = [
        [
            *([f"{result['network']}, {result['data']}"] if several else []),
            point["method"],
            _share(point["sparsity"]),
            *(f"{point['lr']:g}", f"{point['weight_decay']:g}", f"{point['pruning_end']:g}"),
            f"{100 * point['accuracy']:.1f}",
            ", ".join(key.replace("_", " ") for key in point["at_edge"]) or "–",
        ]
        for result in found
        for point in result["tuning"]
        if point.get("best")
    ]
    head = ["network, data"] if several else []
    head += ["method", "sparsity", "learning rate", "weight decay", "pruning ends"]
    return markdown([*head, "accuracy, %", "at an edge of the grid"], rows)


def tuning_differences() -> str:
    """HELD less gmp at equal settings on the tuning model, means over the other settings."""
    cells: dict[tuple[str, float], dict[tuple[str, float], str]] = {}
    for result in (results("methods")[0], results("methods_glyphs")[0]):
        scores = {
            (point["method"], *(point[key] for key in ("sparsity", *_SETTINGS))): point["accuracy"]
            for point in result["tuning"]
        }
        found: dict[tuple[float, str, float], list[float]] = {}
        for (method, sparsity, *values), score in scores.items():
            if method == HELD:
                difference = score - scores["gmp", sparsity, *values]
                for key, value in zip(_SETTINGS, values, strict=True):
                    found.setdefault((sparsity, key, value), []).append(difference)
        for (sparsity, key, value), differences in found.items():
            mean = signed(number(100 * fmean(differences), 1))
            ahead = sum(difference > 0 for difference in differences)
            row = cells.setdefault((result["data"], sparsity), {})
            row[key, value] = f"{mean} ({ahead} of {len(differences)})"
    settings = sorted({setting for row in cells.values() for setting in row})
    settings.sort(key=lambda setting: _SETTINGS.index(setting[0]))
    columns = sorted(cells)
    head = ["setting", "value", *(f"{data}, {_share(sparsity)}" for data, sparsity in columns)]
    rows = [
        [key.replace("_", " "), f"{value:g}", *(cells[c].get((key, value), "–") for c in columns)]
        for key, value in settings
    ]
    return markdown(head, rows)


def bar() -> str:
    """Every comparison of cascade-gmp as it is by default with gmp."""
    rows = []
    for file in (*_HOLDING, *_BESIDE_GMP, *_COSTED, *_OWN, *_EQUAL, *_PARTS):
        for result in results(file):
            rows += [
                [f"{result['network']}, {result['data']}", cell["sparsity"], cell["against_gmp"]]
                for cell in result["comparison"]
                if cell["method"] == DEFAULT and cell["against_gmp"]
            ]
    for file in _REAL:
        rows += [
            [cell["model"], cell["sparsity"], cell["against_gmp"]]
            for cell in results(file).get("comparison", [])
            if cell["method"] == DEFAULT and cell["against_gmp"]
        ]
    head = ["network, data", "sparsity", "seeds", "cascade-gmp against gmp, points"]
    return markdown(
        [*head, f"behind by more than {number(-100 * _FARTHEST_BEHIND, 1)}"],
        [
            [place, _share(sparsity), found["count"], points(found), _behind(found)]
            for place, sparsity, found in sorted(rows, key=lambda row: row[:2])
        ],
    )


def _behind(difference: Row) -> str:
    """Whether it lies below the bar, by its interval."""
    if difference["low"] is None:
        return "open"
    if difference["high"] < _FARTHEST_BEHIND:
        return "yes"
    return "no" if difference["low"] >= _FARTHEST_BEHIND else "open"


def learning_rate(*files: str) -> str:
    """Methods against gmp with their settings, by default those with a held learning rate."""
    rows = []
    found = [result for file in files or _HOLDING for result in results(file)]
    several = len({result["network"] for result in found}) > 1
    for result in found:
        place = f"{result['network']}, {result['data']}" if several else result["data"]
        for cell in sorted(result["comparison"], key=lambda c: c["sparsity"]):
            same = [run for run in result["runs"] if _cell(run) == _cell(cell)]
            row = [
                f"{place}, {_share(cell['sparsity'])}",
                cell["method"],
                *(f"{same[0]['lr']:g}", f"{same[0]['pruning_end']:g}"),
                cell["accuracy"]["count"],
                percent(cell["accuracy"]),
                points(cell["against_gmp"]),
            ]
            if row not in rows:
                rows.append(row)
    head = [f"{'network, ' * several}data, sparsity", "method", "learning rate"]
    return markdown([*head, "pruning ends", "seeds", "accuracy, %", "against gmp, points"], rows)


def _cell(row: Row) -> tuple[str, float]:
    return row["method"], row["sparsity"]


def cost(*files: str) -> str:
    """Accuracy for what training costs, and what gmp reaches for no more."""
    found = [
        (f"{result['network']}, {result['data']}", point)
        for file in files or ("methods",)
        for result in results(file)
        for point in result["cost"]
    ]
    several = len({place for place, _ in found}) > 1
    timed = any("cpu_seconds" in point for _, point in found)
    rows = [
        [
            *([place] if several else []),
            _share(point["sparsity"]),
            point["method"],
            *(f"{point['pruning_end']:g}", f"{point['epochs']:g}"),
            f"{point['training_flops'] / 1e9:.0f}",
            *([f"{point['cpu_seconds']:.0f}"] if timed else []),
            percent(point["accuracy"]),
            points((point.get("gmp_at_this_cost") or {}).get("difference")),
            *([_share_of_flops(point)] if timed else []),
        ]
        for place, point in sorted(found, key=lambda pair: _cost_order(*pair))
    ]
    head = ["network, data"] if several else []
    head += ["sparsity", "method", "pruning ends", "epochs", "10⁹ FLOPs"]
    head += ["CPU seconds"] if timed else []
    head += ["accuracy, %", "against gmp for no more FLOPs, points"]
    return markdown([*head, "share of gmp's FLOPs"] if timed else head, rows)


def _cost_order(place: str, point: Row) -> tuple[Any, ...]:
    return place, point["sparsity"], point["training_flops"]


def _share_of_flops(point: Row) -> str:
    """Of the least with which gmp is as good on average."""
    if point["method"] == "gmp":
        return "–"
    share = point["share_of_gmp_flops"]
    return "gmp is never as good" if share is None else f"{number(share, 2)}"


def variants() -> str:
    """Arms beside gmp, on the validation part."""
    rows = [
        [row["arm"], percent(row["accuracy"]), points(row["against_gmp"]), row["mean_density"]]
        for row in results("variants")
    ]
    return markdown(["arm", "accuracy, %", "against gmp, points", "mean density"], rows)


def kept_sets(*files: str, having: str | None = None) -> str:
    """The Jaccard index of kept sets over two seeds or more, and what chance would make of it.

    With `having`, of pairs with this set only. One-shot pruning is left out where the set of the
    dense model's largest weights, which it keeps, stands beside it.
    """
    cells: dict[tuple[str, str], dict[float, str]] = {}
    found = [results(file) for file in files or ("methods_glyphs",)]
    overlaps = [(f if isinstance(f, dict) else f[0])["overlap"] for f in found]
    for cell in itertools.chain(*overlaps):
        if "one-shot" in cell["sets"] or cell["jaccard"]["count"] < 2:
            continue
        if having is not None and having not in cell["sets"]:
            continue
        shown = f"{with_ends(cell['jaccard'], 3)}; {number(cell['by_chance'], 3)}"
        cells.setdefault(tuple(cell["sets"]), {})[cell["sparsity"]] = shown
    sparsities = sorted({sparsity for row in cells.values() for sparsity in row})
    head = ["kept by", "and by", *(_share(sparsity) for sparsity in sparsities)]
    return markdown(
        head, [[*sets, *(row.get(s, "–") for s in sparsities)] for sets, row in cells.items()]
    )


def pattern_choice() -> str:
    """Patterns by the moment at which their groups are chosen."""
    rows = [
        [
            cell["pattern"],
            cell["choice"],
            percent(cell["accuracy"]),
            "–" if cell["choice"] == "before" else points(cell["against_before"]),
        ]
        for cell in results("kept_sets")["patterns"]
    ]
    return markdown(["pattern", "chosen", "accuracy, %", "against before, points"], rows)


def iterative() -> str:
    """Differences between rewinding and one-shot pruning, seed by seed."""
    scores: dict[tuple[str, float], dict[int, float]] = {}
    for run in results("methods")[0]["runs"]:
        scores.setdefault((run["method"], run["sparsity"]), {})[run["seed"]] = run["accuracy"]
    sparsities = sorted({sparsity for _, sparsity in scores})
    rows = []
    for one, other in itertools.combinations(
        ("iterative learning-rate", "iterative weights", "one-shot"), 2
    ):
        found = [paired(scores[one, s], scores[other, s]) for s in sparsities]
        rows.append(
            [one, other, *(points(difference and difference.to_json()) for difference in found)]
        )
    return markdown(["method", "against", *map(_share, sparsities)], rows)


def rewinding() -> str:
    """Both rewindings beside plain fine-tuning."""
    rows = [
        [
            _share(cell["sparsity"]),
            cell["rounds"],
            cell["arm"],
            cell["accuracy"]["count"],
            percent(cell["accuracy"]),
            "–" if cell["arm"] == "fine-tuning" else points(cell["against_fine_tuning"]),
        ]
        for cell in sorted(results("rewinding"), key=lambda c: (c["sparsity"], c["rounds"]))
    ]
    head = ["sparsity", "rounds", "arm", "seeds", "accuracy, %", "against fine-tuning, points"]
    return markdown(head, rows)


def another_order() -> str:
    """What gmp keeps, beside what it keeps with its data in another order and others keep."""
    return kept_sets("kept_sets", having="gmp")


def real() -> str:
    """Methods on production models, and differences to gmp."""
    rows = [
        [
            cell["model"],
            _share(cell["sparsity"]),
            cell["method"],
            f"{100 * cell['dense']:.1f}",
            percent(cell["accuracy"]),
            points(cell["against_gmp"]),
        ]
        for file in _REAL
        for cell in sorted(results(file).get("comparison", []), key=lambda c: c["sparsity"])
    ]
    head = ["model", "sparsity", "method", "dense, %", "accuracy, %", "against gmp, points"]
    return markdown(head, rows)


def real_probes() -> str:
    """The cascade gain of production models."""
    rows = [
        [
            probe["model"],
            _share(probe["pruned_share"]),
            probe["criterion"],
            f"{probe['decay_horizon_reached']:.3f}",
            with_ends(probe["gain"], 4),
            probe["gain"]["verdict"],
        ]
        for file in _REAL
        for probe in results(file).get("probes", [])
    ]
    head = ["model", "pruned", "by", "decay horizon covered", "gain", "verdict"]
    return markdown(head, rows)


def closure() -> str:
    """What the closure finds in networks that were pruned while they were trained."""
    rows = [
        [
            row["network"].removesuffix(".onnx"),
            f"{100 * row['sparsity']:.2f} %",
            f"{row['dead_weights']} of {_kept(row)}",
            f"{100 * row['sparsity_after']:.2f} %",
            f"{row['dead_inputs']} / {row['dead_outputs']}",
            f"{row['largest_difference']:.1g} of {row['largest_output']:.1f}",
            f"{row['other_class']} of {row['samples']}",
        ]
        for file in ("closure_trained", "closure_trained_mobilenet")
        for row in results(f"../{file}")
    ]
    head = ["network", "sparsity", "dead of the kept weights", "sparsity without them"]
    head += ["dead in / out channels", "largest difference of an output", "other class"]
    return markdown(head, rows)


def _kept(row: Row) -> int:
    return round(row["weights"] * (1 - row["sparsity"]))


def results(name: str) -> Any:
    """What a results file holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def with_ends(interval: Row, digits: int = 3, scale: float = 1.0) -> str:
    """A mean with its interval."""
    mean, low, high = (
        None if interval[key] is None else number(scale * interval[key], digits)
        for key in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]" if low else f"{mean} [one seed]"


def percent(interval: Row) -> str:
    """An accuracy in percent."""
    return with_ends(interval, 1, 100)


def points(interval: Row | None) -> str:
    """A difference of accuracies in points, with its sign."""
    if interval is None:
        return "–"
    return signed(with_ends(interval, 1, 100))


def signed(text: str) -> str:
    """A plus sign before what is above zero."""
    return text if text.startswith("−") or text.split()[0] == "0.0" else f"+{text}"


def number(value: float, digits: int) -> str:
    """A number with a minus sign, and none before zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    main()

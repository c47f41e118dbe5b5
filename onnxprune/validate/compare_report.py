"""The page that puts several runs side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.model import atomic_write_text
from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_page import Group, facts_table, present, render_page
from onnxprune.validate.report_plots import Table
from onnxprune.validate.report_plots_compare import (
    LOWER_IS_BETTER,
    Candidate,
    on_front,
    runs_table,
    sparsity_plot,
    speed_plot,
)
from onnxprune.validate.report_summary import KeyFigure, main_metric
from onnxprune.validate.run_record import RunRecord, read_run

_MAX_SETTINGS = 200
_ABSENT = "–"


@dataclass(frozen=True)
class Comparison:
    """A page for several runs.

    Attributes:
        page: The page, as HTML text.
        left_out: Name of each run that is not compared -> why.
    """

    page: str
    left_out: dict[str, str]


def build_comparison(run_dirs: Sequence[Path]) -> Comparison:
    """The page for several runs, and which of them it leaves out.

    Runs that have not finished, were not evaluated, or lack the metric that most have, are named
    and left out.

    Args:
        run_dirs: Run directories, at least two.

    Raises:
        UsageError: One of them is no run directory, is named twice or is damaged; or none has
            finished and was evaluated.
    """
    paths = [Path(path) for path in run_dirs]
    _refuse_doubles(paths)
    runs = [read_run(path) for path in paths]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = fmt.distinct([str(path) for path in paths], 60)
    candidates, left_out = _candidates(list(zip(names, runs, strict=True)))
    used = {candidate.name for candidate in candidates}
    compared = [pair for pair in zip(names, runs, strict=True) if pair[0] in used]
    groups = [
        Group("front", "Fronts", present([sparsity_plot(candidates), speed_plot(candidates)])),
        Group("runs", "Runs", tables=[("What each run came to", runs_table(candidates))]),
        _settings_group(compared),
    ]
    groups = [group for group in groups if not group.empty]
    page = render_page(
        "compare.html.j2",
        groups,
        title=f"Comparison of {len(runs)} pruning runs",
        sections=[
            ("summary", "Summary"),
            *((group.key, group.title) for group in groups),
            ("environment", "Environment"),
        ],
        figures=_figures(candidates),
        outcome=_outcome(candidates),
        cautions=_cautions(candidates, left_out),
        notes=[],
        facts=[(name, facts_table(_facts(run))) for name, run in compared[:20]],
        tool_version=next((run.info.tool_version for run in runs if run.info.tool_version), None),
    )
    return Comparison(page, left_out)


def write_comparison(run_dirs: Sequence[Path], out: Path) -> dict[str, str]:
    """Write the page for several runs to the file `out`.

    Args:
        run_dirs: As in `build_comparison`.
        out: The HTML file.

    Returns:
        Name of each run that the page leaves out -> why.

    Raises:
        UsageError: As `build_comparison`.
        OutputError: `out` cannot be written.
    """
    comparison = build_comparison(run_dirs)
    atomic_write_text(Path(out), comparison.page)
    return comparison.left_out


def _refuse_doubles(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            raise UsageError("a run is named twice", where=path, remedy="name each run once")


def _candidates(
    runs: Sequence[tuple[str, RunRecord]],
) -> tuple[list[Candidate], dict[str, str]]:
    """The runs that can be compared by one metric, and why the others cannot."""
    left_out, measured = {}, []
    for name, run in runs:
        if run.results is None:
            left_out[name] = f"it has not finished ({run.info.status})"
        elif run.results.validation is None or not run.results.validation.pruned:
            left_out[name] = "it was not evaluated on data"
        else:
            measured.append((name, run.results, run.results.validation.pruned))
    if not measured:
        raise UsageError(
            "there is nothing to compare",
            got="; ".join(f"{name}: {reason}" for name, reason in left_out.items()),
            expected="at least one run that has finished and was evaluated",
            remedy="continue runs with `onnxprune prune --resume`, and evaluate them, with "
            "[data] eval",
        )
    counts = Counter(key for _, _, values in measured for key in values)
    wanted = [main_metric(results) for _, results, _ in measured] + sorted(counts)
    metric = max((name for name in wanted if name is not None), key=counts.__getitem__)
    candidates = []
    for name, results, values in measured:
        if metric in values:
            candidates.append(Candidate(name, results, metric))
        else:
            left_out[name] = f"it has no {metric}, only {', '.join(sorted(values))}"
    return candidates, left_out


def _figures(candidates: Sequence[Candidate]) -> list[KeyFigure]:
    """A tile for the best run in each respect."""
    metric = candidates[0].metric
    sign = -1 if metric in LOWER_IS_BETTER else 1
    judged = [(c, c.quality) for c in candidates if c.quality is not None]
    figures = []
    if judged:
        best, quality = max(judged, key=lambda pair: sign * pair[1])
        label = f"Best {fmt.metric_name(metric)}"
        value = fmt.metric_value(metric, quality)
        figures.append(KeyFigure("best-quality", label, value, fmt.shorten(best.name, 60)))
    sparsest = max(candidates, key=lambda c: c.results.sparsity)
    value = fmt.percent(sparsest.results.sparsity)
    figures.append(KeyFigure("sparsest", "Highest sparsity", value, fmt.shorten(sparsest.name, 60)))
    timed = [(c, c.speedup) for c in candidates if c.speedup is not None]
    if timed:
        fastest, speedup = max(timed, key=lambda pair: pair[1].ratio)
        value = fmt.ratio(speedup.ratio)
        detail = f"{fmt.shorten(fastest.name, 60)}, {fmt.interval(speedup.low, speedup.high)}"
        figures.append(KeyFigure("fastest", "Fastest against dense", value, detail))
    return figures


def _outcome(candidates: Sequence[Candidate]) -> list[str]:
    front = [fmt.shorten(c.name, 60) for c in candidates if on_front(c, candidates)]
    respects = [fmt.metric_name(candidates[0].metric), "sparsity"]
    if all(c.speedup is not None for c in candidates):
        respects.append("speed")
    respect = f"{', '.join(respects[:-1])} and {respects[-1]}"
    if not front:
        return [f"No run has a value of {respects[0]}."]
    count = "1 finished run is" if len(candidates) == 1 else f"{len(candidates)} finished runs are"
    return [
        f"{count} compared by {respect}. On the front, where no other "
        f"run is as good in all of these and better in one: {', '.join(front)}.",
        "Values are compared as measured, without their uncertainty: runs that lie close together "
        "may change places with another seed.",
    ]


def _cautions(candidates: Sequence[Candidate], left_out: Mapping[str, str]) -> list[str]:
    """What keeps the runs from being comparable."""
    texts = [f"Left out: {fmt.shorten(name, 60)}, {why}." for name, why in left_out.items()]
    sources = {c.results.source_sha256 for c in candidates}
    if len(sources) > 1:
        texts.append("The runs pruned different models, so their values are not comparable.")
    samples = {side.digest for c in candidates if (side := c.results.data.get("eval"))}
    if len(samples) > 1:
        texts.append("The runs were validated on different samples.")
    machines = {
        (c.results.latency.environment.get("cpu"), c.results.latency.environment.get("threads"))
        for c in candidates
        if c.results.latency is not None
    }
    if len(machines) > 1:
        texts.append("Speeds were measured on different processors or numbers of threads.")
    if any(c.speedup is not None for c in candidates):
        texts.append(
            "Each speed is against the dense model in the same measurement; the measurements were "
            "made at different times; onnxprune bench DENSE PRUNED... times all in one."
        )
    return texts


def _settings_group(compared: Sequence[tuple[str, RunRecord]]) -> Group:
    """The settings in which the recipes differ."""
    recipes = [dict(fmt.flatten(run.recipe)) for _, run in compared]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [recipe.get(key, _ABSENT) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append([fmt.shorten(key, 80), *(fmt.shorten(value, 80) for value in values)])
    if not rows:
        return Group("settings", "Settings", texts=["The recipes of all runs are equal."])
    table = Table(
        ["Setting", *(fmt.shorten(name, 60) for name, _ in compared)], rows[:_MAX_SETTINGS]
    )
    return Group("settings", "Settings", tables=[("Where the recipes differ", table)])


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    results = run.results
    assert results is not None
    rows = [
        ("model", fmt.shorten(results.output, 120)),
        ("source sha256", results.source_sha256 or "unknown"),
        ("payload sha256", results.payload_sha256 or "unknown"),
    ]
    return rows + fmt.flatten(results.environment)

"""The page that puts several runs side by side."""

from collections.abc import Sequence
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


def build_comparison(run_dirs: Sequence[Path]) -> str:
    """The page for several runs, as HTML text.

    Runs that have not finished are named and left out of the plots.

    Args:
        run_dirs: Run directories, at least two.

    Raises:
        UsageError: One of them is no run directory, is named twice or is damaged; or no two runs
            have finished and measured a metric in common.
    """
    paths = [Path(path) for path in run_dirs]
    _refuse_doubles(paths)
    runs = [read_run(path) for path in paths]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = fmt.distinct([str(path) for path in paths], 60)
    finished = [(name, run) for name, run in zip(names, runs, strict=True) if run.results]
    candidates = _candidates(finished)
    groups = [
        Group("front", "Fronts", present([sparsity_plot(candidates), speed_plot(candidates)])),
        Group("runs", "Runs", tables=[("What each run came to", runs_table(candidates))]),
        _settings_group(finished),
    ]
    groups = [group for group in groups if not group.empty]
    return render_page(
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
        cautions=_cautions(candidates, list(zip(names, runs, strict=True))),
        notes=[],
        facts=[
            (name, facts_table(_facts(run)))
            for name, run in finished[:20]
            if run.results is not None
        ],
        tool_version=next((run.info.tool_version for run in runs if run.info.tool_version), None),
    )


def write_comparison(run_dirs: Sequence[Path], out: Path) -> None:
    """Write the page for several runs to the file `out`.

    Args:
        run_dirs: As in `build_comparison`.
        out: The HTML file.

    Raises:
        UsageError: As `build_comparison`.
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), build_comparison(run_dirs))


def _refuse_doubles(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            raise UsageError("a run is named twice", where=path, remedy="name each run once")


def _candidates(finished: Sequence[tuple[str, RunRecord]]) -> list[Candidate]:
    results = [(name, run.results) for name, run in finished if run.results is not None]
    if len(results) < 2:
        raise UsageError(
            "there is nothing to compare",
            got=f"{len(results)} finished runs",
            expected="at least 2",
            remedy="continue the others with `onnxprune prune --resume`",
        )
    measured = [set(r.validation.pruned) if r.validation else set() for _, r in results]
    common = set.intersection(*measured)
    wanted = [main_metric(r) for _, r in results] + sorted(common)
    metric = next((name for name in wanted if name in common), None)
    if metric is None:
        raise UsageError(
            "the runs have no metric in common",
            got="; ".join(
                f"{name}: {', '.join(sorted(keys)) or 'none'}"
                for (name, _), keys in zip(results, measured, strict=True)
            ),
            remedy="validate them on the same data, with [data] eval",
        )
    return [Candidate(name, result, metric) for name, result in results]


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
    return [
        f"{len(candidates)} finished runs are compared by {respect}. On the front, where no other "
        f"run is as good in all of these and better in one: {', '.join(front)}.",
        "Values are compared as measured, without their uncertainty: runs that lie close together "
        "may change places with another seed.",
    ]


def _cautions(candidates: Sequence[Candidate], runs: Sequence[tuple[str, RunRecord]]) -> list[str]:
    """What keeps the runs from being comparable."""
    texts = []
    unfinished = [f"{name} ({run.info.status})" for name, run in runs if run.results is None]
    if unfinished:
        texts.append(f"Left out, since they have not finished: {', '.join(unfinished)}.")
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


def _settings_group(finished: Sequence[tuple[str, RunRecord]]) -> Group:
    """The settings in which the recipes differ."""
    recipes = [dict(fmt.flatten(run.recipe)) for _, run in finished]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [recipe.get(key, _ABSENT) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append([fmt.shorten(key, 80), *(fmt.shorten(value, 80) for value in values)])
    if not rows:
        return Group("settings", "Settings", texts=["The recipes of all runs are equal."])
    table = Table(
        ["Setting", *(fmt.shorten(name, 60) for name, _ in finished)], rows[:_MAX_SETTINGS]
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

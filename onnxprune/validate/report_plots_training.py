"""Plots of the training: quality, sparsity, loss and learning rate over steps."""

import math
from collections.abc import Sequence

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    LEGEND,
    MARGIN,
    MUTED,
    NARROW,
    NARROW_BELOW_PX,
    PRUNED,
    SPARSITY,
    Figure,
    Plot,
    Table,
    legend_line,
    level_line,
    line_trace,
    panel_title,
    plain_text,
)
from onnxprune.validate.run_record import EvalPoint, RunRecord, TrainPoint

_MAX_POINTS = 1500
_MAX_ROWS = 200
_SAME_SPARSITY = 1e-9


def quality_plot(run: RunRecord, metric: str | None) -> Plot | None:
    """Quality and sparsity over training steps, in two aligned panels.

    Args:
        run: The run.
        metric: Key of the metric that stands for quality; None if nothing was evaluated.
    """
    evals = [point for point in run.evals if metric is not None and metric in point.metrics]
    sparsity = _sparsity_curve(run)
    if not evals and not sparsity:
        return None
    key = metric or ""
    name = fmt.metric_name(key)
    target = run.results.target_sparsity if run.results else run.plan.get("target_sparsity")
    layout = _two_panels(run, name or "quality", "sparsity", split=0.46)
    layout["yaxis"]["tickformat"] = ".1%" if fmt.is_fraction(key) else ""
    if not evals:
        layout |= {"annotations": [panel_title("sparsity", 1.0)]}
        layout["yaxis"]["visible"] = False
        layout["yaxis2"]["domain"] = [0, 1]
    layout["yaxis2"] |= {"tickformat": ".0%", "range": [-0.03, 1.03], "dtick": 0.25}
    data = _quality_traces(evals, key)
    data.append(
        line_trace("sparsity", sparsity, SPARSITY)
        | {"yaxis": "y2", "hovertemplate": "%{y:.2%}<extra></extra>"}
    )
    data[-1]["line"]["shape"] = "hv"
    if run.planned:
        data.append(_planned_trace(run))
    shapes = []
    dense = _dense_reference(run, evals, key) if evals else None
    if dense is not None:
        shapes.append(level_line("y", dense, DENSE))
        data.append(legend_line(f"dense model ({fmt.metric_value(key, dense)})", DENSE))
    if isinstance(target, int | float):
        shapes.append(level_line("y2", float(target), MUTED))
        data.append(legend_line(f"asked sparsity ({fmt.percent(target)})", MUTED))
    layout["shapes"] = shapes
    words = _quality_words(evals, key)
    if sparsity:
        words += f" Sparsity rises to {fmt.percent(sparsity[-1][1])}. {_schedule_words(run)}"
    return Plot(
        key="quality",
        title=f"{fmt.capital(name)} and sparsity" if evals else "Sparsity over training",
        caption=f"Measured during training, on the evaluation data. {words}" if evals else words,
        alternative=f"Line chart over training steps. {words}",
        figure={
            "data": data,
            "layout": layout,
            "narrow": NARROW | {"margin": MARGIN | {"b": 120}},
            "narrow_below_px": NARROW_BELOW_PX,
        },
        height_px=470 if evals else 300,
        table=_quality_table(evals, key),
    )


def loss_plot(run: RunRecord) -> Plot | None:
    """Training loss (raw and smoothed) and learning rate, in two aligned panels."""
    losses = [(p.step, p.loss) for p in run.train if p.loss is not None and math.isfinite(p.loss)]
    if not losses:
        return None
    averages = _smoothed([loss for _, loss in losses])
    smooth = thin([(step, mean) for (step, _), mean in zip(losses, averages, strict=True)])
    rates = thin([(p.step, p.lr) for p in run.train if p.lr is not None])
    raw_trace = line_trace("each step", thin(losses), PRUNED)
    raw_trace["line"]["width"] = 1
    data = [
        raw_trace | {"opacity": 0.4, "hoverinfo": "skip", "showlegend": True},
        line_trace("smoothed", smooth, PRUNED)
        | {"showlegend": True, "hovertemplate": "loss %{y:.4g}<extra></extra>"},
        line_trace("learning rate", rates, MUTED)
        | {"yaxis": "y2", "hovertemplate": "learning rate %{y:.3g}<extra></extra>"},
    ]
    layout = _two_panels(run, "training loss", "learning rate", split=0.36)
    layout["yaxis"]["rangemode"] = "tozero"
    layout["yaxis2"] |= {"rangemode": "tozero", "nticks": 4, "exponentformat": "power"}
    words = (
        f"The smoothed loss goes from {fmt.number(smooth[0][1])} to {fmt.number(smooth[-1][1])} "
        f"over {fmt.count(len(run.train))} recorded steps."
    )
    return Plot(
        key="loss",
        title="Loss and learning rate",
        caption=words,
        alternative=f"Line chart over training steps. {words}",
        figure={"data": data, "layout": layout, "narrow": NARROW},
        height_px=380,
        table=_loss_table(run.train),
    )


def _sparsity_curve(run: RunRecord) -> list[tuple[int, float]]:
    """Sparsity by step, from zero training to the last recorded step."""
    points = [(p.step, p.sparsity) for p in run.events]
    if not points:
        points = [(p.step, p.sparsity) for p in run.train if p.sparsity is not None]
    if not points:
        points = [(p.step, p.sparsity) for p in run.evals if p.sparsity is not None]
    if not points:
        return []
    if points[0][0] > 0:
        points = [(0, _sparsity_before(run)), *points]
    if points[-1][0] < run.last_step:
        points = [*points, (run.last_step, points[-1][1])]
    return thin(points)


def _planned_trace(run: RunRecord) -> Figure:
    """The planned sparsity: broad and pale, so that it shows beside a line that follows it."""
    points = [(event.step, event.sparsity) for event in run.planned]
    if points[0][0] > 0:
        points = [(0, _sparsity_before(run)), *points]
    points.append((max(run.total_steps or 0, run.last_step, points[-1][0]), points[-1][1]))
    trace = line_trace("planned sparsity", thin(points), SPARSITY)
    trace["line"] |= {"width": 7, "shape": "hv"}
    hover = {"hovertemplate": "planned %{y:.2%}<extra></extra>"}
    return trace | {"yaxis": "y2", "opacity": 0.3, "showlegend": True} | hover


def _schedule_words(run: RunRecord) -> str:
    """How the schedule that was followed differs from the planned one."""
    if not (run.planned and run.events):
        return ""
    known = [event for event in run.planned if event.step <= run.last_step]
    gaps = [(_followed(run, event.step) - event.sparsity, event.step) for event in known]
    if not gaps:
        return ""
    (behind, behind_at), (ahead, ahead_at) = min(gaps), max(gaps)
    texts = [
        f"{100 * gap:.2f} points {word} the planned schedule (step {fmt.count(step)})"
        for gap, step, word in ((ahead, ahead_at, "ahead of"), (-behind, behind_at, "behind"))
        if gap > _SAME_SPARSITY
    ]
    if not texts:
        return "The planned schedule was followed exactly."
    return f"At most it was {' and '.join(texts)}."


def _followed(run: RunRecord, step: int) -> float:
    """Sparsity after the events up to a step."""
    done = [event.sparsity for event in run.events if event.step <= step]
    return done[-1] if done else _sparsity_before(run)


def _sparsity_before(run: RunRecord) -> float:
    start = run.evals[0].sparsity if run.evals and run.evals[0].step == 0 else None
    return start or 0.0


def _quality_traces(evals: Sequence[EvalPoint], metric: str) -> list[Figure]:
    if not evals:
        return []
    shown = ".2%" if fmt.is_fraction(metric) else ".4g"
    points = [(point.step, point.metrics[metric]) for point in evals]
    trace = line_trace(plain_text(fmt.metric_name(metric), 60), points, PRUNED)
    marked = {"mode": "lines+markers", "marker": {"color": PRUNED, "size": 7}, "cliponaxis": False}
    return [trace | marked | {"hovertemplate": f"%{{y:{shown}}}<extra></extra>"}]


def _quality_words(evals: Sequence[EvalPoint], metric: str) -> str:
    if not evals:
        return ""
    first, last = evals[0], evals[-1]
    return (
        f"{fmt.capital(fmt.metric_name(metric))} goes from "
        f"{fmt.metric_value(metric, first.metrics[metric])} at step {first.step} to "
        f"{fmt.metric_value(metric, last.metrics[metric])} at step {last.step}."
    )


def _quality_table(evals: Sequence[EvalPoint], metric: str) -> Table | None:
    rows = [
        [
            fmt.count(point.step),
            fmt.metric_value(metric, point.metrics[metric]),
            fmt.percent(point.sparsity),
        ]
        for point in evals[:: max(1, math.ceil(len(evals) / _MAX_ROWS))]
    ]
    return Table(["Step", fmt.metric_name(metric), "Sparsity"], rows) if rows else None


def _loss_table(train: Sequence[TrainPoint]) -> Table:
    sampled = list(train[:: max(1, math.ceil(len(train) / 20))])
    if sampled[-1] is not train[-1]:
        sampled.append(train[-1])
    return Table(
        ["Step", "Loss", "Learning rate", "Sparsity"],
        [
            [fmt.count(p.step), fmt.number(p.loss), fmt.number(p.lr), fmt.percent(p.sparsity)]
            for p in sampled
        ],
    )


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `_MAX_POINTS` of `points`: both ends, and the extremes of each stretch."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    stretch = math.ceil(2 * len(points) / _MAX_POINTS)
    keep = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        window = range(start, min(start + stretch, len(points)))
        keep.add(min(window, key=lambda i: points[i][1]))
        keep.add(max(window, key=lambda i: points[i][1]))
    return [points[index] for index in sorted(keep)]


def _dense_reference(run: RunRecord, evals: Sequence[EvalPoint], metric: str) -> float | None:
    if evals[0].step == 0 and not evals[0].sparsity:
        return evals[0].metrics[metric]
    if run.results is not None and run.results.validation is not None:
        return run.results.validation.dense.get(metric)
    return None


def _smoothed(values: Sequence[float]) -> list[float]:
    """Bias-corrected exponential moving average over about a thirtieth of the run."""
    weight = max(0.0, 1 - 30 / max(30, len(values)))
    weight = min(0.98, max(weight, 0.8 if len(values) > 20 else 0.0))
    total, norm, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _two_panels(run: RunRecord, upper: str, lower: str, split: float) -> Figure:
    """A layout with two panels over one axis of training steps."""
    gap = 0.12
    steps = max(1, run.total_steps or 0, run.last_step)
    margin = 0.015 * steps
    return {
        "margin": MARGIN,
        "showlegend": True,
        "legend": LEGEND,
        "hovermode": "x",
        "xaxis": {
            "title": {"text": "training step"},
            "anchor": "y2",
            "zeroline": False,
            "range": [-margin, steps + margin],
        },
        "yaxis": {"domain": [split + gap / 2, 1], "automargin": True, "zeroline": False},
        "yaxis2": {"domain": [0, split - gap / 2], "automargin": True, "zeroline": False},
        "annotations": [panel_title(upper, 1.0), panel_title(lower, split - gap / 2)],
    }

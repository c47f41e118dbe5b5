"""Plots and words of the report about shed weights, pruning events and what training cost."""

from collections.abc import Sequence
from itertools import pairwise

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    LEGEND,
    MARGIN,
    MUTED,
    NARROW,
    PRUNED,
    SPARSITY,
    Figure,
    Plot,
    Table,
    line_trace,
    upright_line,
)
from onnxprune.validate.report_plots_training import thin
from onnxprune.validate.run_record import EventPoint, Results, RunRecord, ShedPoint

_MAX_ROWS = 200


def shed_plot(run: RunRecord) -> Plot | None:
    """Shed weights over steps, against the RMS at the last event and against that of now."""
    if not run.shed:
        return None
    last = run.shed[-1]
    hover = {"showlegend": True, "hovertemplate": "%{y:,} weights<extra></extra>"}
    data = [
        line_trace("against the last event", thin([(p.step, p.shed) for p in run.shed]), PRUNED),
        line_trace("against now", thin([(p.step, p.shed_relative) for p in run.shed]), SPARSITY),
    ]
    layout = {
        "margin": MARGIN,
        "legend": LEGEND,
        "xaxis": {"title": {"text": "step"}, "zeroline": False},
        "yaxis": {"automargin": True, "rangemode": "tozero", "title": {"text": "shed weights"}},
        "shapes": [upright_line(event.step, MUTED) | {"opacity": 0.4} for event in run.events],
        "hovermode": "x unified",
    }
    words = (
        f"At step {fmt.count(last.step)}, {fmt.count(last.shed)} of {fmt.count(last.kept)} kept "
        f"weights had fallen to nothing since the pruning event before "
        f"and {fmt.count(last.shed_relative)} had fallen behind the rest of their own tensor. "
        "Dotted lines are pruning events, where counting starts again. No control arm ran here: "
        "part of this is weight decay alone."
    )
    return Plot(
        key="shed",
        title="Shed weights",
        caption=words,
        alternative=f"Line chart over training steps. {words}",
        figure={"data": [trace | hover for trace in data], "layout": layout, "narrow": NARROW},
        height_px=320,
        table=_shed_table(run.shed),
    )


def event_plot(run: RunRecord) -> Plot | None:
    """What each pruning event took: dead weights, shed weights, and by score up to the schedule."""
    events = [event for event in run.events if event.pruned]
    if not events:
        return None
    ranked = _ranked_by(run)
    totals = [sum(values) for values in (_closed(events), _harvested(events), _ranked(events))]
    layout = {
        "barmode": "stack",
        "margin": MARGIN,
        "showlegend": True,
        "legend": LEGEND | {"traceorder": "normal"},
        "xaxis": {"title": {"text": "step"}, "zeroline": False, "range": _step_range(run)},
        "yaxis": {"automargin": True, "rangemode": "tozero", "title": {"text": "weights"}},
        "hovermode": "x unified",
    }
    words = (
        f"{fmt.count(len(events))} pruning events took {fmt.count(sum(totals))} weights: "
        f"{fmt.count(totals[0])} by structural closure (on no path from an input to an output), "
        f"{fmt.count(totals[1])} as harvest (shed since the event before), and "
        f"{fmt.count(totals[2])} {ranked}."
    )
    if run.waits:
        words += (
            f" At {fmt.count(len(run.waits))} events weights that were due {ranked} waited, since "
            "more and more were shed."
        )
    return Plot(
        key="events",
        title="What each pruning event took",
        caption=words,
        alternative=f"Stacked bar chart over training steps. {words}",
        figure={
            "data": _event_bars(run, events, ranked),
            "layout": layout,
            "narrow": NARROW | {"margin": MARGIN | {"b": 132}},
        },
        height_px=320,
        table=_event_table(run, events, ranked),
    )


def _ranked_by(run: RunRecord) -> str:
    """What decided about the weights that were neither dead nor shed."""
    sparsity = run.recipe.get("sparsity")
    method = sparsity.get("method") if isinstance(sparsity, dict) else None
    if run.results is not None:
        method = run.results.method
    return "at random" if method == "random" else "by magnitude"


def _closed(events: Sequence[EventPoint]) -> list[int]:
    return [event.closed for event in events]


def _harvested(events: Sequence[EventPoint]) -> list[int]:
    return [event.harvested for event in events]


def _ranked(events: Sequence[EventPoint]) -> list[int]:
    return [event.ranked or 0 for event in events]


def _event_bars(run: RunRecord, events: Sequence[EventPoint], ranked: str) -> list[Figure]:
    """Bars at the steps of the events, as broad as the closest two allow, but never a hair."""
    steps = [event.step for event in events]
    last = max(1, run.total_steps or 0, run.last_step)
    closest = min((b - a for a, b in pairwise(steps)), default=last)
    width = max(0.7 * min(closest, last / 12), last / 300)
    parts = [
        ("closure", _closed(events), DENSE),
        ("harvest", _harvested(events), SPARSITY),
        (ranked, _ranked(events), PRUNED),
    ]
    return [
        {
            "type": "bar",
            "name": name,
            "x": steps,
            "y": values,
            "width": width,
            "marker": {"color": color, "line": {"width": 0}},
            "hovertemplate": "%{y:,} weights",
        }
        for name, values, color in parts
    ]


def _step_range(run: RunRecord) -> list[float]:
    last = max(1, run.total_steps or 0, run.last_step)
    return [-0.04 * last, 1.04 * last]


def _event_table(run: RunRecord, events: Sequence[EventPoint], ranked: str) -> Table:
    """Every event with what the plan asked for then."""
    planned = {event.step: event.sparsity for event in run.planned}
    rows = [
        [
            fmt.count(event.step),
            fmt.percent(planned.get(event.step, event.target_sparsity)),
            fmt.percent(event.sparsity),
            fmt.count(event.pruned),
            fmt.count(event.closed),
            fmt.count(event.harvested),
            fmt.count(event.ranked),
            fmt.count(event.waited),
        ]
        for event in events[:_MAX_ROWS]
    ]
    headers = ["Step", "Planned", "Followed", "Taken", "Closure", "Harvest", fmt.capital(ranked)]
    return Table([*headers, "Events waited before"], rows)


def budget_words(results: Results) -> list[str]:
    """What training cost, and how the kept weights differ from pruning once."""
    texts = []
    budget, overlap = results.budget, results.overlap_with_one_shot
    if budget is not None:
        text = (
            f"Budget: {budget.epochs:.4g} epochs, {fmt.count(budget.steps)} steps, mean density "
            f"{fmt.percent(budget.mean_density)}"
        )
        if budget.mean_density_planned is not None:
            text += f" ({fmt.percent(budget.mean_density_planned)} by the schedule alone)"
        text += "."
        if budget.training_flops is not None and budget.training_flops_dense is not None:
            text += (
                f" Training took {budget.training_flops_dense:.3g} FLOPs as dense hardware counts "
                f"them; at actual density they would be {budget.training_flops:.3g}, in theory."
            )
        texts.append(text)
    if overlap is not None:
        texts.append(
            f"Kept weights and those that pruning the dense model once by magnitude would keep "
            f"overlap by {fmt.percent(overlap.jaccard)} (Jaccard index; "
            f"{fmt.percent(overlap.expected)} by chance)."
        )
    return texts


def _shed_table(points: Sequence[ShedPoint]) -> Table:
    stride = -(-len(points) // _MAX_ROWS)
    numbers = [(p.step, p.kept, p.shed, p.shed_relative) for p in points[::stride]]
    return Table(
        ["Step", "Kept", "Shed", "Shed, against now"],
        [[fmt.count(number) for number in row] for row in numbers],
    )

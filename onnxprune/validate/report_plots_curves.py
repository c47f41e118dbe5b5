"""Plots of a probe over steps and over tensors: when and where weights are shed."""

import statistics
from collections.abc import Sequence

from onnxprune.validate import report_format as fmt
from onnxprune.validate.probe_record import ProbeRecord, ShedCount, TensorShed, chosen
from onnxprune.validate.report_plots import (
    BELOW,
    DENSE,
    MARGIN,
    MUTED,
    PRUNED,
    Figure,
    Plot,
    Table,
    legend_line,
    line_trace,
    names_axis,
    plain_text,
    rounded,
    tick_names,
    upright_line,
)

_MAX_BARS = 20
_MAX_ROWS = 300
_CONTROL_NAME = "control, same positions"


def curve_plots(probe: ProbeRecord) -> list[Plot]:
    """Shed weights over steps, treated against control: one plot a score, on one scale."""
    most = max(
        point.shed
        for score in probe.gains
        for curve in (*probe.treated_curves(score), *probe.control_curves(score))
        for point in curve
    )
    return [
        _curve_plot(probe, score, f"curve-{number}", max(1, most))
        for number, score in enumerate(probe.gains)
    ]


def tensor_plots(probe: ProbeRecord) -> list[Plot]:
    """Which tensors shed, one plot a score; none for a score where nothing was shed."""
    plots = []
    for number, score in enumerate(probe.gains):
        shedding = [row for row in probe.tensors[score] if row.shed or row.control]
        if shedding:
            plots.append(_tensor_plot(probe, score, f"where-{number}", shedding))
    return plots


def _curve_plot(probe: ProbeRecord, score: str, key: str, most: int) -> Plot:
    treated, control = probe.treated_curves(score), probe.control_curves(score)
    data = [
        *_curve_traces(f"pruned {chosen(score)}", treated, PRUNED),
        *_curve_traces(_CONTROL_NAME, control, DENSE),
    ]
    layout = {
        "margin": MARGIN | {"t": 12, "b": 116},
        "showlegend": True,
        "legend": BELOW | {"orientation": "h", "xref": "container"},
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "step after the pruning event"},
            "zeroline": False,
            "range": [0, 1.02 * probe.steps],
        },
        "yaxis": {
            "automargin": True,
            "title": {"text": "shed weights"},
            "range": [-0.03 * most, 1.06 * most],
            "nticks": 6,
        },
        "shapes": [],
    }
    horizon = probe.decay_horizon_steps
    if horizon is not None and horizon <= probe.steps:
        layout["shapes"] = [upright_line(horizon, MUTED)]
        data.append(legend_line("decay horizon", MUTED))
    pruned = statistics.fmean(arm.pruned for arm in probe.over_seeds(score))
    words = (
        f"At the end {fmt.amount(_mean_at(treated, -1))} weights are shed, and "
        f"{fmt.amount(_mean_at(control, -1))} in the control arm at the same positions, after "
        f"{fmt.amount(pruned)} were pruned (means over the seeds)."
    )
    band = " Bands reach from the lowest seed to the highest." if len(probe.seeds) > 1 else ""
    return Plot(
        key=key,
        title=f"Shed weights, pruned {chosen(score)}",
        caption=words + band,
        alternative=f"Line chart over training steps. {words}",
        figure={"data": data, "layout": layout, "narrow": {}},
        height_px=380,
        table=_curve_table(treated, control),
    )


def _curve_traces(name: str, curves: Sequence[Sequence[ShedCount]], color: str) -> list[Figure]:
    """A line for the mean over the seeds, on a band from the lowest to the highest."""
    steps = [point.step for point in curves[0]]
    columns = [[point.shed for point in points] for points in zip(*curves, strict=True)]
    means = [(step, statistics.fmean(column)) for step, column in zip(steps, columns, strict=True)]
    hover = {"showlegend": True, "hovertemplate": "%{y:,.1f}"}
    line = line_trace(name, means, color) | hover
    if len(curves) < 2:
        return [line]
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": [*steps, *reversed(steps)],
        "y": [*map(max, columns), *reversed([*map(min, columns)])],
        "fill": "toself",
        "fillcolor": color,
        "line": {"color": color, "width": 0},
        "opacity": 0.22,
        "showlegend": False,
        "hoverinfo": "skip",
    }
    return [band, line]


def _mean_at(curves: Sequence[Sequence[ShedCount]], index: int) -> float:
    return statistics.fmean(curve[index].shed for curve in curves)


def _curve_table(
    treated: Sequence[Sequence[ShedCount]], control: Sequence[Sequence[ShedCount]]
) -> Table:
    rows = []
    for index, point in enumerate(treated[0][:_MAX_ROWS]):
        shed, other = _mean_at(treated, index), _mean_at(control, index)
        rows.append([fmt.count(point.step), *map(fmt.amount, (shed, other, shed - other))])
    return Table(["Step", "Treated", "Control, same positions", "Net"], rows)


def _tensor_plot(probe: ProbeRecord, score: str, key: str, shedding: Sequence[TensorShed]) -> Plot:
    shown, first = shedding[:_MAX_BARS], max(shedding, key=lambda row: row.net_shed)
    counts = f"{fmt.count(len(shedding))} of {fmt.count(len(probe.tensors[score]))}"
    words = f"{counts} tensors shed weights in the treated or in the control arm."
    if first.net_shed > 0:
        words += (
            f" The most net: {fmt.shorten(first.name, 44)}, {fmt.signed(first.net_shed, 1)} of its "
            f"{fmt.count(first.size)} weights."
        )
    else:
        words += " None sheds more than in the control arm."
    caption = words + (f" The first {len(shown)} are drawn." if len(shown) < len(shedding) else "")
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "margin": MARGIN | {"r": 20, "t": 12, "b": 92},
        "showlegend": True,
        "legend": BELOW | {"orientation": "h", "xref": "container"},
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": "shed weights, mean over the seeds"},
            "rangemode": "tozero",
            "fixedrange": True,
        },
        "yaxis": names_axis([row.name for row in shown]),
    }
    narrow = {"yaxis": {"ticktext": tick_names([row.name for row in shown], 22)}}
    return Plot(
        key=key,
        title=f"Tensors that shed, pruned {chosen(score)}",
        caption=caption,
        alternative=f"Horizontal bar chart. {words}",
        figure={"data": _tensor_bars(shown, score), "layout": layout, "narrow": narrow},
        height_px=134 + 26 * len(shown),
        table=_tensor_table(probe, score),
    )


def _tensor_bars(rows: Sequence[TensorShed], score: str) -> list[Figure]:
    details = [
        [plain_text(row.name, 80), plain_text(row.op_type, 20), fmt.count(row.size)] for row in rows
    ]
    hover = "%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]} weights<br>%{x:,.1f} shed"
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [rounded(value) for value in values],
            "y": list(range(len(rows))),
            "customdata": details,
            "marker": {"color": color, "line": {"width": 0}},
            "hovertemplate": f"{hover}, {name}<extra></extra>",
        }
        for name, values, color in (
            (f"pruned {chosen(score)}", [row.shed for row in rows], PRUNED),
            (_CONTROL_NAME, [row.control for row in rows], DENSE),
        )
    ]


def _tensor_table(probe: ProbeRecord, score: str) -> Table:
    """Shed weights of each tensor, and how its kept set differs from that of one-shot pruning."""
    overlaps = [arm.overlap_with_one_shot.by_tensor for arm in probe.over_seeds(score)]
    rows = []
    for row in probe.tensors[score][:_MAX_ROWS]:
        known = [overlap[row.name] for overlap in overlaps if row.name in overlap]
        rows.append(
            [
                fmt.shorten(row.name, 80),
                fmt.shorten(row.op_type, 40),
                fmt.count(row.size),
                fmt.amount(row.shed),
                fmt.amount(row.control),
                fmt.signed(row.net_shed, 1),
                fmt.percent(statistics.fmean(known) if known else None),
            ]
        )
    headers = ["Tensor", "Operator", "Weights", "Shed", "Control", "Net", "Kept as one-shot would"]
    return Table(headers, rows)

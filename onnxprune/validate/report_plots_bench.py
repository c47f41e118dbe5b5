"""Plots and tables of a bench of any number of models."""

from collections.abc import Sequence

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    MUTED,
    PRUNED,
    SPARSITY,
    Plot,
    Table,
    dot_layout,
    dot_narrow,
    rounded,
    upright_line,
)
from onnxprune.validate.result_record import BenchedModel

_ROW_PX = 46
_MAX_OPERATORS = 30
_QUANTILES = (("median", "circle", PRUNED), ("p90", "diamond", SPARSITY), ("p99", "x", DENSE))


def speedup_plot(names: Sequence[str], models: Sequence[BenchedModel]) -> Plot | None:
    """The speedup of each model against the first, with its interval."""
    rows = [
        (name, model.speedup)
        for name, model in zip(names[1:], models[1:], strict=True)
        if model.speedup is not None
    ]
    if not rows:
        return None
    words = "; ".join(
        f"{fmt.shorten(name, 60)} {fmt.ratio(s.ratio, 3)} ({fmt.interval(s.low, s.high, 3)})"
        for name, s in rows[:20]
    )
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "speedup, 95 % interval",
        "x": [rounded(s.ratio) for _, s in rows],
        "y": list(range(len(rows))),
        "marker": {"color": PRUNED, "symbol": "diamond", "size": 11},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(s.high - s.ratio) for _, s in rows],
            "arrayminus": [rounded(s.ratio - s.low) for _, s in rows],
            "color": PRUNED,
            "thickness": 2.5,
            "width": 9,
        },
        "hovertemplate": "%{x:.3f}<extra></extra>",
    }
    layout = dot_layout([name for name, _ in rows], "times as fast as the first model")
    layout["shapes"] = [upright_line(1, MUTED)]
    return Plot(
        key="speedup",
        title="Speed against the first model",
        caption=f"{words}. The dotted line is equal speed.",
        alternative=f"Dot plot of speedups: {words}.",
        figure={"data": [trace], "layout": layout, "narrow": dot_narrow([n for n, _ in rows])},
        height_px=140 + _ROW_PX * len(rows),
    )


def quantile_plot(names: Sequence[str], models: Sequence[BenchedModel]) -> Plot:
    """Median, 90th and 99th percentile of each model's latency."""
    data = []
    for key, symbol, color in _QUANTILES:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": key,
                "x": [rounded(model.latency_ms.get(key)) for model in models],
                "y": list(range(len(models))),
                "marker": {"color": color, "symbol": symbol, "size": 10},
                "hovertemplate": f"{key} %{{x:.4g}} ms<extra></extra>",
            }
        )
    words = "; ".join(
        f"{fmt.shorten(name, 60)} {fmt.milliseconds(model.latency_ms.get('median'))}"
        for name, model in zip(names[:20], models, strict=False)
    )
    layout = dot_layout(names, "milliseconds per call")
    layout["xaxis"]["rangemode"] = "tozero"
    return Plot(
        key="quantiles",
        title="Latency",
        caption=f"Medians: {words}.",
        alternative=f"Dot plot of latencies. Medians: {words}.",
        figure={"data": data, "layout": layout, "narrow": dot_narrow(names)},
        height_px=140 + _ROW_PX * len(models),
    )


def models_table(names: Sequence[str], models: Sequence[BenchedModel]) -> Table:
    """All numbers of each model."""
    rows = []
    for index, (name, model) in enumerate(zip(names, models, strict=True)):
        speed = "baseline"
        if index:
            speed = "not measured"
            if model.speedup is not None:
                interval = fmt.interval(model.speedup.low, model.speedup.high, 3)
                speed = f"{fmt.ratio(model.speedup.ratio, 3)} ({interval})"
        latency = [fmt.milliseconds(model.latency_ms.get(key)) for key, _, _ in _QUANTILES]
        sizes = [fmt.size(model.peak_memory_bytes), fmt.size(model.size_bytes)]
        rows.append(
            [
                fmt.shorten(name, 80),
                speed,
                *latency,
                fmt.number(model.throughput_per_s),
                fmt.milliseconds(model.load_ms),
                *sizes,
            ]
        )
    headers = ["Model", "Speed (95 % interval)", "Median", "p90", "p99", "Samples/s"]
    return Table([*headers, "Load", "Memory", "File"], rows, narrow=True)


def operator_tables(
    names: Sequence[str], models: Sequence[BenchedModel]
) -> list[tuple[str, Table]]:
    """Where the time of each profiled model goes, slowest operator first."""
    tables = []
    for name, model in zip(names, models, strict=True):
        rows = [
            [
                fmt.shorten(row.op_type, 80),
                fmt.count(row.nodes),
                fmt.milliseconds(row.ms),
                fmt.percent(row.share, 1),
            ]
            for row in (model.operators or [])[:_MAX_OPERATORS]
        ]
        if rows:
            headers = ["Operator", "Nodes", "In a call", "Share"]
            tables.append((f"Operators of {fmt.shorten(name, 80)}", Table(headers, rows)))
    return tables

"""Plots of the paired bench: single runs, and the speed ratio round by round."""

from collections.abc import Sequence

import numpy as np

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    MUTED,
    NARROW,
    PRUNED,
    SPARSITY,
    Figure,
    Plot,
    Table,
    count_bars,
    count_layout,
    finite,
    legend_line,
    upright_line,
)
from onnxprune.validate.report_plots_distribution import quantile_table
from onnxprune.validate.run_record import ModelLatency, Results, Speedup

_MAX_SAMPLES = 4000
_BINS = 48


def latency_plot(results: Results) -> Plot | None:
    """The distribution of measured latencies, dense and pruned."""
    if results.latency is None:
        return None
    models = [model for model in results.latency.models if len(finite(model.samples)) > 1][:2]
    if not models:
        return None
    samples = [finite(model.samples)[:_MAX_SAMPLES] for model in models]
    edges, beyond = _shared_edges(samples)
    data, shapes, medians = [], [], []
    for name, color, values in zip(("dense", "pruned"), (DENSE, PRUNED), samples, strict=False):
        counts, _ = np.histogram(values, edges)
        median = float(np.median(values))
        data.append(count_bars(name, counts, edges, color, f"{name}: %{{y}} near %{{x:.4g}} ms"))
        shapes.append(upright_line(median, color, dash="dash"))
        medians.append(f"{name} {fmt.milliseconds(median)}")
    words = caption = f"Medians (dashed): {', '.join(medians)}."
    if beyond:
        caption += f" {beyond} slow outliers lie beyond the right edge; they count in every figure."
    layout = count_layout("runs in each bin", "milliseconds per run") | {"shapes": shapes}
    return Plot(
        key="latency",
        title="Latency of single runs",
        caption=caption,
        alternative=f"Histogram of latencies. {words}",
        figure={"data": data, "layout": layout, "narrow": NARROW},
        height_px=320,
        table=_latency_table(results.latency.models),
    )


def ratio_plot(results: Results) -> Plot | None:
    """The dense over pruned latency of each round, with the interval of their median."""
    if results.latency is None or len(results.latency.models) < 2:
        return None
    dense, pruned = results.latency.models[:2]
    speedup = pruned.speedup
    if speedup is None or len(dense.samples) != len(pruned.samples):
        return None
    pairs = zip(dense.samples, pruned.samples, strict=True)
    ratios = finite([d / p for d, p in pairs if d > 0 and p > 0])[:_MAX_SAMPLES]
    if len(ratios) < 2:
        return None
    low, high = (float(edge) for edge in np.percentile(ratios, [1, 99]))
    edges = np.linspace(min(low, speedup.low, 0.98), max(high, speedup.high, 1.02), _BINS + 1)
    counts, _ = np.histogram(ratios, edges)
    beyond = len(ratios) - int(counts.sum())
    words = (
        f"The median round gives {fmt.ratio(speedup.ratio, 3)}, with a 95 % interval from "
        f"{speedup.low:.3f} to {speedup.high:.3f}; 1.00 means the same speed."
    )
    bars = count_bars("rounds", counts, edges, PRUNED, "%{y} rounds near %{x:.3f}")
    layout = count_layout("rounds in each bin", "dense ÷ pruned latency (right is faster)")
    layout["xaxis"]["range"] = [float(edges[0]), float(edges[-1])]
    layout["shapes"] = [_band(speedup), upright_line(1, MUTED)]
    return Plot(
        key="ratio",
        title="Speed against dense, round by round",
        caption=words + (f" {beyond} rounds lie beyond the edges." if beyond else ""),
        alternative=f"Histogram of the speed ratio of paired runs. {words}",
        figure={
            "data": [
                bars | {"showlegend": False},
                legend_line("same speed", MUTED),
                legend_line("95 % interval of the median", SPARSITY, width=8, dash="solid"),
            ],
            "layout": layout,
            "narrow": NARROW,
        },
        height_px=320,
        table=quantile_table("Model", [("pruned", ratios)], lambda ratio: fmt.ratio(ratio, 3)),
    )


def _band(speedup: Speedup) -> Figure:
    """A shape: the interval of a speedup."""
    across = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    ends = {"x0": speedup.low, "x1": speedup.high}
    return {"type": "rect", **across, **ends, "fillcolor": SPARSITY, "opacity": 0.4} | {
        "line": {"width": 0}
    }


def _shared_edges(samples: Sequence[list[float]]) -> tuple[np.ndarray, int]:
    """Bin edges for all samples up to the slow tail, and how many lie beyond them."""
    everything = np.concatenate([np.asarray(values) for values in samples])
    low = float(everything.min())
    median = float(np.median(everything))
    high = float(np.percentile(everything, 98.5))
    high = min(float(everything.max()), max(high, median + 1e-9))
    if high <= low:
        low, high = low - 0.5e-3 * max(low, 1e-3), high + 0.5e-3 * max(high, 1e-3)
    edges = np.linspace(low, high, _BINS + 1)
    return edges, int((everything > edges[-1]).sum())


def _latency_table(models: Sequence[ModelLatency]) -> Table:
    keys = [key for key in ("median", "p90", "p99", "mean") if key in models[0].latency_ms]
    rows = []
    for model in models:
        speedup = model.speedup
        interval = fmt.ratio(None)
        if speedup is not None:
            interval = f"{fmt.ratio(speedup.ratio, 3)} "
            interval += f"({fmt.interval(speedup.low, speedup.high, 3)})"
        rows.append(
            [
                fmt.shorten(model.path, 80),
                *(fmt.milliseconds(model.latency_ms.get(key)) for key in keys),
                interval,
            ]
        )
    return Table(["Model", *keys, "Speed against dense (95 % interval)"], rows)

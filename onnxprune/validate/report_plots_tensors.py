"""Plots of the tensors: sparsity of each, and weights before and after."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    NARROW,
    PRUNED,
    SPARSITY,
    Figure,
    Plot,
    count_layout,
    legend_line,
    plain_text,
    rounded,
    rounded_all,
    row_bars_layout,
    tick_names,
    upright_line,
)
from onnxprune.validate.run_record import Results, TensorResult

_MAX_BARS = 400
_MAX_HISTOGRAM_COUNTS = 16_000


def tensor_plot(results: Results) -> Plot | None:
    """Sparsity of each prunable tensor before and after, top to bottom in graph order."""
    prunable = [tensor for tensor in results.tensors if tensor.prunable and tensor.size]
    if not prunable:
        return None
    shown = prunable[:_MAX_BARS]
    height_px = 100 + 19 * len(shown)
    scrolls = height_px > 900
    sparsest = max(prunable, key=lambda t: t.sparsity)
    densest = min(prunable, key=lambda t: t.sparsity)
    words = (
        f"{fmt.count(len(prunable))} prunable tensors, from {fmt.percent(densest.sparsity)} "
        f"({fmt.shorten(densest.name, 60)}) to {fmt.percent(sparsest.sparsity)} "
        f"({fmt.shorten(sparsest.name, 60)})."
    )
    caption = f"{words} Top to bottom in the order of the graph; the table below has the numbers."
    if len(prunable) > len(shown):
        caption += f" Only the first {len(shown)} are drawn."
    return Plot(
        key="tensors",
        title="Sparsity of each tensor",
        caption=caption,
        alternative=f"Horizontal bar chart. {words}",
        figure={
            "data": _sparsity_bars(shown, results.sparsity),
            "layout": _sparsity_layout(shown, results.sparsity, scrolls),
            "narrow": {
                "yaxis": {"ticktext": tick_names([t.name for t in shown], 16)},
                "legend": {"orientation": "v"},
                "margin": {"t": 120 if scrolls else 84},
            },
        },
        height_px=height_px,
        scrolls=scrolls,
    )


def _sparsity_bars(tensors: Sequence[TensorResult], overall: float) -> list[Figure]:
    positions = list(range(len(tensors)))
    details = [
        [
            plain_text(tensor.name, 80),
            plain_text(tensor.op_type or "", 20),
            fmt.count(tensor.size),
            fmt.count(tensor.nonzeros),
        ]
        for tensor in tensors
    ]
    hover = "%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]} weights, "
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": "after pruning",
            "x": [rounded(tensor.sparsity) for tensor in tensors],
            "y": positions,
            "customdata": details,
            "marker": {"color": PRUNED},
            "width": 0.66,
            "hovertemplate": hover + "%{customdata[3]} kept<br>%{x:.2%} sparse<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "before",
            "x": [rounded(tensor.sparsity_before) for tensor in tensors],
            "y": positions,
            "customdata": details,
            "marker": {"color": DENSE, "symbol": "diamond", "size": 7},
            "cliponaxis": False,
            "hovertemplate": hover + "%{x:.2%} sparse before<extra></extra>",
        },
        legend_line(f"all prunable weights ({fmt.percent(overall)})", SPARSITY),
    ]


def _sparsity_layout(tensors: Sequence[TensorResult], overall: float, scrolls: bool) -> Figure:
    layout = row_bars_layout([tensor.name for tensor in tensors], scrolls)
    layout["xaxis"] |= {"range": [0, 1], "tickformat": ".0%", "dtick": 0.25}
    return layout | {"shapes": [upright_line(rounded(overall), SPARSITY)]}


def histogram_plot(results: Results) -> Plot | None:
    """Weights before and after, one tensor at a time; zeros are counted in words, not drawn."""
    with_histogram = [t for t in results.tensors if t.histogram is not None and t.size]
    if not with_histogram:
        return None
    kept = _within_budget(with_histogram)
    caption = "Zeros are left out of the bars and counted above them."
    if len(kept) < len(with_histogram):
        caption += f" The {len(kept)} largest of {len(with_histogram)} tensors can be chosen."
    names = [("before", DENSE, 0.55), ("after, without zeros", PRUNED, 0.85)]
    data: list[Figure] = [
        {
            "type": "bar",
            "name": name,
            "marker": {"color": color, "line": {"width": 0}},
            "opacity": opacity,
            "hovertemplate": f"{name}: %{{y:,}} near %{{x:.4g}}<extra></extra>",
        }
        for name, color, opacity in names
    ]
    return Plot(
        key="histogram",
        title="Weights before and after",
        caption=caption,
        alternative="Histogram of one tensor's weights before and after pruning.",
        figure={
            "data": data,
            "layout": count_layout("weights in each bin", "weight"),
            "narrow": NARROW,
        },
        height_px=360,
        choices=[_histogram_choice(tensor) for tensor in kept],
        chosen=max(range(len(kept)), key=lambda index: kept[index].size),
    )


def _within_budget(tensors: Sequence[TensorResult]) -> list[TensorResult]:
    """The largest tensors whose histograms fit into the page, in graph order."""
    kept: set[int] = set()
    counts = 0
    for index in sorted(range(len(tensors)), key=lambda i: (-tensors[i].size, i)):
        histogram = tensors[index].histogram
        counts += 0 if histogram is None else 2 * len(histogram.before)
        if kept and counts > _MAX_HISTOGRAM_COUNTS:
            break
        kept.add(index)
    return [tensors[index] for index in sorted(kept)]


def _histogram_choice(tensor: TensorResult) -> dict[str, Any]:
    assert tensor.histogram is not None
    edges = np.asarray(tensor.histogram.edges, dtype=np.float64)
    centers = rounded_all((edges[:-1] + edges[1:]) / 2)
    widths = np.diff(edges)
    width = rounded(float(widths[0]))
    even = bool(np.allclose(widths, widths[0], rtol=1e-3))
    before = _without_zeros(tensor.histogram.before, edges, tensor.size, tensor.nonzeros_before)
    after = _without_zeros(tensor.histogram.after, edges, tensor.size, tensor.nonzeros)
    zeros_before, zeros = tensor.size - tensor.nonzeros_before, tensor.size - tensor.nonzeros
    return {
        "label": fmt.shorten(tensor.name, 80),
        "caption": (
            f"{fmt.count(tensor.size)} weights; zeros before: {fmt.count(zeros_before)}, after: "
            f"{fmt.count(zeros)} ({fmt.percent(tensor.sparsity)})."
        ),
        "data": [
            {"x": centers, "y": counts, "width": width if even else rounded_all(widths)}
            for counts in (before, after)
        ],
    }


def _without_zeros(
    counts: Sequence[float], edges: np.ndarray, size: int, nonzeros: int
) -> list[float | None]:
    """Counts less the zeros, where the counts hold them; else they are left as they are."""
    kept = [rounded(value) or 0.0 for value in counts]
    zeros = size - nonzeros
    if zeros and sum(kept) == size:
        place = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(kept) - 1))
        if kept[place] >= zeros:
            kept[place] -= zeros
    return [int(value) if value == int(value) else value for value in kept]

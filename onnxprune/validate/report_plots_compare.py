"""Plots and tables of several runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_labels import label_positions
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
    panel_title,
    plain_text,
    rounded,
    tick_names,
    upright_line,
)
from onnxprune.validate.run_record import Results, Speedup

LOWER_IS_BETTER = frozenset({"loss", "mean_abs_error", "max_abs_error"})
"""Metrics that fall as a model gets better; of all others more is better."""

_MAX_LABELS = 12
_LEAST_SPAN = 0.02
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
_COLORS = (PRUNED, SPARSITY, MUTED)


@dataclass(frozen=True)
class Candidate:
    """A finished run among others.

    Attributes:
        name: What tells it apart.
        results: What came out.
        metric: The metric that all runs are compared by.
    """

    name: str
    results: Results
    metric: str

    @property
    def quality(self) -> float | None:
        """The metric of the pruned model."""
        validation = self.results.validation
        return None if validation is None else validation.pruned.get(self.metric)

    @property
    def dense_quality(self) -> float | None:
        """The metric of the dense model."""
        validation = self.results.validation
        return None if validation is None else validation.dense.get(self.metric)

    @property
    def speedup(self) -> Speedup | None:
        """Dense latency over that of the pruned model."""
        latency = self.results.latency
        return None if latency is None or len(latency.models) < 2 else latency.models[1].speedup


def on_front(one: Candidate, others: Sequence[Candidate], *, speed: bool | None = None) -> bool:
    """Whether no other run is as good in every respect and better in one.

    Args:
        one: The run.
        others: All runs; `one` may be among them.
        speed: Compare by quality and speed alone (True), by quality and sparsity alone (False), or
            by all three where both were timed (None).
    """
    return one.quality is not None and not any(_beats(other, one, speed) for other in others)


def _beats(one: Candidate, other: Candidate, speed: bool | None) -> bool:
    if one.quality is None or other.quality is None:
        return False
    sign = -1 if one.metric in LOWER_IS_BETTER else 1
    pairs = [(sign * one.quality, sign * other.quality)]
    if not speed:
        pairs.append((one.results.sparsity, other.results.sparsity))
    if speed is not False and one.speedup is not None and other.speedup is not None:
        pairs.append((one.speedup.ratio, other.speedup.ratio))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def sparsity_plot(candidates: Sequence[Candidate]) -> Plot | None:
    """Quality against sparsity."""
    shown = [c for c in candidates if c.quality is not None]
    if not shown:
        return None
    best = [c for c in shown if on_front(c, shown, speed=False)]
    axis = {"title": {"text": "sparsity", "standoff": 4}, "tickformat": ".0%", "zeroline": False}
    values = [c.results.sparsity for c in shown]
    if max(values) - min(values) < _LEAST_SPAN:
        middle = (max(values) + min(values)) / 2
        axis |= {"range": [middle - _LEAST_SPAN, middle + _LEAST_SPAN], "dtick": 0.01}
    return _scatter(
        "sparsity",
        "Quality against sparsity",
        shown,
        values,
        best,
        axis,
        "%{x:.2%} sparse",
    )


def speed_plot(candidates: Sequence[Candidate]) -> Plot | None:
    """Quality against speed, with the interval of each speedup."""
    shown = [c for c in candidates if c.quality is not None and c.speedup is not None]
    if not shown:
        return None
    best = [c for c in shown if on_front(c, shown, speed=True)]
    axis = {"title": {"text": "speed against dense", "standoff": 4}, "zeroline": False}
    speedups = [c.speedup for c in shown if c.speedup is not None]
    plot = _scatter(
        "speed",
        "Quality against speed",
        shown,
        [speedup.ratio for speedup in speedups],
        best,
        axis,
        "%{x:.3f} times as fast as dense",
    )
    intervals = {c.name: speedup for c, speedup in zip(shown, speedups, strict=True)}
    for trace in plot.figure["data"]:
        if "customdata" in trace:
            own = [intervals[name] for name in trace["customdata"]]
            trace["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [rounded(s.high - s.ratio) for s in own],
                "arrayminus": [rounded(s.ratio - s.low) for s in own],
                "thickness": 1.5,
            }
    plot.figure["layout"]["shapes"].append(upright_line(1, MUTED))
    return plot


def _scatter(
    key: str,
    title: str,
    shown: Sequence[Candidate],
    x: Sequence[float],
    best: Sequence[Candidate],
    axis: Figure,
    hover: str,
) -> Plot:
    """A point for each run, the Pareto front, and the dense model as a line."""
    metric = shown[0].metric
    at = dict(zip((c.name for c in shown), x, strict=True))
    data = [_front_line([(at[c.name], c.quality) for c in best])]
    methods = dict.fromkeys(c.results.method for c in shown)
    dense = {c.dense_quality for c in shown if c.dense_quality is not None}
    short = [plain_text(name, 24) for name in at]
    if len(set(short)) < len(short):
        short = tick_names([*at], 24)
    texts = dict(zip(at, short, strict=True))
    beside = label_positions(
        [(at[c.name], c.quality or 0.0, len(texts[c.name])) for c in shown],
        axis.get("range", ()),
        dense,
    )
    positions = dict(zip(at, beside, strict=True))
    for number, method in enumerate(methods):
        own = [c for c in shown if c.results.method == method]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(shown) <= _MAX_LABELS else "markers",
                "name": plain_text(method, 40),
                "x": [rounded(at[c.name]) for c in own],
                "y": [rounded(c.quality) for c in own],
                "text": [texts[c.name] for c in own],
                "textposition": [positions[c.name] for c in own],
                "cliponaxis": False,
                "customdata": [c.name for c in own],
                "marker": {
                    "color": _COLORS[number % len(_COLORS)],
                    "symbol": _SYMBOLS[number % len(_SYMBOLS)],
                    "size": 11,
                },
                "hovertemplate": f"%{{text}}: %{{y}}, {hover}<extra></extra>",
            }
        )
    shapes = [level_line("y", value, DENSE) for value in sorted(dense)[:8]]
    if dense:
        data.append(legend_line("dense", DENSE))
    names = ", ".join(fmt.shorten(c.name, 60) for c in best[:12])
    better = "less is better" if metric in LOWER_IS_BETTER else "more is better"
    words = f"{fmt.capital(fmt.metric_name(metric))} ({better}). On the front: {names}."
    return Plot(
        key=key,
        title=title,
        caption=f"{words} Of a run on the line no other is better in both.",
        alternative=f"Scatter plot of {len(shown)} runs. {words}",
        figure={
            "data": data,
            "layout": {
                "margin": MARGIN,
                "showlegend": True,
                "legend": LEGEND,
                "xaxis": axis,
                "yaxis": {
                    "automargin": True,
                    "zeroline": False,
                    **({"tickformat": ".1%"} if fmt.is_fraction(metric) else {}),
                },
                "shapes": shapes,
                "annotations": [panel_title(fmt.metric_name(metric), 1.0)],
                "hovermode": "closest",
            },
            "narrow": NARROW | {"margin": MARGIN | {"b": 120}},
            "narrow_below_px": NARROW_BELOW_PX,
        },
        height_px=440,
    )


def _front_line(points: Sequence[tuple[float, float | None]]) -> Figure:
    ordered = sorted(points)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [rounded(x) for x, _ in ordered],
        "y": [rounded(y) for _, y in ordered],
        "line": {"color": MUTED, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def runs_table(candidates: Sequence[Candidate]) -> Table:
    """What each run came to."""
    metric = candidates[0].metric
    timed = any(one.speedup is not None for one in candidates)
    rows = []
    for one in candidates:
        results, quality, dense = one.results, one.quality, one.dense_quality
        difference = None if quality is None or dense is None else quality - dense
        speed = "not measured"
        if one.speedup is not None:
            speed = f"{fmt.ratio(one.speedup.ratio, 3)} "
            speed += f"({fmt.interval(one.speedup.low, one.speedup.high, 3)})"
        budget, sizes = results.budget, results.size_bytes
        rows.append(
            [
                fmt.shorten(one.name, 80),
                fmt.shorten(results.method, 40),
                fmt.shorten(results.pattern, 40),
                fmt.percent(results.sparsity),
                fmt.metric_value(metric, quality),
                fmt.metric_difference(metric, difference),
                *([speed] if timed else []),
                "unknown" if sizes is None else fmt.size(sizes.pruned),
                "unknown" if budget is None else f"{budget.epochs:.4g}",
                "yes" if on_front(one, candidates) else "no",
            ]
        )
    headers = ["Run", "Method", "Pattern", "Sparsity", fmt.capital(fmt.metric_name(metric))]
    headers += ["Against dense", *(["Speed against dense (95 % interval)"] if timed else [])]
    headers += ["File", "Epochs"]
    return Table([*headers, "On the front"], rows)

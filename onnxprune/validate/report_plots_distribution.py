"""Distributions of a bench: latencies of each model, and ratios of each round."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    BELOW,
    DENSE,
    MARGIN,
    MUTED,
    PRUNED,
    SPARSITY,
    Figure,
    Plot,
    Table,
    finite,
    panel_title,
    plain_text,
    rounded,
    rounded_all,
    upright_line,
)
from onnxprune.validate.result_record import BenchedModel
from onnxprune.validate.run_record import Speedup

Writer = Callable[[float], str]
"""Writes a value with its unit."""

MOST_LINES = 9
"""Models that are told apart by three colours and three kinds of line."""

_COLORS = (DENSE, PRUNED, SPARSITY)
_DASHES = ("solid", "dash", "dot")
_SHARES = np.arange(101) / 100
_SHOWN = (0, 5, 25, 50, 75, 95, 99, 100)
_READING = "A line at 90 % over 12 ms says that 90 % of the calls took at most 12 ms."

_READING_RATIOS = (
    "A line at 30 % over 1.1 says that in 30 % of the rounds the model was at most 1.1 times as "
    "fast. Diamond and bar are the speedup and its 95 % interval, which is made from whole "
    "openings of the models and can be wider or narrower than single rounds scatter; the dotted "
    "line is equal speed."
)

_STEP = 0.06
"""Between the intervals of two models, as a share of the height."""

_BEYOND = 99
"""Percentile of the slowest model where the axis ends."""


def latency_distribution(
    names: Sequence[str], models: Sequence[BenchedModel], key: str, title: str
) -> Plot | None:
    """The share of calls that took at most so long, for each model.

    Args:
        names: How the page names the models.
        models: The models, as many; those without a distribution are left out.
        key: Anchor of the plot.
        title: Its heading.
    """
    known = [
        (name, values)
        for name, model in zip(names, models, strict=True)
        if (values := _quantiles(model.quantiles_ms or finite(model.samples))) is not None
    ]
    if not known:
        return None
    drawn = known[:MOST_LINES]
    end = max(float(values[_BEYOND]) for _, values in drawn)
    words = "Half of the calls took at most: " + _medians(drawn, fmt.milliseconds)
    caption = f"{words} {_READING}"
    if any(float(values[-1]) > end for _, values in drawn):
        slowest = max(float(values[-1]) for _, values in drawn)
        caption += (
            f" The slowest calls lie beyond the right edge, up to {fmt.milliseconds(slowest)}."
        )
    data = [_line(name, values, number, "ms") for number, (name, values) in enumerate(drawn)]
    layout = _layout("share of calls", "milliseconds per call", len(drawn))
    layout["xaxis"]["range"] = _padded(min(float(v[0]) for _, v in drawn), end)
    return Plot(
        key=key,
        title=title,
        caption=caption + _left_out(known),
        alternative=f"Cumulative distributions of latencies. {words}",
        figure={"data": data, "layout": layout, "narrow": _narrow(len(drawn))},
        height_px=_height(len(drawn)),
        table=quantile_table("Model", known, fmt.milliseconds),
    )


def ratio_distribution(
    names: Sequence[str], models: Sequence[BenchedModel], key: str, title: str
) -> Plot | None:
    """The share of rounds with at most so large a ratio, with the interval of the speedup.

    Args:
        names: How the page names the models; the first is the baseline.
        models: The models, as many.
        key: Anchor of the plot.
        title: Its heading.
    """
    known = [
        (name, values, model.speedup)
        for name, model in list(zip(names, models, strict=True))[1:]
        if (values := _quantiles(model.ratio_quantiles)) is not None
    ]
    if not known:
        return None
    drawn = known[:MOST_LINES]
    words = "Speed against the first model: " + "; ".join(
        f"{fmt.shorten(name, 60)} {fmt.ratio(speedup.ratio, 3)} "
        f"(95 % interval {fmt.interval(speedup.low, speedup.high, 3)})"
        for name, _, speedup in drawn
        if speedup is not None
    )
    data: list[Figure] = []
    ends = [1.0]
    for number, (name, values, speedup) in enumerate(drawn):
        data.append(_line(name, values, number, "times as fast"))
        ends += [float(values[100 - _BEYOND]), float(values[_BEYOND])]
        if speedup is not None:
            height = 0.5 + _STEP * (number - (len(drawn) - 1) / 2)
            data.append(_interval_mark(name, speedup, number, height))
            ends += [speedup.low, speedup.high]
    layout = _layout("share of rounds", "latency of the first model ÷ its own", len(drawn))
    layout["xaxis"]["range"] = _padded(min(ends), max(ends))
    layout["shapes"] = [upright_line(1, MUTED)]
    rows = [(name, values) for name, values, _ in known]
    return Plot(
        key=key,
        title=title,
        caption=f"{words}. {_READING_RATIOS}{_left_out(rows)}",
        alternative=f"Cumulative distributions of the ratio of each round. {words}.",
        figure={"data": data, "layout": layout, "narrow": _narrow(len(drawn))},
        height_px=_height(len(drawn)),
        table=quantile_table("Model", rows, lambda value: fmt.ratio(value, 3)),
    )


def _interval_mark(name: str, speedup: Speedup, number: int, height: float) -> Figure:
    color = _COLORS[number % len(_COLORS)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{plain_text(name, 40)}: 95 % interval",
        "showlegend": False,
        "x": [rounded(speedup.ratio)],
        "y": [height],
        "marker": {"color": color, "symbol": "diamond", "size": 11},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(speedup.high - speedup.ratio)],
            "arrayminus": [rounded(speedup.ratio - speedup.low)],
            "color": color,
            "thickness": 5,
            "width": 9,
        },
        "hovertemplate": "%{x:.3f}<extra></extra>",
    }


def quantile_table(
    head: str, known: Sequence[tuple[str, Sequence[float] | np.ndarray]], written: Writer
) -> Table:
    """Quantiles of values, a row each.

    Args:
        head: Header of the first column.
        known: Name and values of each row.
        written: How a value is written.
    """
    ends = {0: "least", 50: "median", 100: "largest"}
    headers = [head, *(ends.get(percent, f"p{percent}") for percent in _SHOWN)]
    rows = [
        [fmt.shorten(name, 80), *(written(float(value)) for value in np.percentile(values, _SHOWN))]
        for name, values in known
    ]
    return Table(headers, rows)


def _quantiles(values: Sequence[float]) -> np.ndarray | None:
    """101 percentiles; of samples, or of as many percentiles themselves."""
    if len(finite(values)) < 2 or len(finite(values)) != len(values):
        return None
    return np.percentile(np.asarray(values, dtype=np.float64), 100 * _SHARES)


def _line(name: str, values: np.ndarray, number: int, unit: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain_text(name, 40),
        "x": rounded_all(values),
        "y": _SHARES.tolist(),
        "line": {
            "color": _COLORS[number % len(_COLORS)],
            "dash": _DASHES[number // len(_COLORS) % len(_DASHES)],
            "width": 2.5,
        },
        "hovertemplate": f"{plain_text(name, 40)}<br>%{{y:.0%}} up to %{{x:.4g}} {unit}"
        "<extra></extra>",
    }


def _layout(title: str, axis_title: str, lines: int) -> Figure:
    return {
        "margin": MARGIN | {"b": _legend_px(lines)},
        "showlegend": True,
        "legend": BELOW | {"orientation": "h", "xref": "container"},
        "hovermode": "closest",
        "xaxis": {"title": {"text": axis_title}, "zeroline": False},
        "yaxis": {"automargin": True, "range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25},
        "annotations": [panel_title(title, 1.0)],
    }


def _narrow(lines: int) -> Figure:
    return {"margin": MARGIN | {"b": _legend_px(lines)}}


def _legend_px(lines: int) -> int:
    return 58 + 22 * lines


def _height(lines: int) -> int:
    return 300 + _legend_px(lines)


def _padded(low: float, high: float) -> list[float | None]:
    room = 0.03 * (high - low) or 0.01 * abs(high) or 1.0
    return [rounded(low - room), rounded(high + room)]


def _medians(known: Sequence[tuple[str, np.ndarray]], written: Writer) -> str:
    parts = [f"{fmt.shorten(name, 60)} {written(float(values[50]))}" for name, values in known]
    return "; ".join(parts) + "."


def _left_out(known: Sequence[tuple[str, np.ndarray]]) -> str:
    if len(known) <= MOST_LINES:
        return ""
    return f" Only the first {MOST_LINES} are drawn; the table has all {len(known)}."

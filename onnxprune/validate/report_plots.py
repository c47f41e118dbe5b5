"""The report's plots as plain plotly specifications, each with words and a table that say the same.

Colours are names of CSS variables (``--series-pruned``), which the page's script resolves, so that
plots follow the light and the dark theme. Every text that comes from a model is escaped here for
plotly's own markup; the page escapes it again for HTML.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.validate import report_format as fmt

DENSE = "--series-dense"
PRUNED = "--series-pruned"
SPARSITY = "--series-sparsity"
MUTED = "--text-muted"

Figure = dict[str, Any]

MARGIN = {"l": 8, "r": 14, "t": 36, "b": 44}
LEGEND = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
BELOW = {"x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}
"""Where a legend lies below the axis."""
NARROW: Figure = {"margin": MARGIN | {"b": 92}, "legend": BELOW}
"""What small screens change: the legend goes below the axis."""

NARROW_BELOW_PX = 720
"""Widths that are narrow for a plot whose legend is long; for others the page's script decides."""


@dataclass(frozen=True)
class Table:
    """Numbers; the first column heads its row.

    `facts` are items and values without a header; `words` are cells that may be long, and wrap;
    `narrow` is a table of many columns, in which an interval goes below its value.
    With `sort_keys`, as many as there are cells, readers can sort by each column: by these numbers,
    or by the text in columns where all of them are None.
    """

    headers: list[str]
    rows: list[list[str]]
    facts: bool = False
    words: bool = False
    sort_keys: list[list[float | None]] | None = None
    narrow: bool = False


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    `figure` holds plotly's `data` and `layout`, and `narrow`: a layout that replaces keys on small
    screens, and where its width is below `narrow_below_px`, if that is there. `choices` are
    alternative sets of data of the same figure, by label; `chosen` is the one that is shown first.
    """

    key: str
    title: str
    caption: str
    alternative: str
    figure: Figure
    height_px: int
    table: Table | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)
    chosen: int = 0
    scrolls: bool = False


def line_trace(name: str, points: Sequence[tuple[int, float | None]], color: str) -> Figure:
    """A line through `(step, value)` points, without an entry in the legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [step for step, _ in points],
        "y": [rounded(value) for _, value in points],
        "line": {"color": color, "width": 2.5},
        "showlegend": False,
    }


def count_bars(name: str, counts: np.ndarray, edges: np.ndarray, color: str, hover: str) -> Figure:
    """Bars of equal width for counts between edges."""
    return {
        "type": "bar",
        "name": name,
        "x": rounded_all((edges[:-1] + edges[1:]) / 2),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]),
        "marker": {"color": color, "line": {"width": 0}},
        "opacity": 0.7,
        "hovertemplate": f"{hover}<extra></extra>",
    }


def count_layout(title: str, axis_title: str) -> Figure:
    """The layout of a histogram."""
    return {
        "barmode": "overlay",
        "bargap": 0,
        "margin": MARGIN,
        "showlegend": True,
        "legend": LEGEND,
        "xaxis": {"title": {"text": axis_title}, "zeroline": False},
        "yaxis": {"automargin": True, "rangemode": "tozero", "nticks": 6},
        "annotations": [panel_title(title, 1.0)],
        "hovermode": "x unified",
    }


def panel_title(title: str, y: float) -> Figure:
    """A heading at the upper left of a panel whose upper edge is at `y` of the figure."""
    return {
        "text": f"<b>{plain_text(title, 60)}</b>",
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": y,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
    }


def names_axis(names: Sequence[str]) -> Figure:
    """A vertical axis with a name at each whole number from 0, the first on top."""
    return {
        "range": [len(names) - 0.4, -0.6],
        "tickvals": list(range(len(names))),
        "ticktext": tick_names(names, 36),
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "ticklabelstandoff": 9,
        "fixedrange": True,
    }


def row_bars_layout(names: Sequence[str], scrolls: bool) -> Figure:
    """The layout of a chart with a bar for each name.

    One that scrolls has its axis and legend on top, where they are seen first.
    """
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    return {
        "barmode": "overlay",
        "margin": {"l": 8, "r": 20, "t": 76, "b": 12} if scrolls else MARGIN | {"r": 20},
        "showlegend": True,
        "legend": legend | ({"yref": "container", "yanchor": "top"} if scrolls else {}),
        "hovermode": "closest",
        "xaxis": {"fixedrange": True, "side": "top" if scrolls else "bottom"},
        "yaxis": names_axis(names),
    }


def dot_layout(names: Sequence[str], axis_title: str) -> Figure:
    """The layout of a dot plot with a row for each name, and its legend below."""
    return {
        "margin": MARGIN | {"t": 12, "b": 92},
        "showlegend": True,
        "legend": BELOW | {"orientation": "h", "xref": "container"},
        "hovermode": "closest",
        "xaxis": {"title": {"text": axis_title}, "zeroline": False, "fixedrange": True},
        "yaxis": names_axis(names),
    }


def dot_narrow(names: Sequence[str]) -> Figure:
    """What small screens change of `dot_layout`: each name stands above its row, not beside it."""
    at = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 9}
    return {
        "margin": MARGIN | {"l": 12, "t": 12, "b": 92},
        "yaxis": {"showticklabels": False, "automargin": False},
        "annotations": [
            at
            | {"text": text, "y": row, "showarrow": False}
            | {"font": {"color": MUTED, "size": 12}}
            for row, text in enumerate(tick_names(names, 36))
        ],
    }


def tick_names(names: Sequence[str], length: int) -> list[str]:
    """Names at an axis, at most `length` characters long, told apart by what they do not share."""
    return [plain_text(name, length) for name in fmt.distinct(names, length)]


def level_line(axis: str, value: float, color: str) -> Figure:
    """A shape: a horizontal line at `value` of the vertical `axis`."""
    across = {"xref": "paper", "yref": axis, "x0": 0, "x1": 1, "y0": value, "y1": value}
    return {"type": "line", **across, "line": {"color": color, "width": 2, "dash": "dot"}}


def upright_line(value: float | None, color: str, dash: str = "dot") -> Figure:
    """A shape: a vertical line at `value` of the horizontal axis."""
    across = {"xref": "x", "yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1}
    return {"type": "line", **across, "line": {"color": color, "width": 2, "dash": dash}}


def legend_line(name: str, color: str, width: int = 2, dash: str = "dot") -> Figure:
    """A legend entry for a shape, which has none of its own."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [None],
        "y": [None],
        "line": {"color": color, "width": width, "dash": dash},
        "hoverinfo": "skip",
    }


def plain_text(value: str, length: int) -> str:
    """A name at most `length` characters long, escaped for plotly's markup and its formulas."""
    return html.escape(fmt.shorten(value, length), quote=False).replace("$", "&#36;")


def rounded(value: float | None) -> float | None:
    """`value` with six significant digits; plotly draws a gap where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def rounded_all(values: np.ndarray) -> list[float | None]:
    """Each of `values` with six significant digits."""
    return [rounded(float(value)) for value in values]


def finite(values: Sequence[float]) -> list[float]:
    """The finite ones of `values`."""
    return [value for value in values if math.isfinite(value)]

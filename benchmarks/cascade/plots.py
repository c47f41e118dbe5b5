"""Plots of the results, as SVG files that are the same for the same figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "onnxprune"

from matplotlib import pyplot  # noqa: E402

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")


@dataclass(frozen=True)
class Band:
    """A line with an interval about it.

    Attributes:
        label: In the legend.
        xs: Where the points are.
        ys: Intervals as JSON values: `mean`, `low`, `high`; an end that is None is not drawn.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Panel:
    """Axes with bands on them."""

    title: str
    x: str
    y: str
    bands: Sequence[Band]
    log_x: bool = False
    falling_x: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of numbers, shown by colour and in figures.

    Attributes:
        title: Above it.
        x: What the columns are.
        y: What the rows are.
        columns: Their labels.
        rows: Their labels, from the top.
        values: Number, and text to show; None where there is none. By row and column.
        limit: Value of the darkest colour; its negative is the other end.
    """

    title: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[tuple[float, str] | None]]
    limit: float


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write an SVG file with panels side by side."""
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6.4 * len(panels), 4.8), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for number, band in enumerate(panel.bands):
            order = sorted(range(len(band.xs)), key=band.xs.__getitem__)
            xs = [band.xs[index] for index in order]
            means, lows, highs = (
                [_end(band.ys[index], key) for index in order] for key in ("mean", "low", "high")
            )
            colour = _COLOURS[number % len(_COLOURS)]
            axis.plot(xs, means, marker="o", markersize=4, color=colour, label=band.label)
            axis.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
        if len({x for band in panel.bands for x in band.xs}) > 1:  # a single one spans no axis
            if panel.log_x:
                axis.set_xscale("log")
            if panel.falling_x:
                axis.invert_xaxis()
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def _end(interval: Mapping[str, float | None], key: str) -> float:
    value = interval[key]
    return interval["mean"] or 0.0 if value is None else value


def draw_grids(path: Path, grids: Sequence[Grid]) -> None:
    """Write an SVG file with tables side by side."""
    figure, axes = pyplot.subplots(
        1, len(grids), figsize=(5.2 * len(grids), 4.2), squeeze=False, layout="constrained"
    )
    for axis, grid in zip(axes[0], grids, strict=True):
        numbers = [
            [float("nan") if cell is None else cell[0] for cell in row] for row in grid.values
        ]
        axis.imshow(numbers, cmap="RdBu", vmin=-grid.limit, vmax=grid.limit, aspect="auto")
        for row, cells in enumerate(grid.values):
            for column, cell in enumerate(cells):
                if cell is not None:
                    axis.text(column, row, cell[1], ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(grid.columns)), grid.columns)
        axis.set_yticks(range(len(grid.rows)), grid.rows)
        axis.set(title=grid.title, xlabel=grid.x, ylabel=grid.y)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, the same figures give the same file.
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

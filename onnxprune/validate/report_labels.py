"""Where labels of points stand in a scatter plot, which plotly leaves to its caller.

Sizes are those of a plot on a wide screen, roughly; where a plot is smaller, labels may still meet.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_WIDTH_PX, _HEIGHT_PX = 880, 330
_CHARACTER_PX, _LINE_PX, _DOT_PX = 7.2, 15, 9


@dataclass(frozen=True)
class _Box:
    """A rectangle in pixels, from its lower left corner."""

    left: float
    low: float
    width: float
    height: float

    def meets(self, other: "_Box") -> bool:
        """Whether they overlap."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.low < other.low + other.height
            and other.low < self.low + self.height
        )


def label_positions(
    points: Sequence[tuple[float, float, int]],
    x_range: Sequence[float],
    levels: Collection[float],
) -> list[str]:
    """Where each point's label stands, so that labels and points stay apart where they can.

    Args:
        points: x, y and number of characters.
        x_range: Ends of the horizontal axis; empty for those of the points.
        levels: Other heights that the vertical axis covers.
    """
    xs = [*x_range] or [x for x, _, _ in points]
    ys = [*(y for _, y, _ in points), *levels]
    scale_x = _WIDTH_PX / ((max(xs) - min(xs)) or 1)
    scale_y = _HEIGHT_PX / ((max(ys) - min(ys)) or 1)
    placed = [
        _Box(x * scale_x - _DOT_PX, y * scale_y - _DOT_PX, 2 * _DOT_PX, 2 * _DOT_PX)
        for x, y, _ in points
    ]
    chosen = []
    for own, (x, y, length) in enumerate(points):
        width, left, low = length * _CHARACTER_PX, x * scale_x, y * scale_y
        options = {
            "top center": _Box(left - width / 2, low + _DOT_PX, width, _LINE_PX),
            "middle right": _Box(left + _DOT_PX, low - _LINE_PX / 2, width, _LINE_PX),
            "middle left": _Box(left - _DOT_PX - width, low - _LINE_PX / 2, width, _LINE_PX),
            "bottom center": _Box(left - width / 2, low - _DOT_PX - _LINE_PX, width, _LINE_PX),
        }
        others = [box for index, box in enumerate(placed) if index != own]
        free = [key for key, box in options.items() if not any(map(box.meets, others))]
        chosen.append(free[0] if free else "top center")
        placed.append(options[chosen[-1]])
    return chosen

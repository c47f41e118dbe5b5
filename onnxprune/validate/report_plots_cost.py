"""Plot and table of what each layer costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    DENSE,
    PRUNED,
    Figure,
    Plot,
    Table,
    plain_text,
    row_bars_layout,
    tick_names,
)
from onnxprune.validate.run_record import LayerCostRecord, ModelCostRecord

_MAX_BARS = 400
_MAX_ROWS = 700
_ROW_PX = 19
_THEORY = (
    "Multiply-adds at actual density leave out those with a zero weight. That is theory: dense "
    "kernels compute them all the same, and sparse ones gain less than the share of zeros."
)
_BYTES = (
    "Bytes of non-zeros are those of the values alone, without their positions; a file that stores "
    "zeros holds all of them."
)
_TIMES = (
    "Times are by ONNX Runtime's profiler, a call, with what it fused into the layer; blank where "
    "no node of the profile is that layer alone."
)


@dataclass(frozen=True)
class PairedLayer:
    """A layer as it is, and its time in the dense model.

    Attributes:
        layer: The layer of the model that the page is about.
        dense_ms: Its time in the dense model; None where there is none or it is not known.
    """

    layer: LayerCostRecord
    dense_ms: float | None = None


def paired_layers(cost: ModelCostRecord, dense: ModelCostRecord | None) -> list[PairedLayer]:
    """The layers of a model with their times in the dense one, by the names of their weights."""
    times = {layer.name: layer.ms for layer in dense.layers} if dense else {}
    return [PairedLayer(layer, times.get(layer.name)) for layer in cost.layers]


def cost_plot(layers: Sequence[PairedLayer], key: str, title: str, words: str) -> Plot | None:
    """Multiply-adds of each layer, dense and at actual density, top to bottom in graph order.

    Args:
        layers: The layers.
        key: Anchor of the plot.
        title: Its heading.
        words: What `cost_words` says of the model.
    """
    known = [pair.layer for pair in layers if pair.layer.multiply_adds is not None]
    if not known:
        return None
    shown = known[:_MAX_BARS]
    scrolls = len(shown) > 42
    left_out = len(known) - len(shown)
    return Plot(
        key=key,
        title=title,
        caption=words + (f" Only the first {len(shown)} layers are drawn." if left_out else ""),
        alternative=f"Horizontal bar chart of multiply-adds by layer. {words}",
        figure={
            "data": [
                _bars(shown, "dense", DENSE, 0.45, lambda layer: layer.multiply_adds),
                _bars(shown, "at actual density", PRUNED, 1, lambda la: la.multiply_adds_sparse),
            ],
            "layout": _layout(shown, scrolls),
            "narrow": {
                "yaxis": {"ticktext": tick_names([layer.name for layer in shown], 16)},
                "legend": {"orientation": "v"},
                "margin": {"t": 98 if scrolls else 64},
            },
        },
        height_px=100 + _ROW_PX * len(shown),
        scrolls=scrolls,
    )


def _bars(
    layers: Sequence[LayerCostRecord],
    name: str,
    color: str,
    opacity: float,
    value: Callable[[LayerCostRecord], int | None],
) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": [value(layer) for layer in layers],
        "y": list(range(len(layers))),
        "customdata": [plain_text(layer.name, 80) for layer in layers],
        "marker": {"color": color},
        "opacity": opacity,
        "width": 0.66,
        "hovertemplate": f"%{{customdata}}<br>{name}: %{{x:.4s}} multiply-adds<extra></extra>",
    }


def _layout(layers: Sequence[LayerCostRecord], scrolls: bool) -> Figure:
    layout = row_bars_layout([layer.name for layer in layers], scrolls)
    layout["xaxis"] |= {
        "rangemode": "tozero",
        "exponentformat": "SI",
        "nticks": 6,
        "title": {"text": "" if scrolls else "multiply-adds a sample"},
    }
    return layout


def cost_words(cost: ModelCostRecord) -> str:
    """What the layers of a model cost together, and what is not known of it."""
    known = [layer for layer in cost.layers if layer.multiply_adds is not None]
    dense = sum(layer.multiply_adds or 0 for layer in known)
    sparse = sum(layer.multiply_adds_sparse or 0 for layer in known)
    text = ""
    if known:
        share = f" ({fmt.percent(sparse / dense, 1)})" if dense else ""
        text = (
            f"{_layers(len(known))}: {fmt.short_count(dense)} multiply-adds a sample "
            f"if dense, and {fmt.short_count(sparse)}{share} at actual density, in theory."
        )
    if cost.multiply_adds is not None and cost.multiply_adds > dense and not cost.left_out:
        rest = fmt.short_count(cost.multiply_adds - dense)
        text += f" Products without a stored weight take {rest} more."
    unknown = len(cost.layers) - len(known)
    if unknown:
        text += (
            f" Of {_layers(unknown)} the file does not tell the shapes, such as sizes that inputs "
            "decide, so the multiply-adds are not known and left blank."
        )
    if cost.left_out:
        text += f" {_layers(cost.left_out)} with fewer multiply-adds left out."
    return text.strip()


def _layers(number: int) -> str:
    return f"{fmt.count(number)} {'layer' if number == 1 else 'layers'}"


def cost_texts(cost: ModelCostRecord) -> list[str]:
    """What is theory in these figures, and what was measured."""
    timed = any(layer.ms is not None for layer in cost.layers)
    return [" ".join([_THEORY, _BYTES, *([_TIMES] if timed else ["Times were not measured."])])]


def cost_table(layers: Sequence[PairedLayer], *, compared: bool) -> Table:
    """The numbers of each layer.

    Args:
        layers: The layers.
        compared: Whether there is a column for the dense model's time.
    """
    headers = ["Layer", "Operator", "Sparsity", "Multiply-adds, dense", "Multiply-adds, in theory"]
    headers += ["Bytes, dense", "Bytes of non-zeros"]
    headers += ["Time, dense", "Time, pruned"] if compared else ["Time"]
    rows, keys = [], []
    for pair in layers[:_MAX_ROWS]:
        layer = pair.layer
        sparsity = 1 - layer.nonzeros / layer.size if layer.size else 0.0
        nonzero_bytes = round(layer.size_bytes * (1 - sparsity))
        times = [*([pair.dense_ms] if compared else []), layer.ms]
        rows.append(
            [
                fmt.shorten(layer.name, 80),
                fmt.shorten(layer.op_type, 40),
                fmt.percent(sparsity, 1),
                fmt.short_count(layer.multiply_adds),
                fmt.short_count(layer.multiply_adds_sparse),
                fmt.size(layer.size_bytes),
                fmt.size(nonzero_bytes),
                *(fmt.milliseconds(ms) for ms in times),
            ]
        )
        numbers = [sparsity, layer.multiply_adds, layer.multiply_adds_sparse, layer.size_bytes]
        keys.append([None, None, *numbers, nonzero_bytes, *times])
    return Table(headers, rows, sort_keys=keys)

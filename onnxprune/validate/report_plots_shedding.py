"""The plot and the words of the report about shed weights and what training cost."""

from collections.abc import Sequence

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import (
    LEGEND,
    MARGIN,
    MUTED,
    NARROW,
    PRUNED,
    SPARSITY,
    Plot,
    Table,
    line_trace,
    upright_line,
)
from onnxprune.validate.report_plots_training import thin
from onnxprune.validate.run_record import Results, RunRecord, ShedPoint

_MAX_ROWS = 200


def shed_plot(run: RunRecord) -> Plot | None:
    """Shed weights over steps, against the RMS at the last event and against that of now."""
    if not run.shed:
        return None
    last = run.shed[-1]
    hover = {"showlegend": True, "hovertemplate": "%{y:,} weights<extra></extra>"}
    data = [
        line_trace("against the last event", thin([(p.step, p.shed) for p in run.shed]), PRUNED),
        line_trace("against now", thin([(p.step, p.shed_relative) for p in run.shed]), SPARSITY),
    ]
    layout = {
        "margin": MARGIN,
        "legend": LEGEND,
        "xaxis": {"title": {"text": "step"}, "zeroline": False},
        "yaxis": {"automargin": True, "rangemode": "tozero", "title": {"text": "shed weights"}},
        "shapes": [upright_line(event.step, MUTED) | {"opacity": 0.4} for event in run.events],
        "hovermode": "x unified",
    }
    words = (
        f"At step {fmt.count(last.step)}, {fmt.count(last.shed)} of {fmt.count(last.kept)} kept "
        f"weights had fallen to nothing since the pruning event before "
        f"and {fmt.count(last.shed_relative)} had fallen behind the rest of their own tensor. "
        "Dotted lines are pruning events, where counting starts again. No control arm ran here: "
        "part of this is weight decay alone."
    )
    return Plot(
        key="shed",
        title="Shed weights",
        caption=words,
        alternative=f"Line chart over training steps. {words}",
        figure={"data": [trace | hover for trace in data], "layout": layout, "narrow": NARROW},
        height_px=320,
        table=_shed_table(run.shed),
    )


def budget_words(results: Results) -> list[str]:
    """What training cost, and how the kept weights differ from pruning once."""
    texts = []
    budget, overlap = results.budget, results.overlap_with_one_shot
    if budget is not None:
        text = (
            f"Budget: {budget.epochs:.4g} epochs, {fmt.count(budget.steps)} steps, mean density "
            f"{fmt.percent(budget.mean_density)}."
        )
        if budget.training_flops is not None and budget.training_flops_dense is not None:
            text += (
                f" Training took {budget.training_flops_dense:.3g} FLOPs as dense hardware counts "
                f"them; at actual density they would be {budget.training_flops:.3g}, in theory."
            )
        texts.append(text)
    if overlap is not None:
        texts.append(
            f"Kept weights and those that pruning the dense model once by magnitude would keep "
            f"overlap by {fmt.percent(overlap.jaccard)} (Jaccard index; "
            f"{fmt.percent(overlap.expected)} by chance)."
        )
    return texts


def _shed_table(points: Sequence[ShedPoint]) -> Table:
    stride = -(-len(points) // _MAX_ROWS)
    numbers = [(p.step, p.kept, p.shed, p.shed_relative) for p in points[::stride]]
    return Table(
        ["Step", "Kept", "Shed", "Shed, against now"],
        [[fmt.count(number) for number in row] for row in numbers],
    )

"""The page of a probe for cascade shedding."""

import shlex
from pathlib import Path

from onnxprune.model import atomic_write_text
from onnxprune.toml import toml_text
from onnxprune.validate import report_format as fmt
from onnxprune.validate.probe_record import ProbeRecord, ScoreResult, chosen, read_probe
from onnxprune.validate.report_page import Group, facts_table, render_page
from onnxprune.validate.report_plots import Table
from onnxprune.validate.report_plots_curves import curve_plots, tensor_plots
from onnxprune.validate.report_plots_gain import (
    arms_table,
    gain_plot,
    gain_table,
    overlap_plot,
    without_shed_table,
)
from onnxprune.validate.report_summary import KeyFigure, Tone

_NEGLIGIBLE_LOSS = 0.01
"""Where zeroing shed weights changes the loss by more than this share, tau is too large."""

_MEANINGS = {
    "present": "more weights follow than were pruned",
    "weak": "pruning makes training shed further weights, though not surely more than were pruned",
    "absent": "fewer than 0.1 further weights follow for each one pruned",
}
_TONES: dict[str, Tone] = {
    "present": "good",
    "weak": "good",
    "absent": "neutral",
    "inconclusive": "unsure",
}


def build_probe_report(folder: Path) -> str:
    """The page for the probe in `folder`, as HTML text.

    Args:
        folder: Where `onnxprune cascade --run-dir` wrote `probe.json`.

    Raises:
        UsageError: The probe has not finished, or `probe.json` is damaged.
    """
    probe = read_probe(folder)
    groups = _groups(probe)
    return render_page(
        "cascade.html.j2",
        groups,
        title=f"Cascade shedding in {fmt.shorten(probe.model, 120)}"
        if probe.model
        else "Cascade shedding",
        sections=[
            ("summary", "Summary"),
            *((group.key, group.title) for group in groups),
            ("recommendation", "Recommendation"),
            *([("recipe", "Recipe")] if probe.recipe else []),
            ("environment", "Environment"),
        ],
        figures=_figures(probe),
        asked=_asked(probe),
        outcome=_outcome(probe),
        advice=_advice(probe),
        command=_command(probe),
        recipe=toml_text(probe.recipe).strip(),
        notes=probe.notes[:100],
        facts=_facts(probe),
        tool_version=probe.tool_version,
    )


def write_probe_report(folder: Path, out: Path) -> None:
    """Write the page for the probe in `folder` to the file `out`.

    Args:
        folder: As in `build_probe_report`.
        out: The HTML file.

    Raises:
        UsageError: As `build_probe_report`.
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), build_probe_report(folder))


def _groups(probe: ProbeRecord) -> list[Group]:
    tensors = tensor_plots(probe)
    return [
        Group(
            "gain",
            "Gain",
            [gain_plot(probe)],
            pair=True,
            beside=[("Net shed weights for each weight pruned", gain_table(probe))],
            tables=[("Shed weights at the end, seed by seed", arms_table(probe))],
        ),
        Group("curves", "Shed curves", curve_plots(probe), pair=True),
        Group(
            "tensors",
            "Tensors",
            tensors,
            pair=True,
            texts=[] if tensors else ["No tensor shed a weight, in no arm."],
        ),
        Group("kept", "Kept sets", [overlap_plot(probe)]),
        Group(
            "without",
            "Without shed weights",
            texts=[_loss_sentence(probe)],
            tables=[("Largest changes over the seeds", without_shed_table(probe))],
        ),
    ]


def _figures(probe: ProbeRecord) -> list[KeyFigure]:
    """A tile for the verdict of each score, then how far the run reaches and what weights do."""
    verdicts = [
        KeyFigure(
            f"verdict-{score}",
            f"Pruned {chosen(score)}",
            fmt.capital(gain.verdict),
            f"gain {fmt.signed(gain.mean)}, 95 % interval "
            f"{fmt.signed_interval(gain.low, gain.high)}",
            _TONES[gain.verdict],
        )
        for score, gain in probe.gains.items()
    ]
    horizon = probe.decay_horizon_steps
    needed = "no weight decay" if horizon is None else f"{fmt.count(horizon)} steps needed"
    change = probe.without_shed
    return [
        *verdicts,
        KeyFigure(
            "horizon",
            "Decay horizon reached",
            fmt.percent(probe.decay_horizon_reached, 0),
            f"{needed}, {fmt.count(probe.steps)} run",
            "neutral" if _reaches_horizon(probe) else "unsure",
        ),
        KeyFigure(
            "without-shed",
            "Loss without shed weights",
            fmt.signed_percent(change.loss_change),
            f"outputs change by at most {fmt.percent(change.output_change)}",
            "neutral" if abs(change.loss_change) <= _NEGLIGIBLE_LOSS else "unsure",
        ),
    ]


def _asked(probe: ProbeRecord) -> str:
    seeds = len(probe.seeds)
    arms = f"{len(probe.names)} arms, {', '.join(probe.names)}, "
    return (
        f"Asked: whether pruning {fmt.share(probe.pruned_share)} of the "
        f"{fmt.count(probe.arms[0].weights)} prunable weights makes training shed further ones. "
        f"{arms}ran {fmt.count(probe.steps)} steps each with {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}; the control arm lost no weight. A kept weight is "
        f"shed once it has fallen to {fmt.number(probe.tau)} of its tensor's RMS at the event."
    )


def _outcome(probe: ProbeRecord) -> list[str]:
    return [
        *(_verdict_sentence(score, gain) for score, gain in probe.gains.items()),
        _horizon_sentence(probe),
        f"{_advice(probe)[0]} The reasons are under Recommendation.",
    ]


def _verdict_sentence(score: str, gain: ScoreResult) -> str:
    if gain.verdict != "inconclusive":
        return f"Pruned {chosen(score)}: {gain.verdict}. {fmt.capital(_MEANINGS[gain.verdict])}."
    if len(gain.values) < 2:
        return f"Pruned {chosen(score)}: inconclusive, as always with one seed."
    needed = gain.seeds_that_would_decide
    more = (
        "more seeds than is practical would be needed"
        if needed is None
        else f"about {fmt.count(needed)} seeds would decide"
    )
    return (
        f"Pruned {chosen(score)}: inconclusive, the interval is too wide; {more}, if mean and "
        "spread stay as they are."
    )


def _horizon_sentence(probe: ProbeRecord) -> str:
    if probe.decay_horizon_steps is None:
        return "Without weight decay unused weights do not fall: nothing could be shed."
    needs = (
        f"Weight decay alone needs {fmt.count(probe.decay_horizon_steps)} steps to shed a weight "
        f"that nothing holds up, and each arm ran {fmt.count(probe.steps)}"
    )
    if _reaches_horizon(probe):
        return f"{needs}: long enough for a complete cascade to show."
    return f"{needs}: too few for a complete cascade to show, whatever the verdict."


def _reaches_horizon(probe: ProbeRecord) -> bool:
    return probe.decay_horizon_steps is not None and probe.decay_horizon_reached >= 1


def _loss_sentence(probe: ProbeRecord) -> str:
    change = probe.without_shed
    measured = (
        f"With its shed weights set to zero, no arm's loss changes by more than "
        f"{fmt.percent(abs(change.loss_change), 3)}, and no output by more than "
        f"{fmt.percent(change.output_change, 3)} of the largest"
    )
    if abs(change.loss_change) <= _NEGLIGIBLE_LOSS:
        return f"{measured}: what counts as shed is not needed any more."
    return f"{measured}: some of them still matter, so tau ({fmt.number(probe.tau)}) is too large."


def _advice(probe: ProbeRecord) -> list[str]:
    """The recommendation, then its reasons."""
    advice = probe.recommendation
    return [
        f"Prune with method {advice.method} and {fmt.count(advice.events)} pruning events.",
        f"Pruned {chosen(probe.score)}, the verdict is {probe.verdict}: {advice.reason}.",
        "It holds for the learning rate, weight decay and length of training of this probe; a "
        "cascade says that weights fall, not that the pruned model is better.",
    ]


def _command(probe: ProbeRecord) -> str:
    advice = probe.recommendation
    return (
        f"onnxprune prune {shlex.quote(probe.model or 'MODEL')} -o pruned.onnx --data SPEC "
        f"--method {advice.method} --set schedule.events={advice.events}"
    )


def _facts(probe: ProbeRecord) -> list[tuple[str, Table]]:
    """The tables of the last section."""
    settings = [
        ("share pruned", fmt.share(probe.pruned_share)),
        ("tau", fmt.number(probe.tau)),
        ("steps of an arm", fmt.count(probe.steps)),
        ("seeds", ", ".join(map(str, probe.seeds[:50]))),
    ]
    identity = [("source sha256", probe.source_sha256 or "unknown")]
    for side, facts in probe.data.items():
        identity += fmt.flatten(facts, f"{side} data: ")
    tables = [
        ("Settings", facts_table(settings)),
        ("Model and data", facts_table(identity)),
        ("Environment", facts_table(fmt.flatten(probe.environment))),
        ("Arms at the end", _end_table(probe)),
    ]
    return [(caption, table) for caption, table in tables if table.rows]


def _end_table(probe: ProbeRecord) -> Table:
    """Metrics of every arm on the evaluation data, and what it took."""
    metrics = list(dict.fromkeys(name for arm in probe.arms for name in arm.metrics))[:6]
    rows = []
    for name in probe.names:
        for arm in probe.over_seeds(name):
            values = [fmt.metric_value(metric, arm.metrics.get(metric)) for metric in metrics]
            rows.append([f"{name}, seed {arm.seed}", *values, fmt.duration(arm.seconds)])
    return Table(["Arm", *map(fmt.metric_name, metrics), "Time"], rows)

"""Plots and tables of a probe that compare its arms: gains, kept sets, and what shed weights do."""

import statistics
from collections.abc import Sequence

from onnxprune.validate import report_format as fmt
from onnxprune.validate.probe_record import ArmResult, GainResult, ProbeRecord, chosen
from onnxprune.validate.report_plots import (
    DENSE,
    MUTED,
    PRUNED,
    Figure,
    Plot,
    Table,
    dot_layout,
    dot_narrow,
    rounded,
    upright_line,
)

# Those of the verdicts in `onnxprune.cascade`, which would load PyTorch.
_ABSENT_BELOW = 0.1
_PRESENT_ABOVE = 1.0
_ROW_PX = 46


def gain_plot(probe: ProbeRecord) -> Plot:
    """The gain of each seed, with mean and interval, for each score and way of counting."""
    rows = _gains(probe)
    first = probe.gains[probe.score]
    words = (
        f"A small dot is a seed, a diamond the mean of {len(probe.seeds)} with its 95 % interval. "
        f"Pruned {chosen(probe.score)}: {fmt.signed(first.mean)}, interval "
        f"{fmt.signed_interval(first.low, first.high)}."
    )
    dots = [(name, gain.values) for name, gain in rows]
    low, high = _gain_range([gain for _, gain in rows])
    margin = 0.06 * (high - low)
    layout = dot_layout([name for name, _ in rows], "net shed weights for each weight pruned")
    layout["xaxis"]["range"] = [low - margin, high + margin]
    layout["shapes"] = [
        upright_line(mark, MUTED) for mark in (0.0, _ABSENT_BELOW, _PRESENT_ABOVE) if mark <= high
    ]
    means = _mean_dots([gain.mean for _, gain in rows], "mean, 95 % interval", "+.4f")
    means["error_x"] = _interval_bars([gain for _, gain in rows])
    return Plot(
        key="gain",
        title="Cascade gain of each seed",
        caption=f"{words} Dotted lines are the limits of the verdicts: 0, 0.1 and 1.",
        alternative=f"Dot plot of gains. {words}",
        figure={
            "data": [means, _seed_dots(dots, probe.seeds, "+.4f")],
            "layout": layout,
            "narrow": dot_narrow([name for name, _ in rows]),
        },
        height_px=140 + _ROW_PX * len(rows),
    )


def gain_table(probe: ProbeRecord) -> Table:
    """Verdict, gain and interval of each score."""
    verdicts = {chosen(score): gain.verdict for score, gain in probe.gains.items()}
    rows = [
        [
            name,
            verdicts.get(name, ""),
            fmt.signed(gain.mean),
            fmt.signed_interval(gain.low, gain.high),
        ]
        for name, gain in _gains(probe)
    ]
    return Table(["Pruned", "Verdict", "Gain", "95 % interval"], rows)


def arms_table(probe: ProbeRecord) -> Table:
    """What each treated arm shed at the end beside its control, seed by seed."""
    rows = []
    for score, gain in probe.gains.items():
        arms, controls = probe.over_seeds(score), probe.control_curves(score)
        for arm, control, value in zip(arms, controls, gain.values, strict=True):
            shed, other = arm.shed[-1].shed, control[-1].shed
            numbers = (arm.pruned, arm.shed[-1].kept, shed, other, shed - other)
            name = f"{chosen(score)}, seed {arm.seed}"
            rows.append([name, *map(fmt.count, numbers), fmt.signed(value)])
    headers = ["Pruned", "Weights pruned", "Can be shed", "Shed", "Control, same positions", "Net"]
    return Table([*headers, "Gain"], rows)


def overlap_plot(probe: ProbeRecord) -> Plot:
    """Kept sets at the end against those of one-shot magnitude pruning, for each arm."""
    names = probe.names
    means = [probe.overlap_with_one_shot[name] for name in names]
    dots = [
        (name, [arm.overlap_with_one_shot.jaccard for arm in probe.over_seeds(name)])
        for name in names
    ]
    chance = {
        "type": "scatter",
        "mode": "markers",
        "name": "random sets of this size",
        "x": [rounded(_by_chance(probe.over_seeds(name))) for name in names],
        "y": list(range(len(names))),
        "marker": {"color": MUTED, "symbol": "x-thin-open", "size": 10, "line": {"width": 2}},
        "hovertemplate": "by chance %{x:.2%}<extra></extra>",
    }
    layout = dot_layout(names, "kept by both, of those kept by either")
    layout["xaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25}
    target = "" if probe.target_sparsity is None else f" at {fmt.share(probe.target_sparsity)}"
    words = (
        f"What magnitude would keep{target and f'{target} sparsity'}, by the weights at the end of "
        "an arm and by those of the dense model (Jaccard index): "
        + ", ".join(f"{name} {fmt.percent(mean)}" for name, mean in zip(names, means, strict=True))
        + ". The control arm shows what training alone changes."
    )
    return Plot(
        key="overlap",
        title="Kept sets against one-shot magnitude pruning",
        caption=words,
        alternative=f"Dot plot of the arms. {words}",
        figure={
            "data": [
                _mean_dots(means, "mean", ".2%"),
                _seed_dots(dots, probe.seeds, ".2%"),
                chance,
            ],
            "layout": layout,
            "narrow": dot_narrow(names),
        },
        height_px=140 + _ROW_PX * len(names),
        table=_overlap_table(probe),
    )


def without_shed_table(probe: ProbeRecord) -> Table:
    """What zeroing the shed weights changes: in each arm the largest change over the seeds."""
    rows = []
    for name in probe.names:
        arms = probe.over_seeds(name)
        shed = statistics.fmean(arm.shed[-1].shed for arm in arms)
        loss = max((arm.without_shed.loss_change for arm in arms), key=abs)
        outputs = max(arm.without_shed.output_change for arm in arms)
        texts = (fmt.amount(shed), fmt.signed_percent(loss, 3), fmt.percent(outputs, 3))
        rows.append([name, *texts])
    return Table(["Arm", "Shed, mean over seeds", "Loss changes by", "Outputs change by"], rows)


def _gains(probe: ProbeRecord) -> list[tuple[str, GainResult]]:
    """For each score the gain, and that against the RMS of now."""
    return [
        row
        for score, gain in probe.gains.items()
        for row in ((chosen(score), gain), (f"{chosen(score)}, against now", gain.relative))
    ]


def _gain_range(gains: Sequence[GainResult]) -> tuple[float, float]:
    """What an axis of gains has to show; the limit of `present` where it is not far off."""
    values = [value for gain in gains for value in (*gain.values, gain.low, gain.high)]
    known = [value for value in values if value is not None]
    low, high = min(0.0, *known), max(_ABSENT_BELOW, *known)
    return low, max(high, _PRESENT_ABOVE) if high > _PRESENT_ABOVE / 3 else high


def _interval_bars(gains: Sequence[GainResult]) -> Figure:
    """Error bars from the means to the ends of the intervals; none where there is no interval."""
    above = [0.0 if gain.high is None else gain.high - gain.mean for gain in gains]
    below = [0.0 if gain.low is None else gain.mean - gain.low for gain in gains]
    ends = {"array": [rounded(v) for v in above], "arrayminus": [rounded(v) for v in below]}
    return {"type": "data", "symmetric": False, **ends} | {
        "color": PRUNED,
        "thickness": 2.5,
        "width": 9,
    }


def _mean_dots(means: Sequence[float], name: str, shown: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [rounded(mean) for mean in means],
        "y": list(range(len(means))),
        "marker": {"color": PRUNED, "symbol": "diamond", "size": 11},
        "hovertemplate": f"mean %{{x:{shown}}}<extra></extra>",
    }


def _seed_dots(
    rows: Sequence[tuple[str, Sequence[float]]], seeds: Sequence[int], shown: str
) -> Figure:
    """A dot for each seed, a little above its row's mean."""
    places = [place for place, (_, values) in enumerate(rows) for _ in values]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "one seed",
        "x": [rounded(value) for _, values in rows for value in values],
        "y": [place - 0.26 for place in places],
        "customdata": [seed for _ in rows for seed in seeds],
        "marker": {"color": DENSE, "size": 7},
        "hovertemplate": f"seed %{{customdata}}: %{{x:{shown}}}<extra></extra>",
    }


def _by_chance(arms: Sequence[ArmResult]) -> float:
    return statistics.fmean(arm.overlap_with_one_shot.expected for arm in arms)


def _overlap_table(probe: ProbeRecord) -> Table:
    rows = []
    for name in probe.names:
        arms = probe.over_seeds(name)
        values = [arm.overlap_with_one_shot.jaccard for arm in arms]
        numbers = (
            probe.overlap_with_one_shot[name],
            min(values),
            max(values),
            _by_chance(arms),
        )
        rows.append([name, *map(fmt.percent, numbers)])
    return Table(["Arm", "Mean", "Lowest seed", "Highest seed", "By chance"], rows)

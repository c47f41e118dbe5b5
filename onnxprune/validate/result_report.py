"""The pages of a bench and of a gate, from what `bench --json` and `check --json` printed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.model import atomic_write_text
from onnxprune.validate import report_format as fmt
from onnxprune.validate.gate import GateResult
from onnxprune.validate.report_page import Group, facts_table, present, render_page
from onnxprune.validate.report_plots import Plot, Table
from onnxprune.validate.report_plots_bench import (
    models_table,
    operator_tables,
    quantile_plot,
    speedup_plot,
)
from onnxprune.validate.report_plots_cost import (
    cost_plot,
    cost_table,
    cost_texts,
    cost_words,
    paired_layers,
)
from onnxprune.validate.report_plots_distribution import latency_distribution, ratio_distribution
from onnxprune.validate.report_summary import KeyFigure, Tone, speed_verdict
from onnxprune.validate.result_record import (
    BenchedBatch,
    BenchedModel,
    BenchRecord,
    CheckedDemand,
    GateRecord,
    read_result,
)

_MAX_MODELS = 60
_MAX_BATCHES = 12
_MAX_COSTS = 6
_MAX_CHECKS = 2000
_MAX_SENTENCES = 20
_MAX_ITEMS = 4
_NO_DECISION = (
    "A bench measures time alone. Whether a model may ship is decided by onnxprune check with a "
    "policy."
)
_ORDER = ("fail", "error", "skipped", "pass")
_WORDS = {
    "fail": "failed",
    "error": "ended in an error",
    "skipped": "not checked",
    "pass": "passed",
}
_SPEED_TONES: dict[str, Tone] = {"faster": "good", "slower": "bad", "inconclusive": "unsure"}


def build_result_report(path: Path) -> str:
    """The page for the result of a bench or a gate, as HTML text.

    Args:
        path: The JSON file.

    Raises:
        UsageError: It is neither, or damaged.
    """
    record = read_result(Path(path))
    return _gate_page(record) if isinstance(record, GateRecord) else _bench_page(record)


def write_result_report(path: Path, out: Path) -> None:
    """Write the page for the result of a bench or a gate to the file `out`.

    Args:
        path: The JSON file.
        out: The HTML file.

    Raises:
        UsageError: As `build_result_report`.
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), build_result_report(path))


def write_gate_report(result: GateResult, out: Path) -> None:
    """Write the page for the result of a gate to the file `out`.

    Args:
        result: What `check` found.
        out: The HTML file.

    Raises:
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), _gate_page(GateRecord.model_validate(result.to_json())))


def write_bench_report(result: Mapping[str, Any], out: Path) -> None:
    """Write the page for the result of a bench to the file `out`.

    Args:
        result: What `bench --json` prints, see `batches_json`.
        out: The HTML file.

    Raises:
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), _bench_page(BenchRecord.model_validate(result)))


def _render(
    title: str,
    groups: Sequence[Group],
    figures: Sequence[KeyFigure],
    outcome: Sequence[str],
    facts: Sequence[tuple[str, Table]],
) -> str:
    shown = [group for group in groups if not group.empty]
    ends = [("environment", "Environment")] if facts else []
    return render_page(
        "result.html.j2",
        shown,
        title=title,
        sections=[("summary", "Summary"), *((g.key, g.title) for g in shown), *ends],
        figures=figures,
        outcome=outcome,
        notes=[],
        facts=facts,
        tool_version=None,
    )


def _bench_page(bench: BenchRecord) -> str:
    models = bench.models[:_MAX_MODELS]
    names = fmt.file_labels([model.path for model in models], 60)
    outcome = _verdicts(bench)
    left_out = len(bench.models) - len(models)
    if left_out:
        outcome.append(f"{left_out} more models are left out here; the JSON file has them.")
    shown = bench.batches[:_MAX_BATCHES]
    if len(bench.batches) > len(shown):
        rest = len(bench.batches) - len(shown)
        outcome.append(f"{rest} more batch sizes are left out here; the JSON file has them.")
    operators = operator_tables(names, models)
    compared = _by_batch(names, shown) if shown else (names, models)
    return _render(
        f"Latency of {fmt.count(len(bench.models))} models",
        [
            Group(
                "speed",
                "Speed",
                present([speedup_plot(*compared), None if shown else _ratio_plot(names, bench)]),
            ),
            Group(
                "latency",
                "Latency",
                present(
                    [quantile_plot(names, models), None if shown else _call_plot(names, bench)]
                ),
                texts=_without_distribution([bench, *shown]),
                tables=[("All models", models_table(names, models))] if not shown else [],
            ),
            Group(
                "batches",
                "Batch sizes",
                plots=present(
                    [plot(names, batch) for batch in shown for plot in (_ratio_plot, _call_plot)]
                ),
                tables=[
                    (_batch_name(batch), models_table(names, batch.models[:_MAX_MODELS]))
                    for batch in shown
                    if len(batch.models) == len(bench.models)
                ],
            ),
            Group("operators", "Operators", pair=True, beside=operators),
            _cost_group(names, models),
        ],
        _speed_figures(names, bench),
        [*outcome, _NO_DECISION],
        [("Where latency was measured", facts_table(fmt.flatten(bench.environment)))],
    )


def _call_plot(names: Sequence[str], batch: BenchedBatch) -> Plot | None:
    key, of = _batch_key(batch)
    models = batch.models[: len(names)]
    return latency_distribution(
        names[: len(models)], models, f"calls{key}", f"Distribution of latencies{of}"
    )


def _ratio_plot(names: Sequence[str], batch: BenchedBatch) -> Plot | None:
    key, of = _batch_key(batch)
    models = batch.models[: len(names)]
    return ratio_distribution(
        names[: len(models)], models, f"rounds{key}", f"Speed round by round{of}"
    )


def _batch_key(batch: BenchedBatch) -> tuple[str, str]:
    """What tells keys and titles of one batch size from those of others."""
    if batch.batch is None:
        return "", ""
    return f"-{batch.batch}", f", {_batch_name(batch).lower()}"


def _without_distribution(batches: Sequence[BenchedBatch]) -> list[str]:
    if any(model.quantiles_ms or model.samples for batch in batches for model in batch.models):
        return []
    return [
        "This result holds quantiles alone and no distributions; an older version wrote it. "
        "Measure again to see them."
    ]


def _cost_group(names: Sequence[str], models: Sequence[BenchedModel]) -> Group:
    """What each layer of the profiled models costs."""
    plots: list[Plot] = []
    tables: list[tuple[str, Table]] = []
    texts: list[str] = []
    for number, (name, model) in enumerate(zip(names, models, strict=True)):
        if model.cost is None or not model.cost.layers or len(tables) == _MAX_COSTS:
            continue
        short = fmt.shorten(name, 80)
        layers, words = paired_layers(model.cost, None), cost_words(model.cost)
        plot = cost_plot(layers, f"cost-{number}", f"Multiply-adds of each layer of {short}", words)
        if plot is None:
            texts.append(f"{short}: {words}")
        else:
            plots.append(plot)
        tables.append((f"Cost of each layer of {short}", cost_table(layers, compared=False)))
        texts[:0] = cost_texts(model.cost) if len(tables) == 1 else []
    return Group("cost", "Cost per layer", plots, texts=texts, tables=tables)


def _verdicts(bench: BenchRecord) -> list[str]:
    """A line a model; of several batch sizes, each with its size."""
    lines = []
    for batch in bench.batches[:_MAX_BATCHES] or [bench]:
        prefix = f"{_batch_name(batch)}: " if bench.batches else ""
        own = (batch.verdict or "").splitlines()
        lines += [prefix + fmt.shorten(line, 1000) for line in own if line]
    return lines


def _by_batch(
    names: Sequence[str], batches: Sequence[BenchedBatch]
) -> tuple[list[str], list[BenchedModel]]:
    """The baseline, and every other model at every batch size."""
    labels, models = [names[0]], [batches[0].models[0]]
    for index, name in enumerate(names[1:], start=1):
        for batch in batches:
            if index < len(batch.models):
                labels.append(f"{fmt.shorten(name, 60)}, {_batch_name(batch).lower()}")
                models.append(batch.models[index])
    return labels, models


def _batch_name(batch: BenchedBatch) -> str:
    return "Batch size not known" if batch.batch is None else f"Batch size {batch.batch}"


def _speed_figures(names: Sequence[str], bench: BenchRecord) -> list[KeyFigure]:
    figures = []
    for number, (name, model) in enumerate(zip(names, bench.models, strict=False)):
        speedup = model.speedup
        if number == 0 or speedup is None or number > 8:
            continue
        verdict = speed_verdict(speedup)
        word = "no speedup" if verdict == "same" else verdict
        at = f"batch size {bench.batches[0].batch}: " if bench.batches else ""
        detail = f"{at}{word}, 95 % interval {fmt.interval(speedup.low, speedup.high, 3)}"
        tone = _SPEED_TONES.get(verdict, "neutral")
        figures.append(
            KeyFigure(
                f"speed-{number}", fmt.shorten(name, 60), fmt.ratio(speedup.ratio), detail, tone
            )
        )
    return figures


def _gate_page(gate: GateRecord) -> str:
    passed = gate.ships
    counts = {status: sum(c.status == status for c in gate.checks) for status in _ORDER}
    figures = [
        KeyFigure(
            "verdict",
            "May it ship?",
            "Yes" if passed else "No",
            "every check passed" if passed else "at least one check did not pass",
            "good" if passed else "bad",
        )
    ]
    tones: dict[str, Tone] = {"fail": "bad", "error": "bad", "skipped": "unsure", "pass": "good"}
    for status in _ORDER:
        if counts[status] or status == "pass":
            label = fmt.capital(_WORDS[status])
            detail = f"of {fmt.count(len(gate.checks))} checks"
            figures.append(
                KeyFigure(status, label, fmt.count(counts[status]), detail, tones[status])
            )
    ordered = sorted(gate.checks, key=lambda check: _ORDER.index(check.status))[:_MAX_CHECKS]
    open_checks = [check for check in ordered if check.status != "pass"]
    outcome = [_sentence(check) for check in open_checks[:_MAX_SENTENCES]]
    if len(open_checks) > _MAX_SENTENCES:
        rest = len(open_checks) - _MAX_SENTENCES
        outcome.append(f"{fmt.count(rest)} more did not pass; the table below has them.")
    if not gate.checks:
        outcome.append("Nothing was checked, so nothing passed.")
    elif not outcome:
        outcome.append("Every demand of the policy is met.")
    facts = [("model", gate.model or "unknown"), ("policy", gate.policy or "unknown")]
    title = Path(gate.model).name if gate.model else "the artifact"
    return _render(
        f"Gate for {fmt.shorten(title, 120)}",
        [Group("checks", "Checks", tables=[("Every check", _checks_table(ordered))])],
        figures,
        outcome,
        [("What was checked", facts_table(facts))],
    )


def _sentence(check: CheckedDemand) -> str:
    """What became of a check that did not pass; the message of one not made says so itself."""
    words = "" if check.status == "skipped" else f" {_WORDS[check.status]}"
    return f"{check.name}{words}: {fmt.shorten(check.message, 1000)}"


def _checks_table(checks: Sequence[CheckedDemand]) -> Table:
    rows = [
        [
            fmt.shorten(check.name, 120),
            _WORDS[check.status],
            fmt.shorten(check.message, 1000),
            _text(check.required),
            _text(check.measured),
            fmt.duration(check.seconds),
        ]
        for check in checks
    ]
    headers = ["Check", "Result", "What was found", "Required", "Measured", "Took"]
    return Table(headers, rows, words=True)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return fmt.number(value, 6)
    if isinstance(value, dict):
        items = [f"{key}: {_text(item)}" for key, item in list(value.items())[:_MAX_ITEMS]]
        rest = len(value) - len(items)
        return "; ".join([*items, *([f"and {rest} more"] if rest else [])])
    if isinstance(value, list):
        return fmt.shorten(", ".join(map(_text, value)), 200)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fmt.shorten(text, 200)

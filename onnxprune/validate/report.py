"""The page of a run, and which page a folder gets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.model import atomic_write_text
from onnxprune.run_directory import CHECK_FILE, RunDirectory, Status
from onnxprune.validate import report_format as fmt
from onnxprune.validate.probe_report import build_probe_report
from onnxprune.validate.report_decision import decide
from onnxprune.validate.report_page import Group, facts_table, present, render_page
from onnxprune.validate.report_plots import Table
from onnxprune.validate.report_plots_cost import (
    cost_plot,
    cost_table,
    cost_texts,
    cost_words,
    paired_layers,
)
from onnxprune.validate.report_plots_latency import latency_plot, ratio_plot
from onnxprune.validate.report_plots_shedding import budget_words, event_plot, shed_plot
from onnxprune.validate.report_plots_tensors import histogram_plot, tensor_plot
from onnxprune.validate.report_plots_training import loss_plot, quality_plot
from onnxprune.validate.report_summary import main_metric, summarize
from onnxprune.validate.result_record import GateRecord, read_gate
from onnxprune.validate.run_record import Results, RunRecord, TensorResult, read_run

_MAX_PRUNABLE_ROWS = 700
_MAX_OTHER_ROWS = 250
_MAX_RECIPE_CHARACTERS = 100_000


def build_report(run_dir: Path, status: Status | None = None, check: Path | None = None) -> str:
    """The page for the run or the probe in `run_dir`, as HTML text under 6 MB.

    A run that was interrupted, failed or is still running gives a page that says so and shows what
    has been recorded. A folder that holds both a run and a probe gives the page of the run.

    Args:
        run_dir: The run directory, or the folder of a probe.
        status: How the run ended, where `run.json` does not say so yet.
        check: What `check --json` printed of the run's model; else `check.json` in `run_dir`, if
            there is one.

    Raises:
        UsageError: `run_dir` holds neither, the probe has not finished, or a file is missing or
            damaged.
    """
    run_dir = Path(run_dir)
    if _holds_probe(run_dir):
        if check is not None:
            raise UsageError(
                "a probe has no model to be checked", where=run_dir, remedy="leave out --check"
            )
        return build_probe_report(run_dir)
    run = read_run(run_dir)
    if check is None and (run_dir / CHECK_FILE).exists():
        check = run_dir / CHECK_FILE
    gate = None if check is None else read_gate(check)
    if status is not None:
        run = replace(run, info=run.info.model_copy(update={"status": status}))
    return _render(run, gate)


def write_report(
    run_dir: Path, out: Path, status: Status | None = None, check: Path | None = None
) -> None:
    """Write the page for the run or the probe in `run_dir` to the file `out`.

    Args:
        run_dir: The run directory, or the folder of a probe.
        out: The HTML file.
        status: How the run ended, where `run.json` does not say so yet.
        check: As in `build_report`.

    Raises:
        UsageError: As `build_report`.
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), build_report(run_dir, status, check))


def report_path(run_dir: Path) -> Path:
    """Where the page of a run or a probe lies unless another place is named.

    Args:
        run_dir: The run directory, or the folder of a probe.
    """
    folder = RunDirectory(Path(run_dir))
    return folder.probe_page if _holds_probe(folder.path) else folder.report


def _holds_probe(folder: Path) -> bool:
    run = RunDirectory(folder)
    return not run.run.exists() and (run.probe.exists() or run.arms.is_dir())


def _render(run: RunRecord, gate: GateRecord | None) -> str:
    results = run.results
    groups = [group for group in _groups(run) if not group.empty]
    prunable, others, left_out = _tensor_rows(results)
    sections = [("summary", "Summary"), *((group.key, group.title) for group in groups)]
    if prunable or others:
        sections.append(("table", "Tensors"))
    sections += [("recipe", "Recipe"), ("environment", "Environment")]
    return render_page(
        "report.html.j2",
        groups,
        title=_title(run),
        summary=summarize(run),
        decision=decide(run, gate),
        sections=sections,
        run=run,
        tool_version=run.info.tool_version,
        validation=_validation_table(results),
        prunable=prunable,
        others=others,
        left_out=left_out,
        recipe=_recipe_text(run),
        notes=results.notes[:100] if results else [],
        facts=_facts(run),
    )


def _groups(run: RunRecord) -> list[Group]:
    results = run.results
    metric = main_metric(results) if results else None
    if metric is None or not any(metric in point.metrics for point in run.evals):
        metric = next((name for point in run.evals for name in point.metrics), None)
    training = Group("training", "Training", present([quality_plot(run, metric), loss_plot(run)]))
    if not training.plots:
        training = Group("training", "Training", [], texts=["No training step was recorded."])
    shedding = Group("shedding", "Shedding", present([shed_plot(run), event_plot(run)]))
    if results is None:
        return [training, shedding]
    shedding.texts.extend(budget_words(results))
    latency_tables = []
    texts = []
    if results.latency is not None:
        latency_tables.append(
            ("Where latency was measured", facts_table(fmt.flatten(results.latency.environment)))
        )
        if results.latency.verdict:
            texts.append(fmt.shorten(results.latency.verdict, 1000))
    return [
        training,
        shedding,
        Group("sparsity", "Sparsity per tensor", present([tensor_plot(results)])),
        _cost_group(results),
        Group("weights", "Weight distributions", present([histogram_plot(results)])),
        Group(
            "latency",
            "Latency",
            present([latency_plot(results), ratio_plot(results)]),
            pair=True,
            texts=texts,
            tables=[(caption, table) for caption, table in latency_tables if table.rows],
        ),
    ]


def _cost_group(results: Results) -> Group:
    cost = results.cost
    if cost is None or not cost.pruned.layers:
        return Group("cost", "Cost per layer")
    layers = paired_layers(cost.pruned, cost.dense)
    words = cost_words(cost.pruned)
    plots = present([cost_plot(layers, "cost", "Multiply-adds of each layer", words)])
    return Group(
        "cost",
        "Cost per layer",
        plots,
        texts=cost_texts(cost.pruned) + ([] if plots else [words]),
        tables=[("Cost of each layer", cost_table(layers, compared=True))],
    )


def _title(run: RunRecord) -> str:
    if run.results is not None:
        return fmt.shorten(Path(run.results.output).name or "Pruned model", 120)
    model = run.recipe.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    name = Path(source).name if isinstance(source, str) else ""
    return f"Pruning {fmt.shorten(name, 120)}" if name else "Pruning run"


def _tensor_rows(
    results: Results | None,
) -> tuple[list[TensorResult], list[TensorResult], int]:
    tensors = results.tensors if results else []
    prunable = [tensor for tensor in tensors if tensor.prunable]
    others = [tensor for tensor in tensors if not tensor.prunable]
    shown, rest = prunable[:_MAX_PRUNABLE_ROWS], others[:_MAX_OTHER_ROWS]
    return shown, rest, len(tensors) - len(shown) - len(rest)


def _validation_table(results: Results | None) -> Table | None:
    validation = results.validation if results else None
    if validation is None:
        return None
    dense, pruned = validation.dense, validation.pruned
    rows = []
    for name in list(dict.fromkeys([*dense, *pruned]))[:50]:
        before, after = dense.get(name), pruned.get(name)
        difference = None if before is None or after is None else after - before
        rows.append(
            [
                fmt.shorten(fmt.metric_name(name), 80),
                fmt.metric_value(name, before),
                fmt.metric_value(name, after),
                fmt.metric_difference(name, difference),
            ]
        )
    return Table(["Metric", "Dense", "Pruned", "Difference"], rows) if rows else None


def _facts(run: RunRecord) -> list[tuple[str, Table]]:
    """The tables of the last section."""
    results = run.results
    identity: list[tuple[str, str]] = [("source sha256", run.info.source_sha256 or "unknown")]
    tables: list[tuple[str, Table]] = []
    if results is None:
        tables.append(("Plan", facts_table(fmt.flatten(run.plan))))
    else:
        identity = [("source sha256", results.source_sha256 or run.info.source_sha256 or "unknown")]
        identity.append(("payload sha256 of the pruned model", results.payload_sha256 or "unknown"))
        for side, data in results.data.items():
            if data is not None:
                identity += fmt.flatten(data.model_dump(exclude_none=True), f"{side} data: ")
        if results.validation and results.validation.torch_vs_runtime_max_abs_error is not None:
            error = fmt.number(results.validation.torch_vs_runtime_max_abs_error)
            identity.append(("largest difference, PyTorch to ONNX Runtime", error))
        tables.append(("Environment", facts_table(fmt.flatten(results.environment))))
        tables.append(("Time", facts_table(_timing_rows(results.timing))))
    tables.insert(0, ("Model and data", facts_table(identity)))
    return [(caption, table) for caption, table in tables if table.rows]


def _timing_rows(timing: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in timing.items():
        if key.endswith("_s") and isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((key.removesuffix("_s").replace("_", " "), fmt.duration(value)))
        else:
            rows += fmt.flatten({key: value})
    return rows


def _recipe_text(run: RunRecord) -> str:
    text = run.recipe_text.strip()
    if len(text) <= _MAX_RECIPE_CHARACTERS:
        return text
    return text[:_MAX_RECIPE_CHARACTERS] + "\n… (the rest is in recipe.toml)"

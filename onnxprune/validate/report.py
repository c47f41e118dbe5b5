"""One self-contained HTML page from a run directory.

The page loads nothing: plotly.js, styles and data are inside, and its content security policy
forbids every connection and every script but its own two (by digest). What comes from the model,
the recipe or the machine is escaped.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from onnxprune.model import atomic_write_text
from onnxprune.run_directory import Status
from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import Plot, Table
from onnxprune.validate.report_plots_latency import latency_plot, ratio_plot
from onnxprune.validate.report_plots_shedding import budget_words, shed_plot
from onnxprune.validate.report_plots_tensors import histogram_plot, tensor_plot
from onnxprune.validate.report_plots_training import loss_plot, quality_plot
from onnxprune.validate.report_summary import main_metric, summarize
from onnxprune.validate.run_record import Results, RunRecord, TensorResult, read_run

_MAX_PRUNABLE_ROWS = 700
_MAX_OTHER_ROWS = 250
_MAX_RECIPE_CHARACTERS = 100_000


@dataclass(frozen=True)
class _Group:
    """A section of the page that holds plots."""

    key: str
    title: str
    plots: list[Plot]
    pair: bool = False
    texts: list[str] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)


def build_report(run_dir: Path, status: Status | None = None) -> str:
    """The page for the run in `run_dir`, as HTML text under 6 MB.

    A run that was interrupted, failed or is still running gives a page that says so and shows what
    has been recorded.

    Args:
        run_dir: The run directory.
        status: How the run ended, where `run.json` does not say so yet.

    Raises:
        UsageError: `run_dir` is no run directory, or one of its files is missing or damaged.
    """
    run = read_run(run_dir)
    if status is not None:
        run = replace(run, info=run.info.model_copy(update={"status": status}))
    return _render(run)


def write_report(run_dir: Path, out: Path, status: Status | None = None) -> None:
    """Write the page for the run in `run_dir` to the file `out`.

    Args:
        run_dir: The run directory.
        out: The HTML file.
        status: How the run ended, where `run.json` does not say so yet.

    Raises:
        UsageError: As `build_report`.
        OutputError: `out` cannot be written.
    """
    atomic_write_text(Path(out), build_report(run_dir, status))


def _render(run: RunRecord) -> str:
    results = run.results
    groups = [group for group in _groups(run) if group.plots or group.texts or group.tables]
    prunable, others, left_out = _tensor_rows(results)
    sections = [("summary", "Summary"), *((group.key, group.title) for group in groups)]
    if prunable or others:
        sections.append(("table", "Tensors"))
    sections += [("recipe", "Recipe"), ("environment", "Environment")]
    plotly_js, report_js = _script(get_plotlyjs()), _script(_asset("report.js"))
    template = _environment().get_template("report.html.j2")
    page = template.render(
        title=_title(run),
        policy=_policy([plotly_js, report_js]),
        css=Markup(_asset("report.css")),
        summary=summarize(run),
        sections=sections,
        run=run,
        validation=_validation_table(results),
        groups=groups,
        prunable=prunable,
        others=others,
        left_out=left_out,
        recipe=_recipe_text(run),
        notes=results.notes[:100] if results else [],
        facts=_facts(run),
        plots_json=_json_for_script([_plot_data(plot) for g in groups for plot in g.plots]),
        plotly_js=Markup(plotly_js),
        report_js=Markup(report_js),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _groups(run: RunRecord) -> list[_Group]:
    results = run.results
    metric = main_metric(results) if results else None
    if metric is None or not any(metric in point.metrics for point in run.evals):
        metric = next((name for point in run.evals for name in point.metrics), None)
    training = _Group("training", "Training", _present([quality_plot(run, metric), loss_plot(run)]))
    if not training.plots:
        training = _Group("training", "Training", [], texts=["No training step was recorded."])
    shedding = _Group("shedding", "Shedding", _present([shed_plot(run)]))
    if results is None:
        return [training, shedding]
    shedding.texts.extend(budget_words(results))
    latency_tables = []
    texts = []
    if results.latency is not None:
        latency_tables.append(
            ("Where latency was measured", _table(fmt.flatten(results.latency.environment)))
        )
        if results.latency.verdict:
            texts.append(fmt.shorten(results.latency.verdict, 1000))
    return [
        training,
        shedding,
        _Group("sparsity", "Sparsity per tensor", _present([tensor_plot(results)])),
        _Group("weights", "Weight distributions", _present([histogram_plot(results)])),
        _Group(
            "latency",
            "Latency",
            _present([latency_plot(results), ratio_plot(results)]),
            pair=True,
            texts=texts,
            tables=[(caption, table) for caption, table in latency_tables if table.rows],
        ),
    ]


def _present(candidates: Sequence[Plot | None]) -> list[Plot]:
    return [plot for plot in candidates if plot is not None]


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
        tables.append(("Plan", _table(fmt.flatten(run.plan))))
    else:
        identity = [("source sha256", results.source_sha256 or run.info.source_sha256 or "unknown")]
        identity.append(("payload sha256 of the pruned model", results.payload_sha256 or "unknown"))
        for side, data in results.data.items():
            if data is not None:
                identity += fmt.flatten(data.model_dump(exclude_none=True), f"{side} data: ")
        if results.validation and results.validation.torch_vs_runtime_max_abs_error is not None:
            error = fmt.number(results.validation.torch_vs_runtime_max_abs_error)
            identity.append(("largest difference, PyTorch to ONNX Runtime", error))
        tables.append(("Environment", _table(fmt.flatten(results.environment))))
        tables.append(("Time", _table(_timing_rows(results.timing))))
    tables.insert(0, ("Model and data", _table(identity)))
    return [(caption, table) for caption, table in tables if table.rows]


def _timing_rows(timing: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in timing.items():
        if key.endswith("_s") and isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((key.removesuffix("_s").replace("_", " "), fmt.duration(value)))
        else:
            rows += fmt.flatten({key: value})
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> Table:
    return Table(["Item", "Value"], [list(row) for row in rows[:300]])


def _recipe_text(run: RunRecord) -> str:
    text = run.recipe_text.strip()
    if len(text) <= _MAX_RECIPE_CHARACTERS:
        return text
    return text[:_MAX_RECIPE_CHARACTERS] + "\n… (the rest is in recipe.toml)"


def _plot_data(plot: Plot) -> dict[str, Any]:
    return {
        "key": plot.key,
        "alternative": plot.alternative,
        "figure": plot.figure,
        "height_px": plot.height_px,
        "choices": plot.choices,
        "chosen": plot.chosen,
    }


def _json_for_script(value: Any) -> Markup:
    """JSON that cannot end or open a script element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _script(text: str) -> str:
    """Script text as a browser hashes it: one kind of line end, no early end of the element."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower():
        raise ValueError("a script of the page contains `</script`")
    return text


def _policy(scripts: Sequence[str]) -> str:
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    folder = resources.files("onnxprune.validate") / "templates"
    return (folder / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": fmt.count,
        "percent": fmt.percent,
        "shorten": fmt.shorten,
        "filled": lambda tensor: round(100 * min(1.0, max(0.0, tensor.sparsity)), 1),
    }
    environment.filters.update(filters)
    return environment

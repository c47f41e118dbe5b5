"""`onnxprune evaluate`: accuracy under ONNX Runtime."""

from typing import Any

import click

from onnxprune.cli import common


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@common.data_option(required=False)
@common.recipe_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Also measure: cer (characters, CTC), miou (segmentation), map or map50 (detection), "
    "python:MODULE:FUNCTION.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Samples a call.  [default: 32]")
@common.threads_option
@common.provider_option
@common.allow_python_option
@common.set_option
@common.json_option
def command(
    models: tuple[str, ...],
    data: str | None,
    recipe: str | None,
    metrics: tuple[str, ...],
    batch_size: int | None,
    threads: int | None,
    provider: str | None,
    allow_python: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the accuracy of models on the same samples under ONNX Runtime.

    The first MODEL is the reference for agreement, and for whether a difference on these samples is
    more than chance. Preprocessing and class order come from the
    recipe; its [data] eval, or else train, is used where --data is not given.

    \b
    Example:
      onnxprune evaluate model.onnx pruned.onnx --data photos/val --recipe recipe.toml
    """
    from rich.progress import Progress

    from onnxprune import model as model_io
    from onnxprune.calibration import class_order_note, open_data
    from onnxprune.errors import UsageError
    from onnxprune.stacking import make_padding
    from onnxprune.validate import evaluate
    from onnxprune.validate.named_metrics import is_built_in, make_metrics

    resolved = common.load_recipe(
        recipe,
        settings,
        {
            "validate": {"batch_size": batch_size, "threads": threads, "provider": provider},
            "data": {"eval": data},
        },
    )
    spec = resolved.data.eval or resolved.data.train
    if spec is None:
        raise UsageError("there are no data to evaluate on", remedy="give --data SPEC")
    measured = make_metrics(metrics, blank=resolved.finetune.ctc_blank, allow_python=allow_python)
    sources = [model_io.read(model) for model in models]
    samples = open_data(
        spec,
        inputs=sources[0].inputs,
        preprocess=resolved.preprocess,
        classes=resolved.data.classes,
        num_classes=None if metrics else sources[0].class_count,
        allow_python=allow_python,
        targets="array" if any(map(is_built_in, metrics)) else "either" if metrics else "class",
        padding=make_padding(resolved.data, sources[0].inputs),
    )
    console = common.message_console()
    if resolved.data.classes is None and samples.classes is not None:
        console.print(f"note: {class_order_note(samples.classes)}")
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("evaluate", total=len(samples))
        result = evaluate(
            sources,
            samples,
            batch_size=resolved.validation.batch_size,
            provider=resolved.validation.provider,
            threads=resolved.validation.threads,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            metrics=measured,
        ).to_json()
    if as_json:
        common.print_json(result)
        return
    _print(result)


def _number(value: float | None) -> str:
    """A metric with four digits behind the point, or of its own where it is small."""
    if value is None:
        return "–"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"


def _print(result: dict[str, Any]) -> None:
    """The metrics, and which differences to the first model are more than chance."""
    from rich.table import Column, Table

    from onnxprune.validate.report_format import numbered

    console = common.output_console()
    names = list(dict.fromkeys(name for model in result["models"] for name in model["metrics"]))
    table = Table(Column("model", overflow="fold"), *names, title=f"{result['samples']} samples")
    labels = numbered([model["path"] for model in result["models"]])
    for label, model in zip(labels, result["models"], strict=True):
        values = [model["metrics"].get(name) for name in names]
        table.add_row(label, *map(_number, values))
    console.print(table)
    if not any(model["against_first"] for model in result["models"]):
        return
    against = Table(
        Column("model", overflow="fold"),
        *("metric", "difference", "95 % interval", "p", ""),
        title=f"against {labels[0]}",
    )
    for label, model in zip(labels, result["models"], strict=True):
        for name, found in model["against_first"].items():
            chance = found["low"] <= 0 <= found["high"]
            against.add_row(
                label,
                name,
                f"{found['difference']:+.4f}",
                f"{found['low']:+.4f} to {found['high']:+.4f}",
                "–" if found["p_value"] is None else f"{found['p_value']:.2g}",
                "may be chance" if chance else "more than chance",
            )
    console.print(against)

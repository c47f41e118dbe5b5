"""`onnxprune compile`: sparse CPU kernels in the place of layers that are mostly zero."""

from typing import TYPE_CHECKING, cast

import click

from onnxprune.cli import common

if TYPE_CHECKING:
    from onnxprune.runtime import CompiledRecord
    from onnxprune.runtime.half import StoredValues
    from onnxprune.runtime.layouts import LayoutRule
    from onnxprune.runtime.plan import SampleRule


@click.command("compile")
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write.")
@click.option("--tune", is_flag=True, help="Choose by measuring on this machine.")
@click.option(
    "--tune-seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Longest time to measure with --tune.",
)
@click.option(
    "--min-sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="Replace layers from this sparsity on.  [default: 0.7, 0.55 in blocks of 4 outputs, 0.8 "
    "where a layer reads one vector]",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only these nodes or weights.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these dense.")
@click.option(
    "--layouts",
    type=click.Choice(["plain", "pointwise", "strided", "all"]),
    default="strided",
    show_default=True,
    help="Which convolutions read values that lie in memory tile by tile.",
)
@click.option(
    "--samples",
    type=click.Choice(["auto", "together", "split"]),
    default="auto",
    show_default=True,
    help="Whether the samples of a batch are computed together, or one after the other, which "
    "saves memory traffic; auto decides by the model and --threads.",
)
@click.option(
    "--values",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="How values that are not zero are stored. float16 rounds them; the operators compute in "
    "float32 either way.",
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZES", help="As x=1,3,224,224.")
@common.threads_option
@common.json_option
def command(
    model: str,
    output: str,
    tune: bool,
    tune_seconds: float,
    min_sparsity: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    layouts: str,
    samples: str,
    values: str,
    shapes: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Put sparse CPU kernels into MODEL, and prove that it computes the same.

    The result runs in ONNX Runtime with the package's library of operators:
    onnxprune.runtime.session("compiled.onnx") in Python. A model in which nothing gains is written
    as it is.

    \b
    Example:
      onnxprune compile pruned.onnx -o compiled.onnx --tune --threads 1
      onnxprune bench model.onnx pruned.onnx compiled.onnx --threads 1
    """
    from rich.progress import Progress

    from onnxprune.runtime import CompileOptions, Thresholds, compile_file

    thresholds = Thresholds()
    if min_sparsity is not None:
        thresholds = Thresholds(
            *(min_sparsity, min_sparsity, min_sparsity), least_speedup=0, least_gain=0
        )
    options = CompileOptions(
        thresholds=thresholds,
        layouts=cast("LayoutRule", layouts),
        include=include or ("*",),
        exclude=exclude,
        samples=cast("SampleRule", samples),
        threads=threads,
    )
    console = common.message_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("measuring" if tune else "compiling", total=1.0 if tune else None)
        record = compile_file(
            model,
            output,
            options,
            values=cast("StoredValues", values),
            tune_seconds=tune_seconds if tune else None,
            threads=threads,
            shapes=common.parse_shapes(shapes) or None,
            on_progress=lambda share: bars.update(task, completed=share),
        ).record
    if as_json:
        common.print_json(
            {"output": output, **record.model_dump(mode="json", exclude={"sparsity"})}
        )
        return
    _print(record, output)


def _print(record: "CompiledRecord", output: str) -> None:
    from rich.table import Table

    console = common.output_console()
    measured = any(layer.dense_ms is not None for layer in record.layers)
    times = ("dense", "sparse") if measured else ()
    table = Table("layer", "operator", "shape", "sparsity", "block", "layouts", *times, "sparse")
    for layer in record.layers:
        layouts = f"{layer.x_layout} → {layer.y_layout}" if layer.sparse else ""
        table.add_row(
            layer.name,
            layer.op_type,
            "×".join(map(str, layer.shape)) or "–",
            common.percent(layer.sparsity, 1),
            str(layer.block) if layer.sparse else "",
            layouts,
            *(_time(value) for value in (layer.dense_ms, layer.sparse_ms) if measured),
            " + ".join(["yes", *layer.fused]) if layer.sparse else f"no: {layer.reason}",
        )
    console.print(table)
    if not record.replaced:
        console.print(f"nothing to gain from sparse kernels: {output} is the model as it was")
        return
    rounded = sum(layer.values == "float16" for layer in record.layers)
    stored = f", {rounded} of them with values rounded to float16" if rounded else ""
    console.print(
        f"{record.replaced} of {len(record.layers)} layers have sparse kernels{stored}; the "
        f"outputs differ by at most {record.largest_difference:.1e} of their root mean square"
    )
    if record.samples == "split":
        console.print("the samples of a batch are computed one after the other")
    else:
        console.print(f"the samples of a batch are computed together: {record.samples_reason}")
    console.print(f'{output}: open it with onnxprune.runtime.session("{output}")')


def _time(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} ms"

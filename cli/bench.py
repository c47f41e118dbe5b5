"""`onnxprune bench`: paired, interleaved latency."""

import click

from onnxprune.cli import common


@click.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="DENSE PRUNED...")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples a call."
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZES", help="As x=1,3,224,224.")
@click.option("--rounds", type=click.IntRange(5), help="Rounds; by default as time allows.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Longest time to measure.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and inputs.")
@common.threads_option
@common.provider_option
@common.json_option
def command(
    models: tuple[str, ...],
    batch: int,
    shapes: tuple[str, ...],
    rounds: int | None,
    seconds: float,
    seed: int,
    threads: int | None,
    provider: str | None,
    as_json: bool,
) -> None:
    """Time models against each other, interleaved in random order in one process.

    The first model is the baseline. The speedup is the median over rounds of its latency divided by
    the other's, with a bootstrap 95 % interval.

    \b
    Example:
      onnxprune bench model.onnx pruned.onnx --threads 1
    """
    from rich.progress import Progress
    from rich.table import Table

    from onnxprune.validate import bench

    console = common.message_console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("measuring", total=None)
        result = bench(
            list(models),
            batch=batch,
            shapes=common.parse_shapes(shapes) or None,
            threads=threads,
            provider=provider,
            rounds=rounds,
            max_seconds=seconds,
            seed=seed,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    report = result.to_json()
    if as_json:
        common.print_json(report)
        return
    table = Table("model", "median", "p90", "p99", "speedup", "95 % interval")
    for model in report["models"]:
        latency, speedup = model["latency_ms"], model["speedup"]
        table.add_row(
            model["path"],
            *(f"{latency[key]:.3f} ms" for key in ("median", "p90", "p99")),
            f"{speedup['ratio']:.3f}×",
            f"{speedup['low']:.3f} to {speedup['high']:.3f}",
        )
    output = common.output_console()
    output.print(table)
    output.print(report["verdict"])

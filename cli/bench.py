"""`onnxprune bench`: paired, interleaved latency."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import common

if TYPE_CHECKING:
    from rich.console import Console


class _Share(click.ParamType):
    """`2%` or `0.02` as 0.02."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """A share in (0, 1)."""
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{text!r} is no share between 0 and 1, such as 2% or 0.02", param, ctx)
        return share


class _Cores(click.ParamType):
    """`0,2-3` as [0, 2, 3]."""

    name = "cores"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Numbers of processor cores."""
        cores: set[int] = set()
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            last = last if dash else first
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 4096):
                self.fail(f"{value!r} is no list of processor cores, such as 0 or 0,2-3", param)
            cores |= set(range(int(first), int(last) + 1))
        return sorted(cores)


class _Batches(click.ParamType):
    """`1,8` as [1, 8]."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Batch sizes, at least 1 each."""
        sizes = [part.strip() for part in str(value).split(",")]
        if not all(size.isdecimal() and 1 <= int(size) < 2**31 for size in sizes):
            self.fail(f"{value!r} is no list of batch sizes, such as 8 or 1,8", param, ctx)
        return [int(size) for size in sizes]


@click.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="DENSE PRUNED...")
@click.option(
    "--batch",
    "batch_lists",
    type=_Batches(),
    multiple=True,
    metavar="SIZES",
    help="Samples a call, as 8 or 1,8: measured one after the other. Can be repeated.  "
    "[default: 1]",
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZES", help="As x=1,3,224,224.")
@click.option(
    "--precision",
    type=_Share(),
    metavar="SHARE",
    default="1%",
    show_default=True,
    help="Wanted half-width of the 95 % interval of the speedup, as 2% or 0.02; measuring ends "
    "when it is reached.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Longest time to measure, for each batch size.",
)
@click.option(
    "--rounds", type=click.IntRange(5), help="So many rounds, whatever time and precision."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and inputs.")
@common.threads_option
@common.provider_option
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the execution provider, such as trt_fp16_enable=1. Can be repeated.",
)
@click.option(
    "--optimization",
    type=click.Choice(["none", "basic", "extended", "all"]),
    default="all",
    show_default=True,
    help="Level of ONNX Runtime's graph optimisation.",
)
@click.option("--processes", is_flag=True, help="Run each model in a process of its own.")
@click.option("--pin", "cores", type=_Cores(), metavar="CORES", help="Cores to use, as 0 or 0,2-3.")
@click.option(
    "--device-io",
    is_flag=True,
    help="With CUDA: keep inputs and outputs on the device, time by CUDA events.",
)
@click.option(
    "--spinning/--no-spinning",
    default=True,
    show_default=True,
    help="Whether worker threads spin while a call runs, as ONNX Runtime's do by default.",
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu times how long a call has a processor core, for --threads 1 on a busy machine.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Also show the time of each operator; --html and --json have that of each layer, too.",
)
@click.option("--html", metavar="FILE", help="Write the result as a page.")
@common.json_option
def command(
    models: tuple[str, ...],
    batch_lists: tuple[list[int], ...],
    shapes: tuple[str, ...],
    precision: float,
    seconds: float,
    rounds: int | None,
    seed: int,
    threads: int | None,
    provider: str | None,
    provider_options: tuple[str, ...],
    optimization: str,
    processes: bool,
    cores: list[int] | None,
    device_io: bool,
    spinning: bool,
    clock: str,
    profile: bool,
    html: str | None,
    as_json: bool,
) -> None:
    """Time models against each other, interleaved in random order.

    The first model is the baseline. The speedup is its latency divided by the other's in the same
    round, with a bootstrap 95 % interval over repeated loading of the models.

    \b
    Example:
      onnxprune bench model.onnx pruned.onnx --threads 1 --precision 2%
    """
    from rich.progress import Progress

    from onnxprune.files import check_writable
    from onnxprune.model import read
    from onnxprune.random_inputs import batched_shapes
    from onnxprune.validate import BenchResult, bench
    from onnxprune.validate.latency_result import batches_json

    if html is not None:
        check_writable(html)
    batches = list(dict.fromkeys(size for sizes in batch_lists for size in sizes)) or [1]
    given = common.parse_shapes(shapes)
    whole = dict.fromkeys(batches, given)
    if len(batches) > 1:
        inputs = read(models[0]).inputs
        whole = {size: batched_shapes(inputs, given, size) for size in batches}
    console = common.message_console()

    def measured(size: int) -> BenchResult:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
            task = bars.add_task(f"measuring, batch size {size}", total=None)
            return bench(
                list(models),
                batch=size,
                shapes=whole[size] or None,
                threads=threads,
                provider=provider,
                rounds=rounds,
                max_seconds=seconds,
                seed=seed,
                on_progress=lambda done, total: bars.update(task, completed=done, total=total),
                precision=precision,
                optimization=optimization,
                provider_options=common.parse_pairs("--provider-option", provider_options),
                processes=processes,
                cores=cores,
                device_io=device_io,
                clock=clock,
                spinning=spinning,
                profile=profile,
            )

    report = batches_json({size: measured(size) for size in batches})
    if html is not None:
        from onnxprune.validate.result_report import write_bench_report

        write_bench_report(report, Path(html))
    if as_json:
        common.print_json(report)
        return
    for one in report.get("batches", [report]):
        _print(one, common.output_console())


def _print(report: dict[str, Any], output: "Console") -> None:
    from rich.table import Column, Table

    from onnxprune.validate.report_format import numbered

    if "batch" in report:
        output.print(f"batch size {report['batch']}")
    columns = ("median", "p90", "p99", "samples/s", "load", "memory", "file")
    table = Table(Column("model", overflow="fold"), *columns)
    speedups = Table(Column("model", overflow="fold"), "speedup", "95 % interval", "")
    labels = numbered([model["path"] for model in report["models"]])
    for index, (label, model) in enumerate(zip(labels, report["models"], strict=True)):
        latency, speedup, memory = model["latency_ms"], model["speedup"], model["peak_memory_bytes"]
        table.add_row(
            label,
            *(f"{latency[key]:.3f} ms" for key in ("median", "p90", "p99")),
            f"{model['throughput_per_s']:.1f}",
            f"{model['load_ms']:.0f} ms",
            "–" if memory is None else common.size_text(memory),
            common.size_text(model["size_bytes"]),
        )
        if index:
            interval = f"{speedup['low']:.3f} to {speedup['high']:.3f}"
            speedups.add_row(label, f"{speedup['ratio']:.3f}×", interval, model["verdict"])
    output.print(table)
    if speedups.row_count:
        output.print(speedups)
    for label, model in zip(labels, report["models"], strict=True):
        if model["operators"] is not None:
            operators = Table("operator", "nodes", "in a call", "share", title=label)
            for entry in model["operators"]:
                operators.add_row(
                    entry["op_type"],
                    str(entry["nodes"]),
                    f"{entry['ms']:.3f} ms",
                    common.percent(entry["share"], 1),
                )
            output.print(operators)
    output.print(_conditions(report["environment"]))
    output.print(report["verdict"])


def _conditions(environment: dict[str, Any]) -> str:
    busy = environment["busy_cores_of_others"]
    others = "" if busy is None else f", other programs kept {busy:.1f} of them busy"
    return (
        f"{environment['rounds']} rounds in {environment['openings']} openings, "
        f"{environment['provider']} of ONNX Runtime {environment['onnxruntime']}, "
        f"threads: {environment['threads']}, graph optimisation: "
        f"{environment['graph_optimization']}, {environment['cpu']} with {environment['cores']} "
        f"cores{others}, governor: {environment['governor'] or 'not known'}"
    )

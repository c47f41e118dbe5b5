"""`onnxprune prune`: the main job."""

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import common
from onnxprune.cli.training import need_training_packages, stop_on_signal

if TYPE_CHECKING:
    from onnxprune.job import Job


@click.command("prune")
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUT", help="The pruned model to write.")
@common.recipe_option
@common.data_option(required=False)
@click.option("--eval-data", metavar="SPEC", help="Samples to measure accuracy on.")
@click.option("--sparsity", type=float, help="Zeros / prunable weights, in [0, 1). Default 0.8.")
@click.option(
    "--method", help="cascade-gmp, gmp, random, one-shot or iterative.  [default: cascade-gmp]"
)
@click.option("--pattern", help="unstructured, N:M or block:RxC.  [default: unstructured]")
@click.option("--epochs", type=float, help="Passes over the data; 0 prunes without training.")
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
@click.option("--run-dir", metavar="DIR", help="Checkpoints, log and report.  [default: OUT.run]")
@click.option("--resume", is_flag=True, help="Continue the run in the run directory.")
@click.option("--to-inference", is_flag=True, help="Clear training flags in the written file.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and write nothing.")
@click.option("--device", help="auto, cpu or cuda.  [default: auto]")
@common.threads_option
@common.provider_option
@common.allow_python_option
@common.set_option
@common.json_option
def command(
    model: str,
    output: str,
    recipe: str | None,
    data: str | None,
    eval_data: str | None,
    sparsity: float | None,
    method: str | None,
    pattern: str | None,
    epochs: float | None,
    seed: int | None,
    run_dir: str | None,
    resume: bool,
    to_inference: bool,
    dry_run: bool,
    device: str | None,
    threads: int | None,
    provider: str | None,
    allow_python: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prune MODEL while fine-tuning it, write it back, and validate it.

    The written file has the same graph with other values in its tensors, and metadata that say what
    was done. Without --eval-data a tenth of the data is held out; without labels the dense model is
    distilled. Ctrl-C stops after the current step; --resume goes on from there.

    \b
    Examples:
      onnxprune prune model.onnx -o pruned.onnx --data photos/ --sparsity 0.8
      onnxprune prune model.onnx -o pruned.onnx --recipe recipe.toml --dry-run
      onnxprune prune model.onnx -o pruned.onnx --recipe recipe.toml --resume
    """
    resolved = common.load_recipe(
        recipe,
        settings,
        {
            "model": {"to_inference": to_inference or None},
            "data": {"train": data, "eval": eval_data},
            "sparsity": {"target": sparsity, "method": method, "pattern": pattern},
            "finetune": {"epochs": epochs, "seed": seed, "device": device, "threads": threads},
            "validate": {"provider": provider, "threads": threads},
        },
    )
    need_training_packages()
    from onnxprune.job import prepare

    job = prepare(
        model, output, resolved, run_dir=run_dir, resume=resume, allow_python=allow_python
    )
    if dry_run:
        _dry_run(job, as_json)
        return
    from onnxprune.cli.progress import ProgressView
    from onnxprune.pipeline import execute

    with stop_on_signal() as stop, ProgressView(common.message_console()) as view:
        results = execute(job, on_progress=view, stop=stop.is_set)
    if not common.is_main_process():
        return
    if as_json:
        common.print_json({**results, "output": output, "run_dir": str(job.run.path)})
    else:
        _print_results(results, output, job)


def _dry_run(job: "Job", as_json: bool) -> None:
    from rich.table import Table

    from onnxprune.estimate import estimate

    cost = estimate(job)
    plan = job.plan.to_json(job.total_steps)
    if as_json:
        common.print_json({**plan, "estimate": cost, "data": job.data_facts, "notes": job.notes})
        return
    console = common.output_console()
    table = Table("tensor", "operator", "shape", "weights", title="What would be pruned")
    for tensor in plan["tensors"]:
        table.add_row(
            tensor["name"],
            tensor["op_type"],
            "×".join(map(str, tensor["shape"])),
            f"{tensor['size']:,}",
        )
    console.print(table)
    console.print(
        f"{plan['target_zeros']:,} of {plan['prunable_parameters']:,} weights become zero "
        f"({common.percent(plan['target_sparsity'])}), pattern {plan['pattern']}, "
        f"method {job.recipe.sparsity.method}"
    )
    schedule = Table("step", "zeros", "sparsity", title=f"Schedule over {plan['steps']} steps")
    for event in plan["schedule"]:
        schedule.add_row(
            str(event["step"]), f"{event['zeros']:,}", common.percent(event["sparsity"])
        )
    console.print(schedule)
    for note in job.notes:
        console.print(f"note: {note}")
    memory = cost["memory_bytes"]
    parts = ", ".join(f"{name} {common.size_text(size)}" for name, size in memory.items())
    console.print(f"memory: {common.size_text(sum(memory.values()))} ({parts})")
    console.print(
        f"time: about {common.duration_text(cost['total_s'])}, of which training "
        f"{common.duration_text(cost['train_s'])} ({cost['step_s']:.2f} s a step, measured)"
    )


def _print_results(results: dict[str, Any], output: str, job: "Job") -> None:
    from rich.table import Table

    console = common.output_console()
    validation = results["validation"]
    table = Table("", "dense", "pruned", "difference", title="Under ONNX Runtime")
    dense, pruned = validation["dense"], validation["pruned"]
    for name in pruned:
        share = name in ("top1", "top5", "accuracy", "agreement")
        old, new = dense.get(name), pruned[name]
        text = common.percent if share else _number
        difference = None if old is None or new is None else new - old
        table.add_row(
            name,
            text(old),
            text(new),
            ""
            if difference is None
            else f"{100 * difference:+.2f} points"
            if share
            else f"{difference:+.4f}",
        )
    table.add_row("sparsity", "", common.percent(results["sparsity"], 4), "")
    size = results["size_bytes"]
    table.add_row(
        "file size",
        common.size_text(size["dense"]),
        common.size_text(size["pruned"]),
        f"{size['pruned'] / size['dense']:.2f}×",
    )
    if results["latency"] is not None:
        first, second = results["latency"]["models"]
        speedup = second["speedup"]
        table.add_row(
            "latency, median",
            f"{first['latency_ms']['median']:.3f} ms",
            f"{second['latency_ms']['median']:.3f} ms",
            f"{speedup['ratio']:.2f}× [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        )
    console.print(table)
    if results["latency"] is not None:
        console.print(results["latency"]["verdict"])
    console.print(_budget_text(results["budget"]))
    if validation["samples"]:
        console.print(f"measured on {validation['samples']} samples")
    console.print(f"model:  {output}")
    console.print(f"report: {job.run.report}")


def _budget_text(budget: dict[str, Any]) -> str:
    """What training cost, in one line."""
    text = (
        f"budget: {budget['epochs']:.4g} epochs, {budget['steps']:,} steps, "
        f"mean density {common.percent(budget['mean_density'])} "
        f"({common.percent(budget['mean_density_planned'])} by the schedule alone)"
    )
    if budget["training_flops"] is None:
        return text
    return (
        f"{text}, {budget['training_flops_dense']:.3g} training FLOPs if dense, "
        f"{budget['training_flops']:.3g} at actual density (theory on dense hardware)"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

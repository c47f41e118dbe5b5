"""`onnxprune cascade`: is there cascade shedding in a model."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import common
from onnxprune.cli.training import need_training_packages, stop_on_signal

if TYPE_CHECKING:
    from onnxprune.job import Job
    from onnxprune.probe_results import ProbePlan


@click.command("cascade")
@click.argument("model")
@common.recipe_option
@common.data_option(required=False)
@click.option("--eval-data", metavar="SPEC", help="Samples to measure accuracy on.")
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each arm."
)
@click.option("--epochs", type=float, help="Passes over the data of each arm.")
@click.option("--seed", type=int, help="The first seed.  [default: 0]")
@click.option(
    "--run-dir",
    metavar="DIR",
    help="Keeps finished arms, results and a page; the same call goes on there.",
)
@click.option("--dry-run", is_flag=True, help="Show arms, time and decay horizon, and do nothing.")
@click.option("--device", help="auto, cpu or cuda.  [default: auto]")
@common.threads_option
@common.provider_option
@common.allow_python_option
@common.set_option
@common.json_option
def command(
    model: str,
    recipe: str | None,
    data: str | None,
    eval_data: str | None,
    seeds: int,
    epochs: float | None,
    seed: int | None,
    run_dir: str | None,
    dry_run: bool,
    device: str | None,
    threads: int | None,
    provider: str | None,
    allow_python: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say whether pruning MODEL makes fine-tuning shed more weights than were pruned.

    For each seed, arms that lose a share of their weights ([cascade] prune), by magnitude and at
    random, train beside a control arm that loses none. The verdict rests on the cascade gain: net
    shed weights for each weight pruned, with its 95 % interval over the seeds. Nothing is written
    without --run-dir.

    \b
    Examples:
      onnxprune cascade model.onnx --data photos/ --seeds 3 --epochs 2 --run-dir probe
      onnxprune cascade model.onnx --data photos/ --set finetune.weight_decay=0.002 --dry-run
    """
    given: dict[str, dict[str, Any]] = {
        "data": {"train": data, "eval": eval_data},
        "finetune": {"seed": seed, "device": device, "threads": threads},
        "validate": {"provider": provider, "threads": threads},
    }
    target = common.load_recipe(recipe, settings, given)
    own = {**given, "finetune": {**given["finetune"], "epochs": epochs}}
    resolved = common.load_recipe(recipe, settings, own)
    need_training_packages()
    from onnxprune.probe import finished_arms, prepare_probe, probe
    from onnxprune.probe_results import probe_plan

    with ExitStack() as held:
        folder = run_dir or held.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-"))
        job = prepare_probe(model, resolved, run_dir=folder, allow_python=allow_python)
        plan = probe_plan(job, seeds)
        finished = len(finished_arms(job, target, plan))
        cost = _announce(job, plan, finished)
        if dry_run:
            if as_json:
                common.print_json({**plan.to_json(), "estimate": cost})
            return
        from onnxprune.cli.progress import ProgressView

        with stop_on_signal() as stop, ProgressView(common.message_console()) as view:
            result = probe(job, target, seeds, on_progress=view, stop=stop.is_set)
        if run_dir:
            _write_page(job)
    if as_json:
        common.print_json(result)
    else:
        _print_result(result, Path(run_dir) if run_dir else None)


def _announce(job: "Job", plan: "ProbePlan", finished: int) -> dict[str, Any]:
    """Say beforehand what is run, how long it takes, and what it cannot show."""
    from onnxprune.estimate import estimate

    console = common.message_console()
    left = len(plan.runs) - finished
    console.print(
        f"{len(plan.arms)} arms ({', '.join(plan.arms)}) × {len(plan.seeds)} seeds of "
        f"{plan.steps:,} steps; treated arms lose {job.recipe.cascade.prune:.0%} of "
        f"{job.plan.size:,} prunable weights"
    )
    if finished:
        console.print(f"{finished} of {len(plan.runs)} arms were finished before")
    cost = estimate(job)
    cost["total_s"] = left * cost["train_s"]
    console.print(
        f"time: about {common.duration_text(cost['total_s'])} ({cost['step_s']:.3f} s a step, "
        "measured)"
    )
    if plan.horizon_steps is not None:
        console.print(
            f"decay horizon: {plan.horizon_steps:,} steps; an arm covers "
            f"{plan.horizon_reached:.0%} of it"
        )
    for note in [*job.notes, *([plan.warning] if plan.warning else [])]:
        console.print(f"note: {note}")
    return cost


def _write_page(job: "Job") -> None:
    from onnxprune.errors import OutputError
    from onnxprune.validate import write_probe_report

    try:
        write_probe_report(job.run.path, job.run.probe_page)
    except OutputError as error:
        raise OutputError(
            "the page cannot be written; the probe is complete",
            where=job.run.probe_page,
            got=error.got,
            remedy=f"{error.remedy}, then call `onnxprune report` with this folder",
        ) from None


def _print_result(result: dict[str, Any], run_dir: Path | None) -> None:
    from rich.table import Table

    from onnxprune.run_directory import PROBE_FILE, PROBE_PAGE_FILE

    console = common.output_console()
    table = Table(
        "score",
        "verdict",
        "cascade gain",
        "95 % interval",
        "relative to RMS now",
        "kept as one-shot GMP would",
        title="Net shed weights for each weight pruned",
    )
    for score, gain in result["gains"].items():
        table.add_row(
            score,
            gain["verdict"],
            f"{gain['mean']:+.4f}",
            _interval(gain),
            f"{gain['relative']['mean']:+.4f} {_interval(gain['relative'])}",
            common.percent(result["overlap_with_one_shot"][score]),
        )
    console.print(table)
    tensors = [row for row in result["tensors"][result["score"]] if row["shed"] or row["control"]]
    shed = Table(
        *("tensor", "operator", "weights", "shed", "control", "net"), title="Where they are shed"
    )
    for row in tensors[:15]:
        numbers = (f"{row[key]:,.1f}" for key in ("shed", "control", "net_shed"))
        shed.add_row(row["name"], row["op_type"], f"{row['size']:,}", *numbers)
    if tensors:
        console.print(shed)
    change = result["without_shed"]
    console.print(
        f"without all shed weights the loss changes by {change['loss_change']:+.2%} and the "
        f"outputs by at most {change['output_change']:.2%}"
    )
    advice = result["recommendation"]
    reached = result["decay_horizon_reached"]
    within = "" if reached >= 1 else f" within {reached:.0%} of the decay horizon"
    console.print(
        f"verdict: {result['verdict']}{within} ({result['score']}); use --method "
        f"{advice['method']} with [schedule] events = {advice['events']}: {advice['reason']}"
    )
    needed = result["gains"][result["score"]]["seeds_that_would_decide"]
    if needed:
        console.print(f"about {needed} seeds would decide, if mean and spread stay as they are")
    for note in result["notes"]:
        console.print(f"note: {note}")
    if run_dir is not None:
        console.print(f"results: {run_dir / PROBE_FILE}")
        console.print(f"page:    {run_dir / PROBE_PAGE_FILE}")


def _interval(gain: dict[str, Any]) -> str:
    if gain["low"] is None:
        return "[one seed]"
    return f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"

"""Production models: is there a cascade, and which method keeps most at 80 and 90 %?

    apt-get install openclipart-png
    python benchmarks/cascade/real_models.py

Three models out of packages (see `real_tasks.py`) are probed for a cascade, and pruned by each
method with one recipe, steps and seeds; learning rate and weight decay are the model's recipe's,
and were tuned for no method. The dense model is one, so seeds vary order and random scores alone.
A probe trains as long as a run of the comparison: `decay_horizon_reached` below 1 says that this is
too short for a whole cascade.
"""

import itertools
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired, seed_rows
from journal import Entry, digest
from lab import Job, Lab
from plots import Band, Panel, draw
from probes import CRITERIA, gain_json, gain_of, probe_model
from real_tasks import Size, Task, character_accuracy, prepare_task
from record import write_results
from runs import METHODS as OWN_METHODS
from runs import supported, validation_of
from scales import options_of, parser_of

import onnxprune
from onnxprune.toml import merged

MODELS = ("orientation", "recogniser", "lite0")
METHODS = ("cascade-gmp", "gmp", "one-shot", "random")
SPARSITIES = (0.8, 0.9)
REFERENCE = "gmp"
PROBED_SHARE = 0.2
SIZES = {
    "cpu": Size(train=960, evaluation=800, side=128, epochs=1.0),
    "gpu": Size(train=6000, evaluation=2000, side=224, epochs=10.0),
    "quick": Size(train=16, evaluation=16, side=64, epochs=1.0),
}


@dataclass(frozen=True)
class Setting:
    """One run or probe on a production model; a probe's method is `probe`."""

    model: str
    method: str
    sparsity: float
    seed: int
    size: Size
    device: str


def main(arguments: Sequence[str] | None = None) -> None:
    """All models, methods, sparsities and seeds."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float)
    parser.add_argument("--only", choices=("probes", "comparison"), help="one of the two parts")
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    given = parser.parse_args(arguments)
    options = options_of(given, "real_models")
    lab = Lab(options)
    size = SIZES[options.scale_name]
    size = size if given.epochs is None else replace(size, epochs=given.epochs)
    models = given.models or (MODELS[1:2] if given.quick else MODELS)
    methods = [method for method in given.methods if supported(method)]
    methods = methods[:2] if given.quick else methods
    tasks = {
        name: prepare_task(name, size, options.work / "real", given.clipart) for name in models
    }
    sparsities = given.sparsities or (SPARSITIES[-1:] if given.quick else SPARSITIES)
    seeds, device = options.scale.seeds, options.scale.device
    results: dict[str, Any] = {}
    if given.only != "comparison":
        cells = [Setting(*cell, size, device) for cell in _probed(models, seeds)]
        entries = lab.jobs([_job(cell, tasks[cell.model], lab, probe_task) for cell in cells])
        results["probes"] = probes(cells, entries)
    if given.only != "probes":
        chosen = itertools.product(models, methods, sparsities, seeds)
        settings = [Setting(*cell, size, device) for cell in chosen]
        entries = lab.jobs([_job(s, tasks[s.model], lab, prune_task) for s in settings])
        results["comparison"] = comparison(settings, entries)
    facts = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "size": asdict(size),
        "left_out": [method for method in given.methods if method not in methods],
    }
    write_results(options.name, facts, results, options.results)
    plot(results.get("comparison", []), options.results / f"{options.name}.svg")


def _probed(models: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, float, int]]:
    """Model, arm, share that the event takes, seed."""
    return itertools.product(models, ("probe",), (PROBED_SHARE,), seeds)


Work = Callable[["Setting", Task, Path, Callable[[], bool]], Entry]


def _job(setting: Setting, task: Task, lab: Lab, work: Work) -> Job:
    label = f"{setting.model} {setting.method} {setting.sparsity:g} seed {setting.seed}"
    key = {"real": asdict(setting)}
    folder = lab.place.folder / "real" / "runs" / digest(key)
    return Job(key, partial(work, setting, task, folder), label)


def probe_task(setting: Setting, task: Task, folder: Path, stop: Callable[[], bool]) -> Entry:
    """Probe a production model; see `probes.probe_model`."""
    tables = merged(task.tables, _machine(setting))
    cascade = {"cascade": {"prune": setting.sparsity, "scores": list(CRITERIA)}}
    recipe = onnxprune.Recipe.from_dict(merged(tables, cascade))
    return probe_model(task.model, recipe, folder, stop)


def _machine(setting: Setting) -> dict[str, dict[str, Any]]:
    threads = 1 if setting.device == "cpu" else None
    return {
        "finetune": {
            "seed": setting.seed,
            "device": setting.device,
            "evaluations": 0,
            "threads": threads,
        },
        "validate": validation_of(setting.device),
    }


def probes(settings: Sequence[Setting], entries: Sequence[Entry | None]) -> list[dict[str, Any]]:
    """Gain and verdict of each model and criterion."""
    done = [(s, e) for s, e in zip(settings, entries, strict=True) if e is not None]
    found = []
    for model, pairs in by(done, lambda pair: pair[0].model).items():
        by_seed = {setting.seed: entry for setting, entry in pairs}
        first = pairs[0][1]
        found += [
            {
                "model": model,
                "criterion": criterion,
                "pruned_share": PROBED_SHARE,
                "gain": gain_json(gain_of(by_seed, criterion)),
                "gain_relative": gain_json(gain_of(by_seed, criterion, "gain_relative")),
                "decay_horizon_steps": first["decay_horizon_steps"],
                "decay_horizon_reached": round(first["decay_horizon_reached"], 4),
            }
            for criterion in CRITERIA
        ]
    return found


def prune_task(setting: Setting, task: Task, folder: Path, stop: Callable[[], bool]) -> Entry:
    """Prune a production model, or go on.

    Raises:
        Interrupted: `stop` said so.
    """
    own = {"sparsity": {"method": setting.method, "target": setting.sparsity}}
    base = merged(merged(task.tables, _machine(setting)), own)
    tables = merged(base, OWN_METHODS.get(setting.method, {}))
    folder.mkdir(parents=True, exist_ok=True)
    started, busy = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = onnxprune.prune(
            task.model,
            folder / "pruned.onnx",
            onnxprune.Recipe.from_dict(tables),
            run_dir=folder / "run",
            resume=True,
            stop=stop,
        )
    values = results["validation"]
    if task.metric == "characters":
        samples = Path(task.tables["data"]["eval"])
        before, after = (
            character_accuracy(path, samples) for path in (task.model, folder / "pruned.onnx")
        )
    else:
        after = values["pruned"][task.metric]
        before = 1.0 if task.metric == "agreement" else values["dense"][task.metric]
    shutil.rmtree(folder)
    return {
        "metric": task.metric,
        "accuracy": after,
        "accuracy_before": before,
        "samples": values["samples"],
        "sparsity": results["sparsity"],
        "budget": results.get("budget"),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
    }


def comparison(
    settings: Sequence[Setting], entries: Sequence[Entry | None]
) -> list[dict[str, Any]]:
    """Means of each model, method and sparsity, and differences to gmp seed by seed."""
    values: dict[tuple[str, float, str], dict[int, Entry]] = {}
    for setting, entry in zip(settings, entries, strict=True):
        if entry is not None:
            group = (setting.model, setting.sparsity, setting.method)
            values.setdefault(group, {})[setting.seed] = entry
    found = []
    for (model, sparsity, method), cells in values.items():
        ours = {seed: entry["accuracy"] for seed, entry in cells.items()}
        base = values.get((model, sparsity, REFERENCE), {})
        against = paired(ours, {seed: entry["accuracy"] for seed, entry in base.items()})
        first = next(iter(cells.values()))
        found.append(
            {
                "model": model,
                "sparsity": sparsity,
                "method": method,
                "metric": first["metric"],
                "dense": round(first["accuracy_before"], 4),
                "accuracy": interval(ours.values()).to_json(),
                "by_seed": seed_rows(ours),
                "against_gmp": against.to_json() if against and method != REFERENCE else None,
            }
        )
    return found


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """The metric of each method against density, a panel for each model."""
    panels = []
    for (model, metric), same in by(cells, lambda cell: (cell["model"], cell["metric"])).items():
        bands = [
            Band(method, [1 - cell["sparsity"] for cell in group], [c["accuracy"] for c in group])
            for method, group in by(same, lambda cell: cell["method"]).items()
        ]
        panels.append(Panel(model, "density", metric, bands, falling_x=True))
    if panels:
        draw(path, panels)


if __name__ == "__main__":
    main()

"""Production models: is there a cascade, and which method keeps most at 80 and 90 %?

    apt-get install openclipart-png
    python benchmarks/cascade/real_models.py

Three models out of packages (see `real_tasks.py`) are pruned by each method with one recipe, steps
and seeds; learning rate and weight decay are the model's recipe's, and were tuned for no method.
The dense model is one, so seeds vary order and random scores alone.
"""

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from analysis import by, interval, paired
from lab import Entry, Job, Lab
from plots import Band, Panel, draw
from probes import can_probe
from real_tasks import Size, Task, character_accuracy, prepare_task
from record import write_results
from runs import METHODS as OWN_METHODS
from runs import digest, supported
from scales import options_of, parser_of

import onnxprune
from onnxprune.toml import merged

MODELS = ("orientation", "recogniser", "lite0")
METHODS = ("cascade-gmp", "gmp", "one-shot", "random")
SPARSITIES = (0.8, 0.9)
REFERENCE = "gmp"
SIZES = {
    "cpu": Size(train=960, evaluation=800, side=128, epochs=1.0),
    "gpu": Size(train=6000, evaluation=2000, side=224, epochs=10.0),
    "quick": Size(train=32, evaluation=32, side=64, epochs=1.0),
}


@dataclass(frozen=True)
class Setting:
    """One run on a production model."""

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
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart/png"))
    given = parser.parse_args(arguments)
    options = options_of(given, "real_models")
    lab = Lab(options)
    size = SIZES[options.scale_name]
    models = given.models or (MODELS[1:2] if given.quick else MODELS)
    methods = [method for method in given.methods if supported(method)]
    tasks = {
        name: prepare_task(name, size, options.work / "real", given.clipart) for name in models
    }
    settings = [
        Setting(*cell, size, options.scale.device)
        for cell in itertools.product(
            models, methods, SPARSITIES[-1:] if given.quick else SPARSITIES, options.scale.seeds
        )
    ]
    entries = lab.jobs([_job(setting, tasks[setting.model], lab) for setting in settings])
    results = {"comparison": comparison(settings, entries)}
    facts = {
        "scale": options.scale_name,
        "seeds": list(options.scale.seeds),
        "size": asdict(size),
        "left_out": {
            "methods": [method for method in given.methods if method not in methods],
            "probes": "this version has none" if not can_probe() else "run `onnxprune cascade`",
        },
    }
    write_results(options.name, facts, results, options.results)
    plot(results["comparison"], options.results / f"{options.name}.svg")


def _job(setting: Setting, task: Task, lab: Lab) -> Job:
    label = f"{setting.model} {setting.method} {setting.sparsity:g} seed {setting.seed}"
    key = {"real": asdict(setting)}
    folder = lab.place.folder / "real" / "runs" / digest(key)
    return Job(key, partial(prune_task, setting, task, folder), label)


def prune_task(setting: Setting, task: Task, folder: Path, stop: Callable[[], bool]) -> Entry:
    """Prune a production model, or go on.

    Raises:
        Interrupted: `stop` said so.
    """
    own: dict[str, dict[str, Any]] = {
        "sparsity": {"method": setting.method, "target": setting.sparsity},
        "finetune": {"seed": setting.seed, "device": setting.device, "evaluations": 0},
        "validate": {"latency": False, "threads": 1},
    }
    if setting.device == "cpu":
        own["finetune"]["threads"] = 1
    tables = merged(merged(task.tables, own), OWN_METHODS.get(setting.method, {}))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
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
        before, after = (values[which].get(task.metric, 1.0) for which in ("dense", "pruned"))
    return {
        "metric": task.metric,
        "accuracy": after,
        "accuracy_before": before,
        "samples": values["samples"],
        "sparsity": results["sparsity"],
        "budget": results.get("budget"),
        "seconds": round(time.perf_counter() - started, 1),
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

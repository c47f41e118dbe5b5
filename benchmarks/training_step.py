"""Our training step on imported networks beside a hand-written native loop with the same masks.

Both train the same weights on the same batch with 80 % of them masked. A ratio is the time of our
step over that of the native one, in turns whose order is drawn in each round; 1.03 is 3 % slower.
Ours is the trainer's whole loop, with its log; the native one reads the loss at every step, as a
loop that prints it does.

The two share a process and its heap. On Linux malloc is told to return no memory to the system,
since else it is a matter of turn which of them pays for it (1 to 4 % of a step, in either
direction). What is left of this differs from process to process, so each ratio is measured in
several: it is the geometric mean of theirs, with Student's 95 % interval.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --device cuda --precision fp32 bf16 --name training_step_gpu
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch
from record import write_results
from scipy.special import stdtrit
from training_pair import Setting, compare

SIZES = {
    "cpu": {"resnet50": (8, 128), "mobilenet_v3_large": (16, 128)},
    "cuda": {"resnet50": (64, 224), "mobilenet_v3_large": (128, 224)},
}
"""Device -> model -> batch and image size."""

HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""Settings of glibc's malloc under which it returns no memory to the system."""


def measure(model: str, threads: int, setting: Setting) -> dict[str, Any]:
    """One ratio, in this process."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore")
    return compare(model, setting)


def measure_apart(model: str, threads: int, setting: Setting) -> dict[str, Any]:
    """One ratio, in a process of its own."""
    child = [sys.executable, __file__, "--child", model, str(threads), json.dumps(asdict(setting))]
    done = subprocess.run(
        child, env=os.environ | HEAP, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def over_processes(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean of the processes' ratios, with Student's 95 % interval."""
    logs = [math.log(entry["ratio"]) for entry in found]
    mean = statistics.fmean(logs)
    half = math.inf
    if len(logs) > 1:
        half = stdtrit(len(logs) - 1, 0.975) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {
        "ratio": round(math.exp(mean), 4),
        "low": round(math.exp(mean - half), 4),
        "high": round(math.exp(mean + half), 4),
        "processes": found,
    }


def main() -> None:
    """Measure every model in every precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(SIZES["cpu"]), choices=SIZES["cpu"])
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    parser.add_argument("--processes", type=int, default=6, help="for one ratio")
    parser.add_argument("--seconds", type=float, default=40.0, help="for one process")
    parser.add_argument("--rounds", type=int, default=500, help="at most, for one process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="training_step", help="of the results file")
    arguments = parser.parse_args()
    cases = [(m, p) for m in arguments.models for p in arguments.precision]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(arguments.processes):
        for model, precision in cases:
            batch, size = SIZES[arguments.device][model]
            setting = Setting(
                arguments.device,
                precision,
                batch,
                size,
                seconds=arguments.seconds,
                rounds=arguments.rounds,
                seed=arguments.seed + number,
            )
            entry = measure_apart(model, arguments.threads, setting)
            found[model, precision].append(entry)
            print(model, precision, entry, flush=True)
    results = []
    for (model, precision), entries in found.items():
        batch, size = SIZES[arguments.device][model]
        case = {"model": model, "precision": precision, "batch": batch, "size": size}
        results.append(case | over_processes(entries))
    write_results(arguments.name, vars(arguments) | {"malloc": HEAP}, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, name, threads, setting = sys.argv
        print(json.dumps(measure(name, int(threads), Setting(**json.loads(setting)))))
    else:
        main()

"""Can `bench` be trusted: a model against itself, one made 5 % slower, and a plain loop.

- A model against itself: how many of the 95 % intervals hold 1, and how wide are they? Also with a
  process that keeps the last core busy.
- A model with an added operator of known cost, 5 % of its own: how often is it found slower?
- Does a model's median differ from that of a plain loop, alone and beside another session?

Repetitions take turns between the given model and exports of torchvision. `--shared` marks results
of a machine that other programs used meanwhile.

python benchmarks/bench_trust.py MODEL.onnx --questions same same-loaded slower
python benchmarks/bench_trust.py MODEL.onnx --questions plain-loop --name bench_trust_loop
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from bench_models import exported, inputs_of, products_for, slowed
from plain_loops import compare
from record import write_results

from onnxprune.validate import BenchResult, bench
from onnxprune.validate.timing import Plan

SLOWER_BY = 0.05
QUESTIONS = ("same", "same-loaded", "slower", "plain-loop")


def main() -> None:
    """Answer the questions one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--networks", nargs="+", default=["mobilenet_v3_small"], help="of torchvision"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0, help="longest time of a bench")
    parser.add_argument(
        "--loop-rounds", type=int, default=200, help="turns of `bench` and of a plain loop each"
    )
    parser.add_argument("--precision", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--shared", action="store_true", help="other programs used the machine")
    parser.add_argument("--name", default="bench_trust")
    arguments = parser.parse_args()
    began = time.perf_counter()
    models = {arguments.model.stem: arguments.model.read_bytes()}
    models |= {name: exported(name) for name in arguments.networks}
    results: dict[str, Any] = {}
    if "same" in arguments.questions:
        results["same"] = _same(arguments, models)
    if "same-loaded" in arguments.questions:
        with _busy_core():
            results["same_with_a_busy_core"] = _same(arguments, models)
    if "slower" in arguments.questions:
        results["slower_by_5_percent"] = _slower(arguments, models)
    if "plain-loop" in arguments.questions:
        results["plain_loop"] = _plain_loop(arguments, models)
    results["seconds"] = round(time.perf_counter() - began)
    write_results(
        arguments.name, {k: v for k, v in vars(arguments).items() if k != "model"}, results
    )


def _bench(
    arguments: argparse.Namespace,
    models: list[tuple[str, bytes]],
    seed: int,
    rounds: int | None = None,
) -> BenchResult:
    return bench(
        models,
        threads=arguments.threads,
        precision=arguments.precision,
        max_seconds=arguments.seconds,
        rounds=rounds,
        processes=arguments.processes,
        clock=arguments.clock,
        seed=seed,
    )


def _row(name: str, result: BenchResult) -> dict[str, Any]:
    speedup, environment = result.models[1].speedup, result.environment
    print(name, speedup, environment["busy_cores_of_others"], file=sys.stderr, flush=True)
    return {
        "model": name,
        "ratio": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
        "verdict": speedup.verdict,
        "median_ms": result.models[0].latency_ms["median"],
        "openings": environment["openings"],
        "rounds": environment["rounds"],
        "busy_cores_of_others": environment["busy_cores_of_others"],
    }


def _same(arguments: argparse.Namespace, models: dict[str, bytes]) -> dict[str, Any]:
    rows = []
    for seed in range(arguments.repeats):
        name = list(models)[seed % len(models)]
        pair = [(name, models[name]), ("again", models[name])]
        rows.append(_row(name, _bench(arguments, pair, seed)))
    widths = [row["high"] - row["low"] for row in rows]
    return {
        "intervals_with_1": sum(row["low"] <= 1 <= row["high"] for row in rows),
        "median_width": float(np.median(widths)),
        "largest_width": max(widths),
        "verdicts": _count([row["verdict"] for row in rows]),
        "benches": rows,
    }


def _slower(arguments: argparse.Namespace, models: dict[str, bytes]) -> dict[str, Any]:
    products = {
        name: products_for(model, SLOWER_BY, arguments.threads) for name, model in models.items()
    }
    rows = []
    for seed in range(arguments.repeats):
        name = list(models)[seed % len(models)]
        pair = [(name, models[name]), ("slower", slowed(models[name], products[name]))]
        rows.append(_row(name, _bench(arguments, pair, seed)))
    return {
        "found_slower": sum(row["verdict"] == "slower" for row in rows),
        "intervals_below_1": sum(row["high"] < 1 for row in rows),
        "added_products": products,
        "median_ratio": {
            name: float(np.median([row["ratio"] for row in rows if row["model"] == name]))
            for name in models
        },
        "benches": rows,
    }


def _plain_loop(arguments: argparse.Namespace, models: dict[str, bytes]) -> dict[str, Any]:
    """Medians of `bench`, alone and beside another session, against a plain loop in turns."""
    found: dict[str, Any] = {}
    for name, model in models.items():
        feeds = inputs_of(onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]))
        found[name] = {}
        for key, sessions in (("alone", 1), ("interleaved", 2)):
            result = compare(
                model,
                feeds,
                threads=arguments.threads,
                sessions=sessions,
                plan=Plan(rounds=arguments.loop_rounds, warmup=1),
                clock=arguments.clock,
            )
            print(name, key, result, file=sys.stderr, flush=True)
            found[name][key] = asdict(result)
    return found


def _count(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    """A process that keeps the last core busy."""
    core = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    burner = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


if __name__ == "__main__":
    main()

r"""Is a compiled model ever slower than its dense one, by the rule or with `--tune`?

Networks that kernels were tuned for and others, at sparsities where sparse kernels hardly pay.
Models are compared side by side in one process, as `onnxprune bench` does. One in which no layer
is replaced is a copy of its source and not measured. What is measured is kept in a journal, so the
same command goes on where it was cut off; new kernels or settings begin a new one.

python benchmarks/never_slower.py
python benchmarks/never_slower.py --models mobilenet_v2 --sparsities 0.7 --minutes 5
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from journal import Entry, Journal
from record import ROOT, write_results
from sparse_networks import NETWORKS, UNSEEN, export, export_pruned, runtime_digest

from onnxprune.runtime import CompileOptions, compile_model, instruction_set, tune
from onnxprune.validate import bench

ALLOWED = 0.98
"""Least speedup that is no loss."""


def main() -> None:
    """Measure every combination that was asked for and that the journal lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*NETWORKS, *UNSEEN]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.7, 0.8, 0.85, 0.9])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=12, help="for each comparison")
    parser.add_argument("--tune-seconds", type=float, default=20)
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "sparse_runtime")
    parser.add_argument("--name", default="never_slower")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="other programs run meanwhile: one thread is timed by the processor time of its calls",
    )
    arguments = parser.parse_args()
    journal = Journal(arguments.work / "never_slower.jsonl")
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    settings = {
        "seconds": arguments.seconds,
        "tune_seconds": arguments.tune_seconds,
        "shared": arguments.shared,
    }
    results: list[Entry] = []
    for name in arguments.models:
        for sparsity in arguments.sparsities:
            for threads in arguments.threads:
                key = {"model": name, "sparsity": sparsity, "threads": threads, **settings}
                key["runtime"] = runtime_digest()
                entry = journal.find(key)
                if entry is None and (deadline is None or time.monotonic() < deadline):
                    entry = measure(name, sparsity, threads, settings)
                    journal.add(key, entry)
                if entry is not None:
                    results.append(entry)
                    print(line(entry), flush=True)
    facts = {"instructions": instruction_set(), "seed": 0}
    write_results(arguments.name, settings | facts, results)
    print("\n".join(line(entry) for entry in results))
    for choice in ("rule", "tuned"):
        found = [entry[choice]["speedup"] for entry in results]
        slower = [s for s in found if s is not None and s["high"] < ALLOWED]
        print(f"{choice}: {len(slower)} of {len(found)} certainly slower than {ALLOWED}")


def measure(name: str, sparsity: float, threads: int, settings: Mapping[str, Any]) -> Entry:
    """One network, compiled in both ways, against its dense model."""
    with tempfile.TemporaryDirectory() as folder:
        dense, pruned = Path(folder) / "dense.onnx", Path(folder) / "pruned.onnx"
        export(name, dense)
        export_pruned(name, pruned, sparsity, "unstructured")
        choices = {
            "rule": compile_model(pruned, CompileOptions(threads=threads)),
            "tuned": tune(pruned, threads=threads, seconds=settings["tune_seconds"]),
        }
        models = [dense]
        for choice, compiled in choices.items():
            if compiled.record.replaced:
                models.append(Path(folder) / f"{choice}.onnx")
                models[-1].write_bytes(compiled.proto.SerializeToString())
        entry: dict[str, Any] = {"model": name, "sparsity": sparsity, "threads": threads}
        for choice, compiled in choices.items():
            layers = len(compiled.record.layers)
            entry[choice] = {"sparse_layers": compiled.record.replaced, "layers": layers}
            entry[choice]["speedup"] = None
        if len(models) > 1:
            result = bench(
                models,
                threads=threads,
                max_seconds=settings["seconds"],
                clock="cpu" if settings["shared"] and threads == 1 else "wall",
            )
            entry["dense_ms"] = result.models[0].latency_ms["median"]
            for path, model in zip(models[1:], result.models[1:], strict=True):
                found = model.speedup
                entry[path.stem]["speedup"] = {
                    "ratio": found.ratio,
                    "low": found.low,
                    "high": found.high,
                }
    return entry


def line(entry: Entry) -> str:
    """Both choices of one network."""
    cells = [f"{entry['model']:20} {entry['sparsity']:4.0%} threads {entry['threads']}"]
    for choice in ("rule", "tuned"):
        speedup = entry[choice]["speedup"]
        layers = f"{entry[choice]['sparse_layers']} of {entry[choice]['layers']}"
        words = "left dense"
        if speedup is not None:
            words = f"{speedup['ratio']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"
            words += " SLOWER" if speedup["ratio"] < ALLOWED else ""
        cells.append(f"{choice}: {layers:9} {words:27}")
    return "  ".join(cells)


if __name__ == "__main__":
    main()

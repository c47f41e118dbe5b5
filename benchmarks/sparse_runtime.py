r"""How much faster is a pruned model with sparse CPU kernels than dense in stock ONNX Runtime?

Each network, compiled for the number of threads (`onnxprune compile --threads`), is compared with
its own dense model under ONNX Runtime with all optimisations, side by side in one process, as
`onnxprune bench` does; memory and loading in processes of their own. A
comparison takes a minute at most on an idle machine. What is measured is kept in a journal, so the
same command goes on where it was cut off; new kernels or settings begin a new one.

python benchmarks/sparse_runtime.py
python benchmarks/sparse_runtime.py --models resnet50 --sparsities 0.9 --batches 1 --threads 1
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from journal import Entry, Journal
from native import round_trip_ns
from record import ROOT, write_results
from sparse_networks import BLOCK, NETWORKS, export, export_pruned, runtime_digest

from onnxprune.runtime import CompileOptions, compile_model, instruction_set
from onnxprune.validate import bench

GOALS = {
    ("resnet50", "unstructured", 0.8): 2.0,
    ("resnet50", "unstructured", 0.9): 3.5,
    ("resnet50", "unstructured", 0.95): 5.0,
    ("resnet50", f"block:{BLOCK}x1", 0.9): 5.0,
    ("mobilenet_v3_large", "unstructured", 0.9): 1.8,
    ("bert_base", "unstructured", 0.9): 3.0,
}
"""Speedups that the kernels aim at, by network, pattern and sparsity."""


def main() -> None:
    """Measure every combination that was asked for and that the journal lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=NETWORKS,
        default=["resnet50", "mobilenet_v3_large", "bert_base"],
    )
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--block-sparsities", nargs="*", type=float, default=[0.9])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20, help="for each comparison")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "sparse_runtime")
    parser.add_argument("--name", default="sparse_runtime")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="other programs run meanwhile: one thread is timed by the processor time of its calls",
    )
    arguments = parser.parse_args()
    patterns = [("unstructured", s) for s in arguments.sparsities]
    patterns += [(f"block:{BLOCK}x1", s) for s in arguments.block_sparsities]
    journal = Journal(arguments.work / "journal.jsonl")
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    results: list[Entry] = []
    for name in arguments.models:
        for pattern, sparsity in patterns:
            with Pair(name, pattern, sparsity) as pair:
                for batch in arguments.batches:
                    for threads in arguments.threads:
                        key = pair.key | {
                            "batch": batch,
                            "threads": threads,
                            "seconds": arguments.seconds,
                            "shared": arguments.shared,
                            "runtime": runtime_digest(),
                        }
                        entry = journal.find(key)
                        if entry is None and (deadline is None or time.monotonic() < deadline):
                            entry = pair.measure(
                                batch, threads, arguments.seconds, arguments.shared
                            )
                            journal.add(key, entry)
                        if entry is not None:
                            results.append(entry)
                            print(line(entry), flush=True)
    settings = {
        "seconds": arguments.seconds,
        "shared": arguments.shared,
        "instructions": instruction_set(),
        "seed": 0,
    }
    write_results(arguments.name, settings, results)
    print("\n".join(line(entry) for entry in results))


class Pair:
    """A network, dense and compiled; files and facts are made when they are first needed."""

    def __init__(self, name: str, pattern: str, sparsity: float) -> None:
        self.key = {"model": name, "pattern": pattern, "sparsity": sparsity}
        self._facts: dict[str, Any] | None = None

    def __enter__(self) -> "Pair":
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._dense, self._pruned = folder / "dense.onnx", folder / "pruned.onnx"
        self._ways: dict[int, tuple[Path, str]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def measure(self, batch: int, threads: int, seconds: float, shared: bool) -> Entry:
        """Compare the two, in one process."""
        if self._facts is None:
            self._facts = self._made()
        compiled, samples = self._compiled(threads)
        trips = [round_trip_ns()] if threads > 1 else []
        result = bench(
            [self._dense, compiled],
            batch=batch,
            threads=threads,
            max_seconds=seconds,
            clock="cpu" if shared and threads == 1 else "wall",
        )
        trips += [round_trip_ns()] if threads > 1 else []
        speedup = result.models[1].speedup
        return self._facts | {
            "batch": batch,
            "threads": threads,
            "samples": samples,
            "speedup": {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high},
            "goal": goal(self._facts),
            "dense_ms": result.models[0].latency_ms["median"],
            "sparse_ms": result.models[1].latency_ms["median"],
            "round_trip_ns": trips,
            "busy_cores_of_others": result.environment["busy_cores_of_others"],
        }

    def _compiled(self, threads: int) -> tuple[Path, str]:
        """The network compiled for a number of threads, and how it treats a batch."""
        if threads not in self._ways:
            compiled = compile_model(self._pruned, CompileOptions(threads=threads))
            path = self._dense.with_name(f"compiled-{threads}.onnx")
            path.write_bytes(compiled.proto.SerializeToString())
            self._ways[threads] = path, compiled.record.samples
        return self._ways[threads]

    def _made(self) -> dict[str, Any]:
        export(self.key["model"], self._dense)
        export_pruned(self.key["model"], self._pruned, self.key["sparsity"], self.key["pattern"])
        path = self._dense.with_name("compiled.onnx")
        compiled = compile_model(self._pruned)
        path.write_bytes(compiled.proto.SerializeToString())
        apart = bench([self._dense, path], threads=1, rounds=5, processes=True)
        return self.key | {
            "sparse_layers": compiled.record.replaced,
            "layers": len(compiled.record.layers),
            "load_ms": [model.load_ms for model in apart.models],
            "peak_memory_bytes": [model.peak_memory_bytes for model in apart.models],
            "size_bytes": [model.size_bytes for model in apart.models],
        }


def goal(facts: Entry) -> float | None:
    """The speedup that was aimed at; None where there is no goal."""
    return GOALS.get((facts["model"], facts["pattern"], facts["sparsity"]))


def line(entry: Entry) -> str:
    """A result beside its goal."""
    speedup, aim = entry["speedup"], entry["goal"]
    verdict = ""
    if aim is not None:
        short = speedup["high"] < aim
        reached = speedup["ratio"] >= aim
        verdict = f"goal {aim:.1f}x: {'reached' if reached else 'short' if short else 'within'}"
    return (
        f"{entry['model']:20} {entry['sparsity']:4.0%} {entry['pattern']:13} "
        f"batch {entry['batch']} threads {entry['threads']}  "
        f"{speedup['ratio']:5.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]  {verdict}"
    )


if __name__ == "__main__":
    main()

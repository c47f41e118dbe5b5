r"""What does it gain to compute the samples of a batch one after the other?

Each network at 90 % is compiled both ways and compared with its dense model, side by side in one
process, as `onnxprune bench` does.

python benchmarks/split_samples.py
"""

import argparse
import tempfile
import time
from pathlib import Path

from journal import Entry, Journal
from record import ROOT, write_results
from sparse_networks import NETWORKS, export, export_pruned, runtime_digest

from onnxprune.runtime import CompileOptions, compile_model, instruction_set
from onnxprune.runtime.plan import SampleRule
from onnxprune.validate import bench

WAYS: tuple[SampleRule, ...] = ("together", "split")


def main() -> None:
    """Measure every combination that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="for each comparison")
    parser.add_argument("--name", default="split_samples")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "split_samples")
    arguments = parser.parse_args()
    journal = Journal(arguments.work / "journal.jsonl")
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    results: list[Entry] = []
    for name in arguments.models:
        with Ways(name, arguments.sparsity) as ways:
            for batch in arguments.batches:
                for threads in arguments.threads:
                    key = ways.key | {
                        "batch": batch,
                        "threads": threads,
                        "seconds": arguments.seconds,
                        "runtime": runtime_digest(),
                    }
                    entry = journal.find(key)
                    if entry is None and (deadline is None or time.monotonic() < deadline):
                        entry = ways.measure(batch, threads, arguments.seconds)
                        journal.add(key, entry)
                        print(line(entry), flush=True)
                    if entry is not None:
                        results.append(entry)
    settings = {
        "sparsity": arguments.sparsity,
        "seconds": arguments.seconds,
        "instructions": instruction_set(),
        "seed": 0,
    }
    write_results(arguments.name, settings, results)
    print("\n".join(line(entry) for entry in results))


class Ways:
    """A network, dense and compiled both ways; files are made when they are first needed."""

    def __init__(self, name: str, sparsity: float) -> None:
        self.key = {"model": name, "sparsity": sparsity}
        self._paths: list[Path] = []
        self._auto = ""

    def __enter__(self) -> "Ways":
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def measure(self, batch: int, threads: int, seconds: float) -> Entry:
        """Compare the three, in one process."""
        self._make()
        found = bench(self._paths, batch=batch, threads=threads, max_seconds=seconds)
        speedups = dict(zip(WAYS, (model.speedup for model in found.models[1:]), strict=True))
        ratios = {
            way: {"ratio": s.ratio, "low": s.low, "high": s.high} for way, s in speedups.items()
        }
        return {
            **self.key,
            "batch": batch,
            "threads": threads,
            "auto": self._auto,
            **ratios,
            "busy_cores_of_others": found.environment["busy_cores_of_others"],
        }

    def _make(self) -> None:
        if self._paths:
            return
        dense, pruned = (Path(self._folder.name) / f"{stem}.onnx" for stem in ("dense", "pruned"))
        export(self.key["model"], dense)
        export_pruned(self.key["model"], pruned, self.key["sparsity"], "unstructured")
        self._auto = compile_model(pruned).record.samples
        self._paths = [dense]
        for way in WAYS:
            compiled = compile_model(pruned, CompileOptions(samples=way))
            assert compiled.record.samples == way, compiled.record.samples_reason
            self._paths.append(dense.with_name(f"{way}.onnx"))
            self._paths[-1].write_bytes(compiled.proto.SerializeToString())


def line(entry: Entry) -> str:
    """Both ways beside each other."""
    words = "  ".join(
        f"{way} {r['ratio']:.2f}x [{r['low']:.2f}, {r['high']:.2f}]"
        for way, r in ((way, entry[way]) for way in WAYS)
    )
    return (
        f"{entry['model']:20} batch {entry['batch']} threads {entry['threads']}  {words}  "
        f"auto: {entry['auto']}"
    )


if __name__ == "__main__":
    main()

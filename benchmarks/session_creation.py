"""How long sessions take to create, and what they keep in memory: dense, compiled, in memory.

    python benchmarks/session_creation.py

Each session is created in a process of its own, which has imported everything before. The ways
take turns; ratios are of processes of the same round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from paired import ratio_of_rounds
from record import spread, write_results
from sparse_networks import export, export_pruned

from onnxprune.runtime import CompileOptions, compile_model

SPARSITY = 0.9
STOCK = "stock, dense model"
WAYS = {
    STOCK: ("dense.onnx", False),
    "stock, pruned model": ("pruned.onnx", False),
    "compiled file": ("compiled.onnx", True),
    "pruned model, compiled in memory": ("pruned.onnx", True),
}
"""The file, and whether `onnxprune.runtime.session` opens it."""

CHILD = """
import json, sys, time
import onnx, onnxruntime
from onnxprune import runtime

def memory():
    with open("/proc/self/status") as lines:
        values = dict(line.split(":", 1) for line in lines)
    return [1024 * int(values[name].split()[0]) for name in ("VmRSS", "VmHWM")]

path, ours, threads = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
runtime.available()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
providers = ["CPUExecutionProvider"]
before = memory()[0]
wall, cpu = time.perf_counter(), time.process_time()
opener = runtime.session if ours else onnxruntime.InferenceSession
session = opener(path, options, providers=providers)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
resident, peak = memory()
print(json.dumps({"wall_s": wall, "cpu_s": cpu,
                  "resident_bytes": resident - before, "peak_bytes": peak - before}))
"""


def main() -> None:
    """All networks and numbers of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["resnet50", "mobilenet_v3_large", "bert_base"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="session_creation")
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder)
            export(name, files / "dense.onnx")
            export_pruned(name, files / "pruned.onnx", SPARSITY, "unstructured")
            for threads in arguments.threads:
                compiled = compile_model(files / "pruned.onnx", CompileOptions(threads=threads))
                (files / "compiled.onnx").write_bytes(compiled.proto.SerializeToString())
                results.append(
                    {"model": name, "threads": threads, "sparsity": SPARSITY}
                    | measured(files, threads, arguments.repeats)
                )
    write_results(arguments.name, {"repeats": arguments.repeats}, results)


def measured(files: Path, threads: int, repeats: int) -> dict[str, Any]:
    """What each way takes, and its ratio to the dense model in plain ONNX Runtime."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for round_number in range(repeats + 1):
        for way, (file, ours) in WAYS.items():
            command = [sys.executable, "-c", CHILD, str(files / file), str(ours), str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            if round_number:  # the first reads files from the disk
                found[way].append(json.loads(done.stdout))
    ways = {}
    for way, processes in found.items():
        facts: dict[str, Any] = {
            key: spread([process[key] for process in processes]) for key in processes[0]
        }
        for key in ("wall_s", "cpu_s"):
            ours, stock = (
                np.array([process[key] for process in found[one]]) for one in (way, STOCK)
            )
            ratio = ratio_of_rounds(ours, stock, seed=0)
            facts[f"{key}_over_stock"] = {
                "ratio": round(ratio.ratio, 3),
                "low": round(ratio.low, 3),
                "high": round(ratio.high, 3),
            }
        ways[way] = facts
    return {"ways": ways}


if __name__ == "__main__":
    main()

r"""Does the library of sparse kernels work in several versions of ONNX Runtime?

Each version is installed into a folder of its own, and a process that sees no other runs a pruned
network with convolutions of all kinds, dense and compiled, and an encoder layer; each with the
samples of a batch together, and one after the other. The process also compiles the pruned network
in memory, as `onnxprune.runtime.session` does.

python benchmarks/runtime_versions.py
python benchmarks/runtime_versions.py --versions 1.17.3 1.20.1
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from sysconfig import get_path
from typing import Any, Literal

import sparse_networks
import torch
import torchvision
from record import ROOT, write_results

from onnxprune.runtime import CompileOptions, compile_model, library_path

VERSIONS = (
    *("1.17.0", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2"),
    *("1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1", "1.32.0"),
)

CHILD = """
import json, sys
import numpy as np
import onnxruntime as ort
from onnxprune.runtime import session

library, *pairs = sys.argv[1:]
found = []
for dense, compiled in zip(pairs[::2], pairs[1::2]):
    for threads in (1, 2):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        plain = ort.InferenceSession(dense, options, providers=["CPUExecutionProvider"])
        options.register_custom_ops_library(library)
        sparse = ort.InferenceSession(compiled, options, providers=["CPUExecutionProvider"])
        shape = [2 if isinstance(size, str) else size for size in plain.get_inputs()[0].shape]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        in_memory = session(dense, options)
        y, z, m = (s.run(None, {"x": x})[0] for s in (plain, sparse, in_memory))
        again = sparse.run(None, {"x": x})[0]
        found.append({
            "threads": threads,
            "difference": float(np.abs(y - z).max() / np.sqrt(np.mean(y**2))),
            "difference_in_memory": float(np.abs(y - m).max() / np.sqrt(np.mean(y**2))),
            "repeatable": bool((z == again).all()),
        })
print(json.dumps({"onnxruntime": ort.__version__, "numpy": np.__version__, "runs": found}))
"""


def main() -> None:
    """Try every version."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--name", default="runtime_versions")
    arguments = parser.parse_args()
    sparse_networks.NETWORKS.update(
        resnet18=(torchvision.models.resnet18, (3, 96, 96)),
        mobilenet_v3_small=(torchvision.models.mobilenet_v3_small, (3, 96, 96)),
        encoder=(partial(sparse_networks.encoder, 128, 4, 2), (40, 128)),
    )
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            str(path)
            for name in ("resnet18", "mobilenet_v3_small", "encoder")
            for samples in ("together", "split")
            for path in written(name, samples, Path(folder))
        ]
        for version in arguments.versions:
            results.append({"asked": version} | tried(version, pairs, Path(folder) / version))
            print(results[-1], flush=True)
    write_results(arguments.name, {"versions": arguments.versions, "sparsity": 0.9}, results)


def written(name: str, samples: Literal["together", "split"], folder: Path) -> tuple[Path, Path]:
    """A pruned network, and the same compiled."""
    pruned, compiled = folder / f"{name}.onnx", folder / f"{name}.{samples}.onnx"
    sparse_networks.export_pruned(name, pruned, 0.9, "unstructured")
    made = compile_model(pruned, CompileOptions(samples=samples))
    assert made.record.samples == samples, made.record.samples_reason
    compiled.write_bytes(made.proto.SerializeToString())
    return pruned, compiled


def tried(version: str, pairs: list[str], site: Path) -> dict[str, Any]:
    """What a process with this version of ONNX Runtime finds."""
    older = int(version.split(".")[1]) < 19  # built against the first NumPy
    packages = [f"onnxruntime=={version}", "numpy<2" if older else "numpy"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"installed": False, "error": done.stderr.strip().splitlines()[-1]}
    process = subprocess.run(
        [sys.executable, "-S", "-c", CHILD, str(library_path()), *pairs],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": os.pathsep.join([str(site), str(ROOT), get_path("purelib")])},
    )
    if process.returncode:
        return {"installed": True, "error": process.stderr.strip()[-500:]}
    return {"installed": True, **json.loads(process.stdout.splitlines()[-1])}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

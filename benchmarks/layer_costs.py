r"""What do layers cost, dense and sparse? The measurements behind the rule of `onnxprune compile`.

Networks are run dense in stock ONNX Runtime, and with every layer sparse, under ONNX Runtime's
profiler with one thread; the tenth percentile of many calls for each layer, which other programs
disturb least. The costs of `onnxprune.runtime.cost` are fitted by least squares of relative errors,
with coefficients >= 0; how well they foresee the speedup of a layer stands in the results.

python benchmarks/layer_costs.py
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from node_times import NodeTime, node_times
from record import write_results
from roofline import nonnegative_least_squares
from sparse_networks import BLOCK, NETWORKS, export, export_pruned

from onnxprune.runtime import CompileOptions, Thresholds, instruction_set
from onnxprune.runtime.compiler import read_plain, replaced
from onnxprune.runtime.cost import dense_works, sparse_works
from onnxprune.runtime.front import optimized
from onnxprune.runtime.graph import label
from onnxprune.runtime.plan import Plan

EVERYTHING = Thresholds.any_size(-1)


def main() -> None:
    """Measure every network and fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.7, 0.85])
    parser.add_argument("--patterns", nargs="+", default=["unstructured", f"block:{BLOCK}x1"])
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--name", default="layer_costs")
    parser.add_argument("--shared", action="store_true", help="other programs ran meanwhile")
    arguments = parser.parse_args()
    layers = []
    variants = [(p, s) for p in arguments.patterns for s in arguments.sparsities]
    for name in arguments.models:
        found = measured(name, variants, arguments.calls)
        print(f"{name}: {len(found)} layers", flush=True)
        layers += found
    costs = {side: fitted(layers, side) for side in ("dense", "sparse")}
    for layer in layers:
        dense, sparse = (
            sum(costs[side][kind] * count for kind, count in layer[f"{side}_works"].items())
            for side in ("dense", "sparse")
        )
        layer["speedup"], layer["expected"] = layer["dense_ms"] / layer["sparse_ms"], dense / sparse
    errors = np.log([layer["expected"] / layer["speedup"] for layer in layers])
    summary = {
        "layers": len(layers),
        "mean_log_error": float(errors.mean()),
        "rms_log_error": float(np.sqrt((errors**2).mean())),
    }
    settings = {
        "models": arguments.models,
        "sparsities": arguments.sparsities,
        "patterns": arguments.patterns,
        "calls": arguments.calls,
        "threads": 1,
        "shared": arguments.shared,
        "instructions": instruction_set(),
    }
    write_results(
        arguments.name, settings, {"nanoseconds": costs, "fit": summary, "layers": layers}
    )


def measured(name: str, variants: Sequence[tuple[str, float]], calls: int) -> list[dict[str, Any]]:
    """Each layer of a network with each pattern and sparsity."""
    x = np.random.default_rng(0).standard_normal((1, *NETWORKS[name][1]), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "dense.onnx"]
        export(name, paths[0])
        listed = []
        for pattern, sparsity in variants:
            paths.append(Path(folder) / f"{len(paths)}.onnx")
            listed.append(compiled(name, pattern, sparsity, paths[-1]))
        dense, *sparse = node_times(paths, {"x": x}, threads=1, calls=calls)
    return [
        {
            "model": name,
            **entry,
            "dense_ms": tenth(dense, names),
            "sparse_ms": tenth(times, [entry["layer"]]),
        }
        for entries, times in zip(listed, sparse, strict=True)
        for names, entry in entries
    ]


def compiled(
    name: str, pattern: str, sparsity: float, path: Path
) -> list[tuple[list[str], dict[str, Any]]]:
    """Write a network with every layer sparse; the layers, and their names in the dense one."""
    export_pruned(name, path, sparsity, pattern)
    source = read_plain(path)
    plan = Plan(optimized(source), CompileOptions(EVERYTHING, samples="together"))
    entries = []
    for number, layer in plan.chosen.items():
        if layer.depthwise is not None:
            continue  # its time has that of the depthwise layer in it, which has no cost of its own
        work = plan.work(layer)
        node = label(plan.proto.graph.node[number])
        entry = {
            "layer": node,
            "shape": list(layer.weight_shape),
            "sparsity": plan.weight(layer).sparsity,
            "block": work.block,
            "positions": work.positions,
            "dense_works": dense_works(work),
            "sparse_works": sparse_works(work),
        }
        entries.append(([layer.output + "_nchwc", node], entry))
    path.write_bytes(replaced(source, plan).proto.SerializeToString())
    return entries


def tenth(times: Sequence[NodeTime], names: Sequence[str]) -> float:
    """Tenth percentile of the first node that has one of the names, or begins with the last."""
    by_name = defaultdict(list)
    for time in times:
        by_name[time.name].append(time)
    for name in names:
        if by_name[name]:
            return float(np.percentile(by_name[name][0].times_ms, 10))
    fused = next(time for time in times if time.name.startswith(names[-1]))
    return float(np.percentile(fused.times_ms, 10))


def fitted(layers: Sequence[dict[str, Any]], side: str) -> dict[str, float]:
    """Nanoseconds of each kind of work."""
    kinds = sorted({kind for layer in layers for kind in layer[f"{side}_works"]})
    works = np.array(
        [[layer[f"{side}_works"].get(kind, 0.0) for kind in kinds] for layer in layers]
    )
    times = np.array([layer[f"{side}_ms"] * 1e6 for layer in layers])
    found = nonnegative_least_squares(works / times[:, None], np.ones(len(times)))
    return dict(zip(kinds, map(float, found), strict=True))


if __name__ == "__main__":
    main()

r"""How near do the sparse kernels come to what one core can do, layer by layer?

A small C++ program, `ceilings.cpp`, measures what the core can do. ONNX Runtime's profiler says
what each sparse layer of a ResNet-50 takes, with one thread: the median of many calls, or with
`--shared` the tenth percentile, which other programs disturb less. A layer is bound by the larger
of two times:

- compute: each weight that is left costs one multiply-add for each pixel, with pixels loaded from
  the first level of the cache, as fast as the loop of the kernels can be there;
- memory: what it must at least read and write once (input, residual, output, packed weights), at
  the bandwidths of the smallest level that holds it.

What layers take beyond that is attributed by least squares with coefficients >= 0 to what they do:
weights, beginnings and ends of rows, copies into slabs by kind, traffic of bytes.

python benchmarks/roofline.py
python benchmarks/roofline.py --pattern block:4x1 --name roofline_block
"""

import argparse
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnx
from native import built, output_of
from node_times import NodeTime, node_times
from onnx import helper
from record import RESULTS, write_results
from sparse_networks import NETWORKS, export_pruned

from onnxprune.runtime import CompileOptions, compile_model, instruction_set

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "onnxprune"

from matplotlib import pyplot  # noqa: E402

TILE, BLOCK_COLUMNS = 64, 128
LINE_FLOATS = 16
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True)
class SparseLayer:
    """A sparse operator, what it has to do, and how long it takes.

    Attributes:
        name: Of the node.
        kind: Class of layers, in words.
        nonzeros: Weights that are left.
        columns: Columns of the weight's matrix.
        rows: Outputs.
        pixels: Output pixels, or tokens.
        read_floats: Input and residual.
        median_ms: Median time of a call.
        tenth_ms: Tenth percentile.
        time_ms: The one of the two that counts.
    """

    name: str
    kind: str
    nonzeros: int
    columns: int
    rows: int
    pixels: int
    read_floats: int
    median_ms: float
    tenth_ms: float
    time_ms: float

    @property
    def flops(self) -> float:
        """Multiplications and additions with weights that are not zero."""
        return 2.0 * self.nonzeros * self.pixels

    @property
    def read_bytes(self) -> float:
        """What is read if everything is once; a weight that is left takes six bytes."""
        return 4.0 * self.read_floats + 6.0 * self.nonzeros

    @property
    def written_bytes(self) -> float:
        """The output."""
        return 4.0 * self.rows * self.pixels

    @property
    def lines(self) -> float:
        """Cache lines of one slab row, for all pixels."""
        return math.ceil(self.pixels / LINE_FLOATS)

    @property
    def blocks(self) -> int:
        """Into how many blocks the columns are cut."""
        return math.ceil(self.columns / BLOCK_COLUMNS)

    def works(self) -> dict[str, float]:
        """What it does, in units that should each cost the same everywhere."""
        copies = {
            "1x1": "aligned copies",
            "1x1, stride 2": "strided copies",
            "kxk": "shifted copies",
            "kxk, stride 2": "strided copies",
        }
        works = dict.fromkeys(("weights", "rows", *sorted(set(copies.values())), "traffic"), 0.0)
        works["weights"] = self.nonzeros * self.lines
        works["rows"] = self.rows * self.blocks * self.lines
        works["traffic"] = self.read_bytes + self.written_bytes
        in_place = self.kind == "1x1" and self.pixels % LINE_FLOATS == 0
        if self.kind in copies and not in_place:
            works[copies[self.kind]] = self.columns * self.lines
        return works


def main() -> None:
    """Measure the ceilings and the layers, and write results, table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=NETWORKS, default="resnet50")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--name", default="roofline")
    parser.add_argument("--shared", action="store_true", help="other programs ran meanwhile")
    arguments = parser.parse_args()
    ceilings = measured_ceilings()
    layers = measured_layers(arguments)
    spent = attribution(layers)
    rows = [row(layer, ceilings, parts) for layer, parts in zip(layers, spent, strict=True)]
    classes = by_class(rows)
    settings = {
        "model": arguments.model,
        "sparsity": arguments.sparsity,
        "pattern": arguments.pattern,
        "calls": arguments.calls,
        "threads": 1,
        "shared": arguments.shared,
        "instructions": instruction_set(),
    }
    results = {"ceilings": ceilings, "classes": classes, "layers": rows}
    write_results(arguments.name, settings, results)
    plot(rows, ceilings, RESULTS / f"{arguments.name}.svg")
    print(table(classes))


def measured_ceilings() -> dict[str, Any]:
    """What one core can do, by a program that is compiled for it."""
    with built("ceilings.cpp", "-march=native", "-ffast-math") as program:
        found: dict[str, Any] = json.loads(output_of(program))
    return found | {"cache_bytes": cache_bytes()}


def cache_bytes() -> dict[str, int]:
    """Sizes of the data caches that the first core uses, by level."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        number, unit = re.fullmatch(r"(\d+)([KM]?)", (index / "size").read_text().strip()).groups()
        factor = {"": 1, "K": 1 << 10, "M": 1 << 20}[unit]
        sizes["l" + (index / "level").read_text().strip()] = int(number) * factor
    return dict(sorted(sizes.items()))


def measured_layers(arguments: argparse.Namespace) -> list[SparseLayer]:
    """All sparse operators of a compiled network with their times."""
    with tempfile.TemporaryDirectory() as folder:
        pruned, compiled = Path(folder) / "pruned.onnx", Path(folder) / "compiled.onnx"
        export_pruned(arguments.model, pruned, arguments.sparsity, arguments.pattern)
        proto = compile_model(pruned, CompileOptions(samples="together")).proto
        compiled.write_bytes(proto.SerializeToString())
        shape = (1, *NETWORKS[arguments.model][1])
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        (times,) = node_times([compiled], {"x": x}, threads=1, calls=arguments.calls)
    nodes = {node.name: node for node in proto.graph.node}
    return [
        sparse_layer(nodes[time.name], time, arguments.shared)
        for time in times
        if time.op_type in ("SparseConv", "SparseMatMul")
    ]


def sparse_layer(node: onnx.NodeProto, time: NodeTime, shared: bool) -> SparseLayer:
    """What a sparse operator has to do, from its attributes and the shapes it was run with."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    (nonzeros,), (row_ends,) = time.inputs[1], time.inputs[3]
    rows = row_ends - 1
    pixels = math.prod(time.output) // rows
    residual = len(node.input) > 5 and bool(node.input[5])
    read = math.prod(time.inputs[0]) + (math.prod(time.output) if residual else 0)
    if node.op_type == "SparseConv":
        taps = math.prod(attributes["kernel_shape"])
        kind = "1x1" if taps == 1 else "kxk"
        kind += ", stride 2" if max(attributes["strides"]) > 1 else ""
        columns = attributes["in_channels"] * taps
    else:
        kind, columns = "product", attributes["in_features"]
    median, tenth = (float(np.percentile(time.times_ms, share)) for share in (50, 10))
    return SparseLayer(
        name=node.name,
        kind=kind,
        nonzeros=nonzeros,
        columns=columns,
        rows=rows,
        pixels=pixels,
        read_floats=read,
        median_ms=median,
        tenth_ms=tenth,
        time_ms=tenth if shared else median,
    )


def attribution(layers: Sequence[SparseLayer]) -> list[dict[str, float]]:
    """Milliseconds of each layer by what it does, by least squares of relative errors."""
    names = list(layers[0].works())
    works = np.array([[layer.works()[name] for name in names] for layer in layers])
    times = np.array([layer.time_ms for layer in layers])
    costs = nonnegative_least_squares(works / times[:, None], np.ones(len(layers)))
    return [dict(zip(names, costs * work, strict=True)) for work in works]


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients >= 0, by cyclic coordinate descent on the scaled normal equations."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    gram, right = (matrix / scale).T @ (matrix / scale), (matrix / scale).T @ target
    found = np.zeros(len(scale))
    for _ in range(20_000):
        for i in range(len(found)):
            if gram[i, i] > 0:
                found[i] = max(0.0, found[i] + (right[i] - gram[i] @ found) / gram[i, i])
    return found / scale


def row(layer: SparseLayer, ceilings: dict[str, Any], spent_ms: dict[str, float]) -> dict[str, Any]:
    """One layer beside its bound."""
    compute_ms = layer.flops / ceilings["weights_l1_gflops"] / 1e6
    least_bytes = layer.read_bytes + layer.written_bytes
    level = level_of(least_bytes, ceilings)
    read_ms = layer.read_bytes / ceilings[f"read_{level}_gbs"] / 1e6
    memory_ms = read_ms + layer.written_bytes / ceilings[f"write_{level}_gbs"] / 1e6
    return {
        "name": layer.name,
        "kind": layer.kind,
        "rows": layer.rows,
        "columns": layer.columns,
        "pixels": layer.pixels,
        "nonzeros": layer.nonzeros,
        "median_ms": layer.median_ms,
        "tenth_ms": layer.tenth_ms,
        "time_ms": layer.time_ms,
        "gflops": layer.flops / layer.time_ms / 1e6,
        "least_bytes": least_bytes,
        "flops_a_byte": layer.flops / least_bytes,
        "compute_ms": compute_ms,
        "memory_ms": memory_ms,
        "memory_level": level,
        "bound": "compute" if compute_ms >= memory_ms else "memory",
        "share_of_limit": max(compute_ms, memory_ms) / layer.time_ms,
        "estimated_ms": spent_ms,
    }


def level_of(size: float, ceilings: dict[str, Any]) -> str:
    """The smallest level of the memory that holds so many bytes."""
    fitting = (level for level, limit in ceilings["cache_bytes"].items() if size <= limit)
    return next(fitting, "memory")


def by_class(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over layers alike: same kind and number of pixels."""
    groups = defaultdict(list)
    for found in rows:
        groups[found["kind"], found["pixels"]].append(found)
    classes = []
    for (kind, pixels), members in groups.items():
        total = {
            key: sum(member[key] for member in members)
            for key in ("time_ms", "compute_ms", "memory_ms", "least_bytes")
        }
        limit = sum(max(member["compute_ms"], member["memory_ms"]) for member in members)
        flops = sum(member["gflops"] * member["time_ms"] for member in members)
        names = members[0]["estimated_ms"]
        spent = {name: sum(member["estimated_ms"][name] for member in members) for name in names}
        classes.append(
            {"kind": kind, "pixels": pixels, "layers": len(members)}
            | total
            | {
                "gflops": flops / total["time_ms"],
                "share_of_limit": limit / total["time_ms"],
                "bound_by_memory": sum(member["bound"] == "memory" for member in members),
                "estimated_share": {
                    name: ms / sum(spent.values()) for name, ms in spent.items() if ms
                },
            }
        )
    return classes


def table(classes: Sequence[dict[str, Any]]) -> str:
    """The classes as a Markdown table."""
    lines = [
        "| layers | pixels | time | GFLOP/s | bound | of the limit | estimated share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in classes:
        spent = sorted(found["estimated_share"].items(), key=lambda item: -item[1])
        words = ", ".join(f"{name} {share:.0%}" for name, share in spent if share >= 0.05)
        memory = found["bound_by_memory"]
        bound = "compute" if not memory else f"memory in {memory}"
        lines.append(
            f"| {found['layers']} of {found['kind']} | {found['pixels']:,} "
            f"| {found['time_ms']:.2f} ms | {found['gflops']:.0f} | {bound} "
            f"| {found['share_of_limit']:.0%} | {words} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], ceilings: dict[str, Any], path: Path) -> None:
    """Layers under their roofs."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    xs = np.geomspace(0.5, 200, 200)
    roof = ceilings["weights_l1_gflops"]
    for name, style in (("l2", "-"), ("l3", "--"), ("memory", ":")):
        bandwidth = ceilings[f"read_{name}_gbs"]
        label = f"reading from {name}: {bandwidth:.0f} GB/s"
        axes.plot(xs, np.minimum(bandwidth * xs, roof), style, color="#555555", label=label)
    registers = ceilings["fma_registers_gflops"]
    axes.axhline(registers, color="#bbbbbb", label=f"registers: {registers:.0f} GFLOP/s")
    kinds = sorted({found["kind"] for found in rows})
    for kind, colour in zip(kinds, _COLOURS, strict=False):
        of_kind = [found for found in rows if found["kind"] == kind]
        axes.scatter(
            [found["flops_a_byte"] for found in of_kind],
            [found["gflops"] for found in of_kind],
            s=[4 + 60 * found["time_ms"] for found in of_kind],
            color=colour,
            alpha=0.7,
            label=kind,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP with non-zeros for each byte that has to move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"One core; weights with loads from L1: {roof:.0f} GFLOP/s")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()

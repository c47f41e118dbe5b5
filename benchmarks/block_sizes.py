"""Which blocks do the sparse kernels gain from? Single layers with random weights, 90 % zeros.

Each is timed beside its dense layer under stock ONNX Runtime, side by side in one process, on one
thread and by the processor's time.

python benchmarks/block_sizes.py
"""

import argparse
import math
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import ModelProto, numpy_helper
from record import write_results

from onnxprune.runtime import CompileOptions, Thresholds, compile_model, instruction_set
from onnxprune.validate import bench

PATTERNS = [(1, 1), (4, 1), (8, 1), (16, 1), (4, 4), (2, 1), (2, 2), (1, 4)]
LAYERS = {
    "pointwise": ("float[1, 256, 14, 14] x", "Conv(x, w)", (256, 256, 1, 1)),
    "kernel 3": ("float[1, 128, 28, 28] x", "Conv<pads = [1, 1, 1, 1]>(x, w)", (128, 128, 3, 3)),
    "product": ("float[128, 768] x", "Gemm<transB = 1>(x, w)", (768, 768)),
}


def main() -> None:
    """Measure every layer with every pattern."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=5, help="for each comparison")
    parser.add_argument("--shared", action="store_true", help="other programs ran meanwhile")
    arguments = parser.parse_args()
    results = [
        measured(layer, pattern, arguments.sparsity, arguments.seconds)
        for layer in LAYERS
        for pattern in PATTERNS
    ]
    settings = {**vars(arguments), "threads": 1, "instructions": instruction_set()}
    write_results("block_sizes", settings, results)


def model(layer: str, weight: np.ndarray) -> ModelProto:
    """A layer as a model of its own."""
    given, operator, _ = LAYERS[layer]
    output = ", ".join("NCHW"[: weight.ndim])
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({given}) => (float[{output}] y)'
        f" {{ y = {operator} }}"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def measured(
    layer: str, pattern: tuple[int, int], sparsity: float, seconds: float
) -> dict[str, Any]:
    """Time of the dense layer over that of the sparse one."""
    rng = np.random.default_rng(0)
    rows, columns = pattern
    shape = LAYERS[layer][2]
    dense = rng.standard_normal(shape).astype(np.float32)
    blocks = (shape[0] // rows, shape[1] // columns, *shape[2:])
    kept = np.zeros(math.prod(blocks), bool)
    kept[rng.permutation(kept.size)[: round(kept.size * (1 - sparsity))]] = True
    mask = np.repeat(np.repeat(kept.reshape(blocks), rows, axis=0), columns, axis=1)
    compiled = compile_model(model(layer, dense * mask), CompileOptions(Thresholds()))
    (record,) = compiled.record.layers
    result = bench(
        [model(layer, dense), compiled.proto], threads=1, max_seconds=seconds, clock="cpu"
    )
    speedup = result.models[1].speedup
    assert speedup is not None
    return {
        "layer": layer,
        "pattern": f"{rows}x{columns}",
        "sparse": record.sparse,
        "block": record.block,
        "speedup": {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high},
        "latency_ms": [entry.latency_ms["median"] for entry in result.models],
    }


if __name__ == "__main__":
    main()

"""Make what a project that uses the gate already has: a dense model, a pruned one, and data.

The model tells apart four patterns in noise. Its weights are the patterns, so that it needs no
training; `onnxprune prune` removes half of them. Needs the extra `all`.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune

CLASSES, SHAPE, SAMPLES = 4, (3, 8, 8), 2000


def dense_model(patterns: np.ndarray) -> onnx.ModelProto:
    """`image` N×3×8×8 -> `scores` N×4, the products with the patterns `(4, 192)`."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classifier.weight"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "patterns",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(patterns, "classifier.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def main() -> None:
    """Write `dense.onnx`, `pruned.onnx` and `val.npz`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("models"), metavar="FOLDER")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(CLASSES, np.prod(SHAPE))).astype(np.float32)
    labels = rng.integers(CLASSES, size=SAMPLES)
    noise = rng.normal(scale=3, size=(SAMPLES, np.prod(SHAPE)))
    images = (patterns[labels] + noise).astype(np.float32).reshape(SAMPLES, *SHAPE)
    np.savez(folder / "val.npz", image=images, label=labels)
    onnx.save(dense_model(patterns), folder / "dense.onnx")
    recipe = onnxprune.Recipe.from_dict(
        {
            "sparsity": {"target": 0.5, "method": "one-shot"},
            "finetune": {"epochs": 0.0},
            "validate": {"latency": False},
        }
    )
    onnxprune.prune(folder / "dense.onnx", folder / "pruned.onnx", recipe)


if __name__ == "__main__":
    main()

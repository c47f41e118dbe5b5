"""Quick recipes, and what has to hold of every file that the main job writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnxprune.export import KEY, verify
from onnxprune.model import iter_tensors, read
from onnxprune.recipe import Recipe
from onnxprune.tensors import find_tensors

Arrays = dict[str, np.ndarray]
QUICK: dict[str, dict[str, Any]] = {
    "finetune": {"epochs": 1, "evaluations": 1, "device": "cpu", "threads": 1},
    "validate": {"latency": False, "threads": 1},
}


def quick(
    data: Path | None = None, evaluation: Path | None = None, /, **tables: dict[str, Any]
) -> Recipe:
    """A recipe for a run of a second at most, with tables laid over it."""
    names = dict.fromkeys([*QUICK, *tables])
    values = {table: QUICK.get(table, {}) | tables.get(table, {}) for table in names}
    specs = {"train": data, "eval": evaluation}
    values["data"] = {key: str(spec) for key, spec in specs.items() if spec} | values.get(
        "data", {}
    )
    if data is None:
        values["finetune"] = values["finetune"] | {"epochs": 0}
    return Recipe.from_dict(values)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def text_model(graph: str, arrays: Arrays) -> onnx.ModelProto:
    """A model from the text of its graph and its initializers."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> {graph}')
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return proto


def labels(count: int) -> np.ndarray:
    """Every class in turn."""
    return np.arange(count) % 3


def mlp(batch: str = "N") -> tuple[onnx.ModelProto, Arrays]:
    """A multi-layer perceptron of 176 prunable weights, and 40 samples."""
    graph = f"""g (float[{batch},8] x) => (float[{batch},3] y) {{
        h = Gemm<transB = 1>(x, w1, b1)
        r = Relu(h)
        y = Gemm<transB = 1>(r, w2, b2)
    }}"""
    arrays = {"w1": normal(16, 8), "b1": normal(16), "w2": normal(3, 16), "b2": normal(3)}
    return text_model(graph, arrays), {"x": normal(40, 8, seed=5), "label": labels(40)}


def dropout_classifier() -> tuple[onnx.ModelProto, Arrays]:
    """A model whose training draws random numbers and moves statistics, and 48 samples."""
    graph = """g (float[N,2,4,4] x) => (float[N,3] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        n = BatchNormalization(c, scale, shift, mean, var)
        r = Relu(n)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        d = Dropout(f, ratio)
        y = MatMul(d, head)
    }"""
    arrays = {
        "w": normal(8, 2, 3, 3),
        "scale": np.ones(8, dtype=np.float32),
        "shift": normal(8),
        "mean": normal(8, scale=0.1),
        "var": np.ones(8, dtype=np.float32),
        "ratio": np.array(0.3, dtype=np.float32),
        "head": normal(8, 3),
    }
    return text_model(graph, arrays), {"x": normal(48, 2, 4, 4, seed=5), "label": labels(48)}


def save(folder: Path, proto: onnx.ModelProto, data: Arrays) -> tuple[Path, Path, Path]:
    """Paths of a model, its data, and of the file to write."""
    model, samples = folder / "dense.onnx", folder / "data.npz"
    onnx.save(proto, model)
    np.savez(samples, **data)
    return model, samples, folder / "pruned.onnx"


def stop_after(step: int) -> tuple[Callable[[dict[str, Any]], None], Callable[[], bool]]:
    """A progress callback and a stop callback that ends a run after a step."""
    seen = {"step": 0}

    def on_progress(entry: dict[str, Any]) -> None:
        seen["step"] = max(seen["step"], entry.get("step", 0) if entry["kind"] == "train" else 0)

    return on_progress, lambda: seen["step"] >= step


def weights(path: Path) -> Arrays:
    """The prunable tensors of a file by name."""
    tensors = find_tensors(read(path).proto).values()
    return {tensor.name: tensor.array() for tensor in tensors if tensor.prunable}


def log(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's log."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_pruned(source: Path, output: Path, target: float) -> None:
    """The file holds exactly the zeros asked for, says so truly, and is else the same graph."""
    arrays = weights(output).values()
    size = sum(array.size for array in arrays)
    zeros = sum(int((array == 0).sum()) for array in arrays)
    assert zeros == math.ceil(round(target * size, 9))
    pruned = read(output).proto
    check = verify(pruned)
    assert check.true, check.problems
    assert check.metadata is not None
    assert check.metadata["sparsity"] == pytest.approx(zeros / size, abs=1e-12)
    assert _without_values(pruned) == _without_values(read(source).proto)
    assert not list(output.parent.glob(".*.tmp"))


def _without_values(proto: onnx.ModelProto) -> bytes:
    """A model without the values of its float tensors and without sparsity metadata."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for message in (copy, *iter_tensors(copy)):
        kept = [(entry.key, entry.value) for entry in message.metadata_props if entry.key != KEY]
        del message.metadata_props[:]
        for key, value in kept:
            message.metadata_props.add(key=key, value=value)
    for tensor in iter_tensors(copy):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
    return copy.SerializeToString(deterministic=True)

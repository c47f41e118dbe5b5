"""What is found out before any work begins."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.errors import (
    DataError,
    ModelFileError,
    OutputError,
    TargetError,
    UnsupportedModelError,
    UsageError,
)
from onnxprune.job import Job, prepare
from onnxprune.recipe import Recipe

Prepare = Callable[..., Job]


@pytest.fixture
def prepared(classifier: Path, training_data: Path) -> Prepare:
    """`prepare` for the classifier and its data, with tables of a recipe laid over defaults."""

    def call(output: Path | None = None, **options: Any) -> Job:
        tables = options.pop("tables", {})
        data = {"train": str(training_data)} | tables.pop("data", {})
        recipe = Recipe.from_dict({"data": data, **tables})
        return prepare(classifier, output or classifier.with_name("out.onnx"), recipe, **options)

    return call


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_nothing_is_written(prepared: Prepare, tmp_path: Path) -> None:
    before = files(tmp_path)
    prepared(run_dir=tmp_path / "new" / "run")
    assert files(tmp_path) == before


def test_steps(prepared: Prepare) -> None:
    job = prepared(tables={"finetune": {"epochs": 2.5, "batch_size": 48}})
    assert (job.steps_per_epoch, job.total_steps) == (3, 8)
    job = prepared(tables={"finetune": {"epochs": 3, "batch_size": 9999}})
    assert (job.steps_per_epoch, job.total_steps) == (1, 3)


def test_a_share_of_an_epoch_is_at_least_a_step(prepared: Prepare) -> None:
    """Whoever asks for training gets some."""
    assert prepared(tables={"finetune": {"epochs": 0.01}}).total_steps == 1
    assert prepared(tables={"finetune": {"epochs": 0}}).total_steps == 0


def test_without_data(classifier: Path, evaluation_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match="--epochs 0"):
        prepare(classifier, output, Recipe())
    recipe = Recipe.from_dict({"data": {"eval": str(evaluation_data)}, "finetune": {"epochs": 0}})
    job = prepare(classifier, output, recipe)
    assert job.train is None
    assert job.eval is not None
    assert (job.steps_per_epoch, job.total_steps) == (1, 0)


def test_held_out_samples_are_seeded_and_disjoint(prepared: Prepare) -> None:
    first, again, other = (
        prepared(tables={"finetune": {"seed": seed}, "data": {"holdout": 0.25}})
        for seed in (0, 0, 1)
    )
    assert first.train is not None
    assert first.eval is not None
    assert (len(first.train), len(first.eval), first.held_out) == (120, 40, True)
    assert first.data_facts == again.data_facts != other.data_facts
    kept = {first.train[i].inputs["x"].tobytes() for i in range(len(first.train))}
    held = {first.eval[i].inputs["x"].tobytes() for i in range(len(first.eval))}
    assert not kept & held
    assert len(kept | held) == 160
    assert any("40 samples (25%)" in note for note in first.notes)


def test_evaluation_data_of_its_own(prepared: Prepare, evaluation_data: Path) -> None:
    job = prepared(tables={"data": {"eval": str(evaluation_data)}})
    facts = job.data_facts
    assert facts["train"]["samples"] == 160
    assert facts["eval"]["samples"] == 64
    assert facts["eval"]["held_out"] is False
    assert job.notes == []


def test_a_learning_rate_that_never_falls_is_told(prepared: Prepare) -> None:
    """Held until the target is reached, which is the last step where pruning ends there."""
    settings = {"sparsity": {"method": "cascade-gmp"}, "cascade": {"hold_lr": True}}
    held = prepared(tables=settings | {"schedule": {"end": 1.0}})
    assert any("stays at its peak to the last step" in note for note in held.notes)
    for other in (
        settings | {"schedule": {"end": 0.6}},
        settings | {"cascade": {"hold_lr": False}, "schedule": {"end": 1.0}},
        settings | {"sparsity": {"method": "gmp"}, "schedule": {"end": 1.0}},
    ):
        assert not any("peak" in note for note in prepared(tables=other).notes)


def test_limit(prepared: Prepare, evaluation_data: Path) -> None:
    job = prepared(tables={"data": {"eval": str(evaluation_data), "limit": 20}})
    assert job.data_facts["train"]["samples"] == 20
    assert job.data_facts["eval"]["samples"] == 64


class TestIdentity:
    def test_ignores_paths_and_machine_choices(
        self, prepared: Prepare, training_data: Path, tmp_path: Path
    ) -> None:
        moved = tmp_path / "moved.npz"
        moved.write_bytes(training_data.read_bytes())
        job = prepared()
        other = prepared(
            tmp_path / "other.onnx",
            run_dir=tmp_path / "elsewhere",
            tables={
                "data": {"train": str(moved)},
                "finetune": {"threads": 1, "device": "cpu", "checkpoint_seconds": 1},
                "validate": {"latency": False},
            },
        )
        assert job.identity == other.identity

    @pytest.mark.parametrize(
        "tables",
        [
            {"sparsity": {"target": 0.7}},
            {"finetune": {"seed": 1}},
            {"finetune": {"batch_size": 31}},
            {"data": {"limit": 100}},
            {"distill": {"weight": 0.1}},
            {"export": {"storage": "sparse"}},
        ],
        ids=str,
    )
    def test_knows_what_decides_the_result(self, prepared: Prepare, tables: dict[str, Any]) -> None:
        assert prepared().identity["run_id"] != prepared(tables=tables).identity["run_id"]


class TestOutput:
    def test_must_not_be_the_model(self, prepared: Prepare, classifier: Path) -> None:
        with pytest.raises(UsageError, match="overwrite the dense model"):
            prepared(classifier)

    def test_nor_reach_it_by_another_name(
        self, prepared: Prepare, classifier: Path, tmp_path: Path
    ) -> None:
        link = tmp_path / "link.onnx"
        try:
            link.symlink_to(classifier)
        except OSError:
            pytest.skip("no links here")
        hard = tmp_path / "hard.onnx"
        os.link(classifier, hard)
        (tmp_path / "sub").mkdir()
        for path in (link, hard, tmp_path / "sub" / ".." / classifier.name):
            with pytest.raises(UsageError, match="overwrite the dense model"):
                prepared(path)

    def test_needs_a_folder(self, prepared: Prepare, tmp_path: Path, training_data: Path) -> None:
        """One that is missing is made when the output is written, and not before."""
        prepared(tmp_path / "missing" / "out.onnx")
        assert not (tmp_path / "missing").exists()
        with pytest.raises(OutputError, match="cannot be written"):
            prepared(training_data / "out.onnx")

    def test_is_no_folder(self, prepared: Prepare, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="is a folder"):
            prepared(tmp_path)

    def test_is_not_the_run_directory(self, prepared: Prepare, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="same name"):
            prepared(tmp_path / "pruned.run")

    def test_run_directory_by_default(self, prepared: Prepare, tmp_path: Path) -> None:
        assert prepared(tmp_path / "a.b.onnx").run.path == tmp_path / "a.b.run"

    def test_a_run_directory_that_is_a_file(self, prepared: Prepare, training_data: Path) -> None:
        with pytest.raises(OutputError, match="is a file"):
            prepared(run_dir=training_data)

    def test_a_run_directory_that_cannot_be_made(
        self, prepared: Prepare, training_data: Path
    ) -> None:
        """Found now and not after the data were read."""
        with pytest.raises(OutputError, match="run directory"):
            prepared(run_dir=training_data / "run")

    def test_a_provider_that_is_not_there(self, prepared: Prepare) -> None:
        """Found now and not after training."""
        with pytest.raises(UsageError, match="provider"):
            prepared(tables={"validate": {"provider": "QuantumExecutionProvider"}})


class TestOrder:
    """The cheap checks come first, so that a mistake is told at once."""

    def test_a_missing_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no such model file"):
            prepare(tmp_path / "no.onnx", tmp_path / "out.onnx", Recipe())

    def test_an_infeasible_target(self, prepared: Prepare) -> None:
        with pytest.raises(TargetError, match=r"at most \d+ zeros"):
            prepared(tables={"sparsity": {"target": 0.95, "min_density": 0.1}})

    def test_nothing_left(self, prepared: Prepare) -> None:
        with pytest.raises(TargetError, match="no tensor is left to prune"):
            prepared(tables={"sparsity": {"exclude": ["op:Conv", "fc.*"]}})

    def test_one_sample_cannot_be_split(self, classifier: Path, tmp_path: Path) -> None:
        data = tmp_path / "one.npz"
        np.savez(data, x=np.zeros((1, 3, 8, 8), np.float32), label=[0])
        recipe = Recipe.from_dict({"data": {"train": str(data)}})
        with pytest.raises(DataError, match="too few samples"):
            prepare(classifier, tmp_path / "out.onnx", recipe)

    def test_labels_need_scores(self, tmp_path: Path) -> None:
        """Found now and not when the pruned model is validated."""
        graph = "g (float[N,8] x) => (int64[N] c, float[N,3] y) {{ y = MatMul(x, w) {} }}"
        text = graph.format("c = ArgMax<axis = 1, keepdims = 0>(y)")
        proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> {text}')
        weight = np.eye(8, 3, dtype=np.float32) + 1
        proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
        onnx.save(proto, model)
        recipe = Recipe.from_dict({"data": {"train": str(data)}})
        np.savez(data, x=np.ones((9, 8), np.float32), label=np.arange(9) % 3)
        with pytest.raises(DataError, match=r"'c'[\s\S]*int64"):
            prepare(model, tmp_path / "out.onnx", recipe)
        np.savez(data, x=np.ones((9, 8), np.float32))
        assert prepare(model, tmp_path / "out.onnx", recipe).total_steps == 4

    def test_a_model_that_cannot_be_imported(
        self, classifier: Path, training_data: Path, tmp_path: Path
    ) -> None:
        """An unsupported operator is told with its node, before a run directory exists."""
        proto = onnx.load(classifier)
        proto.graph.node[2].op_type = "Relux"
        onnx.save(proto, classifier)
        recipe = Recipe.from_dict({"data": {"train": str(training_data)}})
        with pytest.raises(Exception, match="relu") as caught:
            prepare(classifier, tmp_path / "out.onnx", recipe)
        assert getattr(caught.value, "exit_code", None) == 3


def test_a_quantized_model_is_refused_with_its_nodes(
    classifier: Path, training_data: Path, tmp_path: Path
) -> None:
    proto = onnx.load(classifier)
    name = proto.graph.node[0].input[0]
    proto.graph.node[0].input[0] = "real"
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["real"]))
    proto.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", [name, "s"], ["q"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.1).reshape(()), "s"))
    onnx.save(proto, classifier)
    recipe = Recipe.from_dict({"data": {"train": str(training_data)}})
    with pytest.raises(UnsupportedModelError, match="quantised") as caught:
        prepare(classifier, tmp_path / "out.onnx", recipe)
    assert caught.value.exit_code == 3
    assert caught.value.got == "QuantizeLinear 'q', DequantizeLinear 'real'"
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("prune the float model first")


def test_a_model_of_integer_weights_alone_is_refused_as_quantized(
    training_data: Path, tmp_path: Path
) -> None:
    """It has no tensor to prune, but that is not what is wrong with it."""
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y) {
            q, s, z = DynamicQuantizeLinear(x)
            h = MatMulInteger(q, w, z)
            r = Cast<to = 1>(h)
            y = Mul(r, s)
        }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.int8), "w"))
    path = tmp_path / "integers.onnx"
    onnx.save(proto, path)
    recipe = Recipe.from_dict({"data": {"train": str(training_data)}})
    with pytest.raises(UnsupportedModelError, match="MatMulInteger 'h'"):
        prepare(path, tmp_path / "out.onnx", recipe)


def test_a_model_of_trees_is_refused_with_its_operator(training_data: Path, tmp_path: Path) -> None:
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        g (float[N,4] x) => (float[N,1] y) {
            y = ai.onnx.ml.TreeEnsembleRegressor<
                n_targets = 1, nodes_falsenodeids = [2, 0, 0], nodes_featureids = [0, 0, 0],
                nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], nodes_nodeids = [0, 1, 2],
                nodes_treeids = [0, 0, 0], nodes_truenodeids = [1, 0, 0],
                nodes_values = [0.5, 0.0, 0.0], target_ids = [0, 0], target_nodeids = [1, 2],
                target_treeids = [0, 0], target_weights = [1.0, 2.0]
            >(x)
        }"""
    )
    path = tmp_path / "trees.onnx"
    onnx.save(proto, path)
    recipe = Recipe.from_dict({"data": {"train": str(training_data)}})
    with pytest.raises(UnsupportedModelError, match="TreeEnsembleRegressor") as caught:
        prepare(path, tmp_path / "out.onnx", recipe)
    assert caught.value.exit_code == 3
    assert caught.value.remedy is not None
    assert "no weights to train" in caught.value.remedy


def test_a_model_that_is_sparser_than_the_target_is_noted(
    classifier: Path, training_data: Path, tmp_path: Path
) -> None:
    """What training fills again would go unnoticed."""
    proto = onnx.load(classifier)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim >= 2:
            array[...] = np.where(np.arange(array.size).reshape(array.shape) % 10, 0, array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    sparse = tmp_path / "sparse.onnx"
    onnx.save(proto, sparse)

    def noted(target: float) -> bool:
        tables = {"data": {"train": str(training_data)}, "sparsity": {"target": target}}
        job = prepare(sparse, tmp_path / "out.onnx", Recipe.from_dict(tables))
        return any("zero already" in note for note in job.notes)

    assert noted(0.5)
    assert not noted(0.95)

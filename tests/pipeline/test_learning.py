"""What the main job learns from: tasks, inner tensors, teachers, and what it refuses."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.calibration import Sample, Samples
from onnxprune.errors import DataError, OnnxpruneError, UnsupportedModelError, UsageError
from onnxprune.export import tapped
from onnxprune.importer import load
from onnxprune.job import prepare
from onnxprune.learning import make_objective
from onnxprune.model import read
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from onnxprune.validate import open_session

from .helpers import Arrays, assert_pruned, log, mlp, normal, quick, save, text_model, weights

pytestmark = pytest.mark.usefixtures("no_report")
TRAIN: dict[str, Any] = {"epochs": 4, "batch_size": 8, "device": "cpu", "threads": 1}


class Targets(Samples):
    """Samples with any whole numbers as targets."""

    def __init__(self, inputs: Arrays, targets: Sequence[Any] | None) -> None:
        self.name = "targets"
        self.inputs = inputs
        self.targets = targets

    @property
    def labelled(self) -> bool:
        return self.targets is not None

    def digest(self) -> str:
        return "0" * 64

    def _count(self) -> int:
        return len(next(iter(self.inputs.values())))

    def _sample(self, index: int) -> Sample:
        arrays = {name: array[index] for name, array in self.inputs.items()}
        return Sample(arrays, self._label(index))

    def _label(self, index: int) -> Any:
        return None if self.targets is None else self.targets[index]

    def _fingerprint(self, index: int) -> bytes:
        raise NotImplementedError


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Samples], None]:
    """Let every data spec stand for some samples."""

    def give(samples: Samples) -> None:
        monkeypatch.setattr("onnxprune.job.open_data", lambda spec, **settings: samples)

    return give


def run(
    folder: Path, proto: onnx.ModelProto, recipe: Recipe, allow_python: bool = False
) -> dict[str, Any]:
    model, output = folder / "dense.onnx", folder / "pruned.onnx"
    onnx.save(proto, model)
    results = prune(model, output, recipe, allow_python=allow_python)
    assert_pruned(model, output, recipe.sparsity.resolved_target)
    return results


def recipe(folder: Path, **tables: dict[str, Any]) -> Recipe:
    finetune = TRAIN | tables.pop("finetune", {})
    sparsity = {"target": 0.5} | tables.pop("sparsity", {})
    return quick(folder, folder, finetune=finetune, sparsity=sparsity, **tables)


def evaluations(folder: Path) -> list[dict[str, float]]:
    return [e["metrics"] for e in log(folder / "pruned.run") if e["kind"] == "eval"]


class TestTasks:
    def test_several_labels_a_sample(self, tmp_path: Path, use: Any) -> None:
        proto, data = mlp()
        logits = open_session(proto).run({"x": data["x"]})["y"]
        use(Targets({"x": data["x"]}, (logits > 0).astype(int).tolist()))
        settings = recipe(tmp_path, finetune={"loss": "bce", "epochs": 8}, distill={"weight": 0.0})
        validation = run(tmp_path, proto, settings)["validation"]
        assert validation["dense"].keys() == {"loss", "accuracy"}
        assert validation["dense"]["accuracy"] == 1
        expected = np.logaddexp(0, -np.abs(logits)).mean()
        assert validation["dense"]["loss"] == pytest.approx(expected, rel=1e-4)
        assert validation["pruned"].keys() == {
            "loss",
            "accuracy",
            "cosine",
            "sqnr_db",
            "mean_abs_error",
            "max_abs_error",
        }
        (measured,) = evaluations(tmp_path)
        assert measured.keys() == {"loss", "accuracy"}

    def test_sequences_without_alignment(self, tmp_path: Path, use: Any) -> None:
        graph = """g (float[N,6,5] x) => (float[N,6,4] y) {
            h = MatMul(x, w1)
            r = Tanh(h)
            z = MatMul(r, w2)
            y = Softmax<axis = -1>(z)
        }"""
        proto = text_model(graph, {"w1": normal(5, 16), "w2": normal(16, 4)})
        targets = np.random.default_rng(0).integers(1, 4, (40, 2))
        targets[::3, 1] = -1
        use(Targets({"x": normal(40, 6, 5, seed=5)}, targets.tolist()))
        settings = {"loss": "ctc", "epochs": 12, "evaluations": 4, "optimizer": "adamw", "lr": 0.02}
        results = run(tmp_path, proto, recipe(tmp_path, finetune=settings, distill={"weight": 0.0}))
        dense, pruned = (results["validation"][key] for key in ("dense", "pruned"))
        assert dense.keys() == {"loss"}
        assert pruned["loss"] < 0.7 * dense["loss"]
        losses = [metrics["loss"] for metrics in evaluations(tmp_path)]
        assert losses[-1] < losses[0]
        assert pruned["loss"] == pytest.approx(losses[-1], rel=0.05)

    def test_sequences_with_time_first(self, tmp_path: Path, use: Any) -> None:
        """One sample at a time, to the same weights as with the batch first."""
        found = []
        for last in ("y = Identity(z)", "y = Transpose<perm = [1, 0, 2]>(z)"):
            graph = f"""g (float[N,6,5] x) => (float[A,B,4] y) {{
                h = MatMul(x, w1)
                r = Tanh(h)
                z = MatMul(r, w2)
                {last}
            }}"""
            proto = text_model(graph, {"w1": normal(5, 16), "w2": normal(16, 4)})
            targets = np.random.default_rng(0).integers(1, 4, (24, 2)).tolist()
            use(Targets({"x": normal(24, 6, 5, seed=5)}, targets))
            settings = recipe(tmp_path, finetune={"loss": "ctc"}, distill={"weight": 0.0})
            found.append((run(tmp_path, proto, settings), weights(tmp_path / "pruned.onnx")))
            (tmp_path / "pruned.run").rename(tmp_path / f"{len(found)}.run")
        for name, array in found[0][1].items():
            np.testing.assert_allclose(found[1][1][name], array, atol=1e-5)
        losses = [results["validation"]["pruned"]["loss"] for results, _ in found]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    def test_time_first_in_batches_of_a_fixed_size_is_refused(
        self, tmp_path: Path, use: Any
    ) -> None:
        graph = """g (float[4,6,5] x) => (float[6,4,4] y) {
            z = MatMul(x, w)
            y = Transpose<perm = [1, 0, 2]>(z)
        }"""
        use(Targets({"x": normal(24, 6, 5, seed=5)}, [[1, 2]] * 24))
        settings = recipe(tmp_path, finetune={"loss": "ctc"}, distill={"weight": 0.0})
        with pytest.raises(UnsupportedModelError, match=r"got: shape \(6, 4, 4\) for 4 samples"):
            run(tmp_path, text_model(graph, {"w": normal(5, 4)}), settings)

    def test_a_label_for_each_position(self, tmp_path: Path, use: Any) -> None:
        graph = "g (float[N,6,5] x) => (float[N,6,4] y) { h = MatMul(x, w1) y = MatMul(h, w2) }"
        proto = text_model(graph, {"w1": normal(5, 16), "w2": normal(16, 4)})
        x = normal(40, 6, 5, seed=5)
        targets = open_session(proto).run({"x": x})["y"].argmax(axis=2)
        targets[:, 4:] = -1
        use(Targets({"x": x}, targets.tolist()))
        settings = recipe(tmp_path, finetune={"loss": "cross-entropy"})
        validation = run(tmp_path, proto, settings)["validation"]
        assert validation["dense"]["accuracy"] == 1
        assert 0.3 < validation["pruned"]["accuracy"] <= 1
        assert "top1" not in validation["pruned"]
        assert evaluations(tmp_path)[-1].keys() == {"loss", "accuracy"}

    def test_another_output_than_the_first(self, tmp_path: Path) -> None:
        proto, data = mlp()
        proto.graph.output.insert(0, onnx.helper.make_tensor_value_info("h", 1, ["N", 16]))
        _, samples, _ = save(tmp_path, proto, data)
        settings = recipe(samples, finetune={"loss_output": "y"})
        validation = run(tmp_path, proto, settings)["validation"]
        logits = open_session(proto).run({"x": data["x"]})["y"]
        top1 = (logits.argmax(axis=1) == data["label"]).mean()
        assert validation["dense"]["top1"] == pytest.approx(top1)
        with pytest.raises(UsageError, match=r"no such output(.|\n)*'h', 'y'"):
            run(tmp_path, proto, recipe(samples, finetune={"loss_output": "z"}))


class TestUsersLoss:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "my_losses.py").write_text(
            "import torch\n"
            "def margin(outputs, labels, inputs):\n"
            "    assert set(inputs) == {'x'} and set(outputs) == {'y'}\n"
            "    return torch.nn.functional.multi_margin_loss(outputs['y'], labels)\n"
            "def zero(outputs, labels, inputs):\n"
            "    return outputs['y'].square().mean()\n"
            "def broken(outputs, labels, inputs):\n"
            "    return outputs['logits'].mean()\n"
        )
        monkeypatch.chdir(tmp_path)
        yield tmp_path
        sys.modules.pop("my_losses", None)

    def test_is_minimised_and_measured(self, module: Path) -> None:
        proto, data = mlp()
        _, samples, _ = save(module, proto, data)
        settings = {"loss": "python:my_losses:margin", "epochs": 20, "lr": 0.05}
        chosen = recipe(samples, finetune=settings, distill={"weight": 0.0})
        validation = run(module, proto, chosen, allow_python=True)["validation"]
        assert validation["dense"].keys() == {"loss"}
        assert validation["pruned"]["loss"] < 0.5 * validation["dense"]["loss"]

    def test_may_do_without_targets(self, module: Path) -> None:
        proto, data = mlp()
        del data["label"]
        _, samples, _ = save(module, proto, data)
        chosen = recipe(samples, finetune={"loss": "python:my_losses:zero"}, distill={"weight": 0})
        validation = run(module, proto, chosen, allow_python=True)["validation"]
        y = open_session(proto).run({"x": data["x"]})["y"]
        assert validation["dense"] == {"loss": pytest.approx(np.square(y).mean(), rel=1e-4)}
        assert validation["pruned"]["loss"] < validation["dense"]["loss"]

    @pytest.mark.parametrize(
        ("loss", "allowed", "match"),
        [
            ("my_losses:margin", False, "--allow-python"),
            ("my_losses:broken", True, r"my_losses.py:8 in broken(.|\n)*KeyError: 'logits'"),
            ("my_losses:missing", True, "AttributeError"),
            ("not_there:f", True, "ModuleNotFoundError"),
        ],
    )
    def test_refusals(self, module: Path, loss: str, allowed: bool, match: str) -> None:
        proto, data = mlp()
        _, samples, output = save(module, proto, data)
        chosen = recipe(samples, finetune={"loss": f"python:{loss}"})
        with pytest.raises(UsageError, match=match):
            run(module, proto, chosen, allow_python=allowed)
        assert not output.exists()


class TestMisfits:
    """Found before the first step, with what was found and what would be right."""

    @pytest.mark.parametrize(
        ("tables", "targets", "error", "match"),
        [
            ({"finetune": {"loss": "bce"}}, None, DataError, "'bce' needs targets"),
            ({"finetune": {"loss": "mse"}}, [[1, 2]] * 40, DataError, r"\[8, 3\] and (.|\n)*8, 2"),
            ({"finetune": {"loss": "ctc"}}, [[1, 2]] * 40, DataError, r"float32\[8, 3\]"),
            ({"finetune": {"loss": "bce"}}, [[0, 1, 5]] * 40, DataError, "targets from 0 to 5"),
            ({}, [[0, 1, 1]] * 40, DataError, r"\[8, 3\] and targets int64\[8, 3\]"),
            ({"distill": {"mask_input": "m"}}, None, UsageError, r"no such input(.|\n)*'x'"),
            ({"distill": {"mask_input": "x"}}, None, UsageError, "axes of the mask"),
            ({"distill": {"outputs": ["z*"]}}, None, UsageError, r"got: z\*"),
            ({"distill": {"features": {"hh": 1.0}}}, None, UsageError, r"expected: one like 'h'"),
            ({"distill": {"outputs": ["n"]}}, None, UnsupportedModelError, "none can be compared"),
            ({"distill": {"features": {"n": 1.0}}}, None, UsageError, r"int64\[1\] for 8 samples"),
        ],
    )
    def test_are_refused(
        self,
        tmp_path: Path,
        use: Any,
        tables: dict[str, Any],
        targets: Any,
        error: type[OnnxpruneError],
        match: str,
    ) -> None:
        proto, data = mlp()
        proto.graph.node.append(onnx.helper.make_node("Size", ["h"], ["size"]))
        proto.graph.node.append(onnx.helper.make_node("Unsqueeze", ["size", "zero"], ["n"]))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        proto.graph.output.append(onnx.helper.make_tensor_value_info("n", 7, [1]))
        use(Targets({"x": data["x"]}, targets))
        with pytest.raises(error, match=match):
            run(tmp_path, proto, recipe(tmp_path, **tables))
        assert not (tmp_path / "pruned.onnx").exists()
        assert not (tmp_path / "pruned.run" / "metrics.jsonl").exists()


def test_label_free_sequences_learn_from_the_dense_model(tmp_path: Path) -> None:
    """Padded positions are left out where an input marks them."""
    graph = """g (float[N,6,5] x, int64[N,6] mask) => (float[N,6,4] y) {
        h = MatMul(x, w1)
        r = Tanh(h)
        y = MatMul(r, w2)
    }"""
    proto = text_model(graph, {"w1": normal(5, 32), "w2": normal(32, 4)})
    mask = (np.arange(6) < np.random.default_rng(0).integers(2, 7, (40, 1))).astype(np.int64)
    x = normal(40, 6, 5, seed=5)
    x[mask == 0] = 1e4
    _, samples, _ = save(tmp_path, proto, {"x": x, "mask": mask})
    distances = []
    for epochs in (0, 30):
        settings = {"epochs": epochs, "optimizer": "adamw", "lr": 0.01, "evaluations": 0}
        run(tmp_path, proto, recipe(samples, finetune=settings, distill={"mask_input": "mask"}))
        dense, pruned = (
            open_session(tmp_path / name).run({"x": x, "mask": mask})["y"][mask == 1]
            for name in ("dense.onnx", "pruned.onnx")
        )
        distances.append(float(np.square(dense - pruned).mean() / dense.var()))
    assert distances[1] < 0.5 * distances[0]


def conv_net() -> tuple[onnx.ModelProto, Arrays]:
    """Two convolutions and a head, and 64 unlabelled samples."""
    graph = """g (float[N,3,8,8] x) => (float[N,5] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2)
        r2 = Relu(c2)
        p = GlobalAveragePool(r2)
        f = Flatten(p)
        y = MatMul(f, head)
    }"""
    arrays = {
        "w1": normal(16, 3, 3, 3, scale=0.3),
        "w2": normal(16, 16, 3, 3, seed=1, scale=0.1),
        "head": normal(16, 5, seed=2),
    }
    return text_model(graph, arrays), {"x": normal(64, 3, 8, 8, seed=5)}


def feature_distance(folder: Path, name: str, x: np.ndarray, kind: str) -> float:
    """Of an inner tensor from the dense one: relative mean square, or 1 - cosine of a sample."""
    dense, pruned = (
        open_session(tapped(read(folder / file), [name], "test")).run({"x": x})[name]
        for file in ("dense.onnx", "pruned.onnx")
    )
    if kind != "cosine":
        return float(np.square(dense - pruned).mean() / dense.var())
    dense, pruned = (array.reshape(len(x), -1) for array in (dense, pruned))
    norms = np.linalg.norm(dense, axis=1) * np.linalg.norm(pruned, axis=1)
    return float((1 - (dense * pruned).sum(axis=1) / norms).mean())


@pytest.mark.parametrize("loss", ["mse", "mae", "cosine"])
def test_distilled_features_come_closer_to_the_dense_models(tmp_path: Path, loss: str) -> None:
    """And closer than where only the outputs are compared; the file stays the graph that it was."""
    proto, data = conv_net()
    _, samples, _ = save(tmp_path, proto, data)
    x = normal(32, 3, 8, 8, seed=6)
    distances = {}
    for name, features in (("outputs", {}), ("features", {"r2": 1.0})):
        settings = {"epochs": 12, "evaluations": 2, "optimizer": "adamw", "lr": 0.003}
        chosen = recipe(
            samples,
            sparsity={"target": 0.7},
            finetune=settings,
            distill={"features": features, "feature_loss": loss},
        )
        run(tmp_path, proto, chosen)
        distances[name] = feature_distance(tmp_path, "r2", x, loss)
    run(tmp_path, proto, recipe(samples, sparsity={"target": 0.7}, finetune={"epochs": 0}))
    distances["untrained"] = feature_distance(tmp_path, "r2", x, loss)
    assert distances["features"] < 0.8 * distances["untrained"]
    assert distances["features"] < 0.75 * distances["outputs"]


def test_features_of_a_real_model(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The PP-OCR angle classifier, with the end of a block and its logits."""
    model, output = tmp_path / "dense.onnx", tmp_path / "pruned.onnx"
    model.write_bytes(real_model("ch_ppocr_mobile_v2.0_cls_infer.onnx").read_bytes())
    graph = read(model).proto.graph
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    blocks = [node.output[0] for node in graph.node if node.op_type == "Add"]
    features = {softmax.input[0]: 1.0, blocks[len(blocks) // 2]: 0.5}
    samples = tmp_path / "lines.npz"
    np.savez(samples, x=normal(8, 3, 48, 192))
    settings = {"epochs": 4, "batch_size": 4, "evaluations": 1}
    chosen = recipe(samples, finetune=settings, distill={"features": features})
    prune(model, output, chosen)
    assert_pruned(model, output, 0.5)
    with np.load(tmp_path / "pruned.run" / "teacher.npz") as kept:
        assert set(kept["names"]) == {graph.output[0].name, *features}
    losses = [entry["loss"] for entry in log(tmp_path / "pruned.run") if entry["kind"] == "train"]
    assert len(losses) == 8
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("kind", ["torch", "runtime"])
def test_teachers_give_equal_numbers(tmp_path: Path, kind: str) -> None:
    """The dense model's values once under ONNX Runtime, or in each step there or in PyTorch."""
    proto, data = conv_net()
    _, samples, _ = save(tmp_path, proto, data)
    found = []
    for teacher in ("cached", kind):
        settings = recipe(samples, distill={"teacher": teacher, "features": {"r1": 0.5}})
        results = run(tmp_path, proto, settings)
        assert (tmp_path / "pruned.run" / "teacher.npz").exists() == (teacher == "cached")
        losses = [e["loss"] for e in log(tmp_path / "pruned.run") if e["kind"] == "train"]
        found.append((losses, weights(tmp_path / "pruned.onnx"), results["validation"]["pruned"]))
        (tmp_path / "pruned.run").rename(tmp_path / f"{teacher}.run")
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-7)
    for name, array in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], array, atol=1e-4)
    assert found[1][2] == pytest.approx(found[0][2], abs=1e-3)


def test_the_dense_model_runs_in_each_step_where_its_outputs_do_not_fit(tmp_path: Path) -> None:
    proto, data = conv_net()
    _, samples, _ = save(tmp_path, proto, data)
    results = run(tmp_path, proto, recipe(samples, finetune={"cache_mb": 0}))
    assert any("the dense model runs in each step" in note for note in results["notes"])
    assert not (tmp_path / "pruned.run" / "teacher.npz").exists()


def test_only_the_named_outputs_are_compared(tmp_path: Path) -> None:
    """Weights that only lead to an output that is left out stay as they were."""
    graph = """g (float[N,8] x) => (float[N,3] a, float[N,3] b) {
        h = MatMul(x, w)
        a = MatMul(h, wa)
        b = MatMul(h, wb)
    }"""
    arrays = {"w": normal(8, 8), "wa": normal(8, 3), "wb": normal(8, 3, seed=1)}
    _, samples, _ = save(tmp_path, text_model(graph, arrays), {"x": normal(40, 8, seed=5)})
    settings = recipe(samples, finetune={"weight_decay": 0.0}, distill={"outputs": ["b"]})
    run(tmp_path, text_model(graph, arrays), settings)
    after = weights(tmp_path / "pruned.onnx")
    kept = {name: after[name] != 0 for name in after}
    same = {n: np.array_equal(after[n][kept[n]], arrays[n][kept[n]]) for n in after}
    assert same == {"w": False, "wa": True, "wb": False}


@pytest.mark.parametrize(
    ("scale", "classes", "expected"),
    [(1.0, False, "kl+mse"), (0.01, False, "mse"), (100.0, False, "mse"), (0.01, True, "kl+mse")],
)
def test_logits_are_known_by_their_range_or_by_labels_of_evaluation_data(
    tmp_path: Path, scale: float, classes: bool, expected: str
) -> None:
    proto, data = mlp()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = scale * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    label = data.pop("label")
    model, samples, output = save(tmp_path, proto, data)
    evaluation = tmp_path / "eval.npz"
    np.savez(evaluation, **data, **({"label": label} if classes else {}))
    settings = quick(samples, evaluation, finetune=TRAIN)
    job = prepare(model, output, settings)
    distillation = make_objective(job, load(job.traced), None).distillation
    y = open_session(proto).run({"x": data["x"]})["y"]
    assert distillation.kind("y", y.shape) == expected


def test_traced_models_are_prepared_once(tmp_path: Path) -> None:
    proto, data = conv_net()
    model, samples, output = save(tmp_path, proto, data)
    job = prepare(model, output, recipe(samples, distill={"features": {"r1": 1.0}}))
    assert [spec.name for spec in job.traced.outputs] == ["y", "r1"]
    assert [spec.name for spec in job.source.outputs] == ["y"]


def test_a_baked_batch_size_without_training_data(tmp_path: Path) -> None:
    """Evaluation data alone decide how many samples the graph is tried with."""
    graph = """g (float[N,8] x) => (float[M,3] y) {
        r = Reshape(x, shape)
        y = MatMul(r, w)
    }"""
    proto = text_model(graph, {"w": normal(8, 3), "shape": np.array([1, 8])})
    model, samples, output = save(tmp_path, proto, {"x": normal(6, 8), "label": np.arange(6) % 3})
    settings = quick(None, samples, sparsity={"target": 0.5}, finetune={"epochs": 0})
    job = prepare(model, output, settings)
    objective = make_objective(job, load(job.traced), 1)
    assert objective.task is not None
    assert objective.distill_weight == 1

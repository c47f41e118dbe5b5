"""What fine-tuning inside the main job achieves, and what holds at every step of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from onnx import numpy_helper

from onnxprune.errors import TrainingError, UsageError
from onnxprune.finetune.step import Stepper
from onnxprune.pipeline import prune
from onnxprune.validate import open_session

from .helpers import Arrays, assert_pruned, dropout_classifier, log, mlp, quick, save, text_model

pytestmark = pytest.mark.usefixtures("no_report")
FEATURES, HIDDEN, CLASSES = 12, 32, 4


def task(count: int, seed: int) -> Arrays:
    """Samples around four centres, and which one each belongs to."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    x = 2.0 * centres()[label] + rng.normal(size=(count, FEATURES))
    return {"x": x.astype(np.float32), "label": label}


def centres() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(CLASSES, FEATURES))


def solver() -> onnx.ModelProto:
    """A model that solves the task: random features, and a least-squares read-out of them."""
    rng = np.random.default_rng(7)
    w = rng.normal(scale=0.5, size=(HIDDEN, FEATURES)).astype(np.float32)
    b = rng.normal(size=HIDDEN).astype(np.float32)
    data = task(600, 3)
    hidden = np.maximum(data["x"] @ w.T + b, 0)
    head = np.linalg.lstsq(hidden, 4 * np.eye(CLASSES)[data["label"]], rcond=None)[0]
    graph = f"""g (float[N,{FEATURES}] x) => (float[N,{CLASSES}] y) {{
        h = Gemm<transB = 1>(x, w, b)
        r = Relu(h)
        y = Gemm(r, head, c)
    }}"""
    c = np.zeros(CLASSES, dtype=np.float32)
    return text_model(graph, {"w": w, "b": b, "head": head.astype(np.float32), "c": c})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model that solves the task, training data, and evaluation data."""
    model, train, _ = save(tmp_path, solver(), task(320, 1))
    evaluation = tmp_path / "eval.npz"
    np.savez(evaluation, **task(400, 2))
    return model, train, evaluation


def divergence(dense: Path, pruned: Path, x: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the softmax outputs from the dense model's."""
    logs = []
    for path in (dense, pruned):
        logits = open_session(path, threads=1).run({"x": x})["y"].astype(np.float64)
        logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


def test_labels_win_back_accuracy(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, train, evaluation = files
    accuracy = {}
    for epochs in (0, 12):
        settings = {"epochs": epochs, "evaluations": 0, "device": "cpu", "threads": 1}
        recipe = quick(train, evaluation, sparsity={"target": 0.85}, finetune=settings)
        output = tmp_path / f"{epochs}.onnx"
        validation = prune(model, output, recipe)["validation"]
        assert_pruned(model, output, 0.85)
        accuracy[epochs] = validation["pruned"]["top1"]
        assert validation["dense"]["top1"] > 0.95
    assert accuracy[0] < 0.8
    assert accuracy[12] > accuracy[0] + 0.1


@pytest.mark.parametrize("loss", ["auto", "kl", "cosine"])
def test_distillation_without_labels_comes_closer_to_the_dense_model(
    files: tuple[Path, Path, Path], tmp_path: Path, loss: str
) -> None:
    model, train, evaluation = files
    arrays = dict(np.load(train))
    np.savez(train, x=arrays["x"])
    x = np.load(evaluation)["x"]
    distances = {}
    for epochs in (0, 12):
        settings = {"epochs": epochs, "evaluations": 0, "device": "cpu", "threads": 1}
        recipe = quick(
            train,
            evaluation,
            sparsity={"target": 0.7},
            finetune=settings,
            distill={"loss": loss},
        )
        output = tmp_path / f"{epochs}.onnx"
        results = prune(model, output, recipe)
        assert results["data"]["train"]["labelled"] is False
        distances[epochs] = divergence(model, output, x)
    assert distances[12] < 0.6 * distances[0]


def test_magnitude_beats_random_scores(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, _, evaluation = files
    accuracy = {}
    table = {"target": 0.6, "scope": "layerwise"}
    for method in ("one-shot", "random"):
        recipe = quick(None, evaluation, sparsity=table | {"method": method})
        results = prune(model, tmp_path / f"{method}.onnx", recipe)
        accuracy[method] = results["validation"]["pruned"]["agreement"]
    assert accuracy["one-shot"] > accuracy["random"] + 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masked_weights_and_their_momentum_are_zero_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, pattern: str
) -> None:
    """With weight decay, momentum and events in between, nothing comes back, ever."""
    model, samples, output = save(tmp_path, *dropout_classifier())
    seen: list[int] = []
    removed: dict[str, torch.Tensor] = {}
    original: Callable[..., Any] = Stepper.step

    def checked(self: Stepper, *args: Any) -> Any:
        result = original(self, *args)
        zeros = 0
        for name, mask in self.masks.masks.items():
            parameter = self.parameters[name]
            assert (parameter.detach()[~mask] == 0).all()
            states = [
                value
                for value in self.optimizer.state[parameter].values()
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
            ]
            assert len(states) == (2 if optimizer == "adamw" else 1)
            for state in states:
                assert (state[~mask] == 0).all()
                assert (state[mask] != 0).any()
            before = removed.get(name, torch.zeros_like(mask))
            assert not (before & mask).any(), "a weight came back"
            removed[name] = ~mask
            zeros += int((~mask).sum())
        seen.append(zeros)
        return result

    monkeypatch.setattr(Stepper, "step", checked)
    settings = {"epochs": 3, "batch_size": 8, "optimizer": optimizer, "weight_decay": 0.1}
    include = {"include": ["head"]} if pattern == "2:4" else {}
    recipe = quick(
        samples,
        samples,
        finetune=settings | {"device": "cpu", "threads": 1},
        sparsity={"pattern": pattern, "target": 0.6} | include,
    )
    prune(model, output, recipe)
    total = 24 if pattern == "2:4" else 168
    assert len(seen) == 18
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert seen[-1] == -(-total * 6 // 10)
    events = [e for e in log(output.with_suffix(".run")) if e["kind"] == "event"]
    assert sum(event["pruned"] for event in events) == seen[-1]


def test_batch_norm_statistics_are_measured_again_at_the_end(tmp_path: Path) -> None:
    """The running statistics of the written file are those of its own activations."""
    proto, data = dropout_classifier()
    model, samples, output = save(tmp_path, proto, data)
    prune(model, output, quick(samples, samples, sparsity={"target": 0.5}))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    probe = onnx.load(output)
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info("c"))
    del probe.graph.node[1:]
    del probe.graph.output[0]
    (activation,) = (
        open_session(onnx.shape_inference.infer_shapes(probe)).run({"x": data["x"]}).values()
    )
    mean = activation.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(stored["mean"], mean, rtol=0.02, atol=0.02)


def test_no_recalibration_where_the_recipe_says_so(tmp_path: Path) -> None:
    model, samples, output = save(tmp_path, *dropout_classifier())
    settings = {"epochs": 0, "recalibrate_batches": 0, "device": "cpu", "threads": 1}
    prune(model, output, quick(samples, samples, finetune=settings))
    means = [
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}["mean"]
        for path in (model, output)
    ]
    assert np.array_equal(*means)


@pytest.mark.parametrize("clip", [True, False])
def test_divergence_is_an_error_and_writes_nothing(tmp_path: Path, clip: bool) -> None:
    model, samples, output = save(tmp_path, *dropout_classifier())
    settings: dict[str, Any] = {
        "epochs": 30,
        "lr": 1e30,
        "device": "cpu",
        "threads": 1,
        "weight_decay": 0.1,
    }
    if not clip:
        settings["clip_norm"] = 1e30
    with pytest.raises(TrainingError, match="not finite"):
        prune(model, output, quick(samples, samples, finetune=settings))
    assert not output.exists()


def test_a_loss_that_pruning_takes_to_chance_level_is_no_divergence(tmp_path: Path) -> None:
    """A regression that is exact has almost no loss; pruned, it is about as wrong as a guess."""
    proto, data = mlp()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w"):
            tensor.CopyFrom(
                numpy_helper.from_array(100 * numpy_helper.to_array(tensor), tensor.name)
            )
    targets = open_session(proto).run({"x": data["x"]})["y"]
    model, samples, output = save(tmp_path, proto, {"x": data["x"], "label": targets})
    settings = {"epochs": 6, "lr": 1e-12, "loss": "mse", "device": "cpu", "threads": 1}
    recipe = quick(
        samples,
        samples,
        finetune=settings,
        distill={"weight": 0.0},
        sparsity={"target": 0.97},
        schedule={"begin": 0.3, "end": 0.8, "events": 2},
    )
    prune(model, output, recipe)
    entries = log(output.with_suffix(".run"))
    losses = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    assert losses[0] < 1e-3 * np.var(targets)
    assert losses[-1] > 0.5 * np.var(targets)
    assert not [entry for entry in entries if entry["kind"] == "rollback"]


def test_trackers_are_told_of_losses_and_metrics(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    model, train, evaluation = files
    recipe = quick(
        train,
        evaluation,
        finetune={"epochs": 2, "evaluations": 2, "track": ["tensorboard"], "device": "cpu"},
    )
    prune(model, tmp_path / "out.onnx", recipe, run_dir=tmp_path / "run")
    logged = log(tmp_path / "run")
    found = event_accumulator.EventAccumulator(str(tmp_path / "run" / "onnxprune"))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    assert losses == pytest.approx(
        {entry["step"]: entry["loss"] for entry in logged if entry["kind"] == "train"}, rel=1e-5
    )
    top1 = [event.value for event in found.Scalars("eval/top1")]
    assert top1 == pytest.approx(
        [entry["metrics"]["top1"] for entry in logged if entry["kind"] == "eval"]
    )


def test_a_tracker_that_fails_does_not_end_a_run(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error at the start, and a message on the way."""
    model, train, evaluation = files
    recipe = quick(train, evaluation, finetune={"track": ["tensorboard"], "device": "cpu"})

    def fail(tracker: TensorBoardTracker, *arguments: Any, **options: Any) -> None:
        raise ConnectionError("the server\nis gone")

    with monkeypatch.context() as patched:
        patched.setattr(TensorBoardTracker, "start", fail)
        with pytest.raises(UsageError, match=r"(?s)cannot be started.*ConnectionError: the server"):
            prune(model, tmp_path / "out.onnx", recipe, run_dir=tmp_path / "run")
    messages: list[str] = []
    for name in ("log", "finish"):
        output = tmp_path / f"{name}.onnx"
        with monkeypatch.context() as patched:
            patched.setattr(TensorBoardTracker, name, fail)
            prune(
                model,
                output,
                recipe,
                on_progress=lambda entry: messages.append(entry.get("text", "")),
            )
        assert_pruned(model, output, 0.8)
    said = [text for text in messages if "tensorboard cannot be told any more" in text]
    assert len(said) == 2, "once in each run"
    assert all("(ConnectionError: the server)" in text for text in said)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own code
def test_mlflow_writes_in_the_run_directory(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies in the working directory afterwards, and other uses of MLflow are left alone."""
    mlflow = pytest.importorskip("mlflow")
    model, train, evaluation = files
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = quick(
        train,
        evaluation,
        finetune={"epochs": 2, "evaluations": 2, "track": ["mlflow"], "device": "cpu"},
    )
    prune(model, tmp_path / "out.onnx", recipe, run_dir=tmp_path / "run")
    assert not list(elsewhere.iterdir())
    assert not mlflow.is_tracking_uri_set()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("onnxprune")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == "run"
    assert tracked.data.params["finetune.epochs"] == "2.0"
    logged = log(tmp_path / "run")
    for kind, key in (("train", "loss"), ("eval", "top1"), ("event", "sparsity")):
        entries = [{**e, **e.get("metrics", {})} for e in logged if e["kind"] == kind]
        history = client.get_metric_history(tracked.info.run_id, f"{kind}/{key}")
        found = {point.step: point.value for point in history}
        assert found == pytest.approx({entry["step"]: entry[key] for entry in entries}), kind


@pytest.mark.parametrize("rewind", ["none", "learning-rate", "weights"])
def test_iterative_pruning_in_rounds(
    files: tuple[Path, Path, Path], tmp_path: Path, rewind: str
) -> None:
    model, train, evaluation = files
    recipe = quick(
        train,
        evaluation,
        sparsity={"target": 0.875, "method": "iterative"},
        schedule={"rounds": 3, "rewind": rewind, "rewind_epoch": 0.5},
        finetune={"epochs": 8, "evaluations": 0, "device": "cpu", "threads": 1},
    )
    prune(model, tmp_path / "out.onnx", recipe, run_dir=tmp_path / "run")
    assert_pruned(model, tmp_path / "out.onnx", 0.875)
    logged = log(tmp_path / "run")
    events = [entry for entry in logged if entry["kind"] == "event"]
    assert [event["sparsity"] for event in events] == pytest.approx([0.5, 0.75, 0.875], abs=0.005)
    rates = {entry["step"]: entry["lr"] for entry in logged if entry["kind"] == "train"}
    restarted = [step for step in rates if rates[step] > 1.5 * rates.get(step - 1, 1.0)]
    expected = [] if rewind == "none" else [event["step"] + 1 for event in events]
    assert [step for step in restarted if step > 10] == expected

"""Method cascade-gmp through the main job, and what every run logs of shed weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.pipeline import prune

from .helpers import assert_pruned, dropout_classifier, log, mlp, quick, save, weights
from .test_resume import interrupt

pytestmark = pytest.mark.usefixtures("no_report")

STRONG = {
    "lr": 0.5,
    "weight_decay": 0.05,
    "momentum": 0.0,
    "clip_norm": 0.0,
    "lr_schedule": "constant",
}
"""Decay by about a fifth of a weight in each epoch of the tests, so that unused ones are shed."""


def run(folder: Path, **tables: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and log of a run on the perceptron, with 40 steps."""
    folder.mkdir(exist_ok=True)
    model, samples, output = save(folder, *mlp())
    finetune = {"epochs": 8, "batch_size": 8, "warmup": 0.0} | tables.pop("finetune", {})
    results = prune(model, output, quick(samples, samples, finetune=finetune, **tables))
    assert_pruned(model, output, 0.8)
    return results, log(output.with_suffix(".run"))


def test_every_method_ends_with_the_same_zeros_and_states_its_budget(tmp_path: Path) -> None:
    for method in ("cascade-gmp", "gmp", "random", "one-shot", "iterative"):
        results, entries = run(tmp_path / method, sparsity={"method": method})
        assert results["method"] == method
        budget = results["budget"]
        assert (budget["epochs"], budget["steps"], budget["samples"]) == (8.0, 40, 320)
        # 176 weights of two Gemms, a multiply-add each; three passes for each sample.
        assert budget["training_flops_dense"] == 3 * 320 * 2 * 176
        kept = [(e["step"], sum(e["kept"].values())) for e in entries if e["kind"] == "event"]
        density = np.full(40, 176.0)
        for step, count in kept:
            density[step:] = count
        assert budget["mean_density"] == pytest.approx(density.mean() / 176)


def test_shed_weights_are_logged_with_their_tensors(tmp_path: Path) -> None:
    _, entries = run(tmp_path, sparsity={"method": "one-shot"}, finetune=STRONG)
    shed = [entry for entry in entries if entry["kind"] == "shed"]
    assert [entry["step"] for entry in shed] == list(range(1, 41))
    assert all(entry["since"] == 0 for entry in shed)
    assert all(sum(entry["tensors"].values()) == entry["shed"] for entry in shed)
    assert all(entry["shed"] <= entry["kept"] <= 35 for entry in shed)


def test_harvested_weights_advance_the_schedule(tmp_path: Path) -> None:
    """Under strong decay unused weights fall to nothing, and are then taken first."""
    tau = {"tau": 0.3, "harvest_cost": 10.0, "wait": 0, "closure": False}
    schedule = {"begin": 0.0, "end": 0.9, "events": 6}
    _, entries = run(
        tmp_path,
        sparsity={"method": "cascade-gmp"},
        cascade=tau,
        schedule=schedule,
        finetune=STRONG,
    )
    events = [entry for entry in entries if entry["kind"] == "event"]
    assert sum(event["harvested"] for event in events) > 0
    for event in events:
        assert event["pruned"] >= event["harvested"] + event["closed"]
        assert event["sparsity"] >= event["target_sparsity"]


def test_events_that_wait_are_logged_and_told(tmp_path: Path) -> None:
    model, samples, output = save(tmp_path, *mlp())
    recipe = quick(
        samples,
        samples,
        finetune={"epochs": 8, "batch_size": 8, "warmup": 0.0} | STRONG | {"weight_decay": 0.4},
        sparsity={"method": "cascade-gmp"},
        cascade={"tau": 0.05, "harvest": False, "closure": False, "wait": 2},
        schedule={"begin": 0.0, "end": 0.9, "events": 3},
    )
    told: list[dict[str, Any]] = []
    prune(model, output, recipe, on_progress=told.append)
    entries = log(output.with_suffix(".run"))
    waits = [entry for entry in entries if entry["kind"] == "wait"]
    events = [entry for entry in entries if entry["kind"] == "event"]
    assert waits == [entry for entry in told if entry["kind"] == "wait"]
    assert len(waits) == sum(event["waited"] for event in events) > 0
    for wait in waits:
        due = round(176 * wait["target_sparsity"]) - round(176 * wait["sparsity"])
        assert wait["put_off"] == due > 0


def test_dead_weights_leave_first(tmp_path: Path) -> None:
    """Hidden units that the dense head does not read: their weights are on no path, and large."""
    proto, data = mlp()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    w1, w2 = 10 * arrays["w1"].copy(), arrays["w2"].copy()
    w1[8:] *= 3
    w2[:, 8:] = 0
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "w2"):
            tensor.CopyFrom(numpy_helper.from_array({"w1": w1, "w2": w2}[tensor.name], tensor.name))
    model, samples, output = save(tmp_path, proto, data)
    recipe = quick(
        samples,
        samples,
        sparsity={"method": "cascade-gmp", "target": 0.8},
        schedule={"begin": 0.0, "end": 0.8, "events": 8},
        finetune={"epochs": 4, "batch_size": 8, "lr": 1e-4},
    )
    prune(model, output, recipe)
    events = [e for e in log(output.with_suffix(".run")) if e["kind"] == "event"]
    # The first event masks zeros of the head; with them gone, the units above are dead.
    assert sum(event["closed"] for event in events) >= 64
    assert not weights(output)["w1"][8:].any()


@pytest.mark.parametrize(
    ("cascade", "at_step_10", "at_step_31"),
    [({}, 0.0867, 0.0133), ({"hold_lr": True}, 0.1, 0.05)],
    ids=["falls from the start", "held while pruning"],
)
def test_the_course_of_the_learning_rate(
    tmp_path: Path, cascade: dict[str, Any], at_step_10: float, at_step_31: float
) -> None:
    """Pruning ends in the middle, at step 20 of 40."""
    _, entries = run(
        tmp_path,
        sparsity={"method": "cascade-gmp"},
        cascade=cascade,
        schedule={"begin": 0.0, "end": 0.5, "events": 4},
        finetune={"lr": 0.1, "lr_schedule": "cosine"},
    )
    rates = {entry["step"]: entry["lr"] for entry in entries if entry["kind"] == "train"}
    assert rates[10] == pytest.approx(at_step_10, rel=0.01)
    assert rates[31] == pytest.approx(at_step_31, rel=0.1)
    assert rates[40] < 0.001
    if cascade:
        assert {rates[step] for step in range(1, 21)} == {0.1}


@pytest.mark.parametrize("step", [3, 9])
def test_an_interrupted_run_ends_with_the_same_file(tmp_path: Path, step: int) -> None:
    """Monitor, controller and learning rate go on as if nothing had happened."""
    model, samples, whole = save(tmp_path, *dropout_classifier())
    finetune = {"epochs": 3, "batch_size": 8, "evaluations": 4} | STRONG | {"lr": 0.1}
    recipe = quick(
        samples,
        samples,
        finetune=finetune,
        sparsity={"method": "cascade-gmp"},
        cascade={"tau": 0.3, "harvest_cost": 10.0, "pressure": 3.0},
        schedule={"end": 0.8, "events": 8},
    )
    prune(model, whole, recipe)
    parts = tmp_path / "parts.onnx"
    interrupt(model, parts, recipe, step)
    prune(model, parts, recipe, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert log(parts.with_suffix(".run")) != []
    kinds = [(e["kind"], e["step"]) for e in log(parts.with_suffix(".run"))]
    assert kinds == [(e["kind"], e["step"]) for e in log(whole.with_suffix(".run"))]
    assert weights(parts).keys() == {"w", "head"}

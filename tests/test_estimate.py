"""The cost of a run, measured before it begins."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

from onnxprune.estimate import estimate
from onnxprune.job import Job, prepare
from onnxprune.recipe import Recipe


def job(classifier: Path, data: Path | None, **tables: dict[str, Any]) -> Job:
    values = {"data": {"train": str(data)} if data else {}, **tables}
    values["validate"] = {"latency": False} | values.get("validate", {})
    return prepare(classifier, classifier.with_name("out.onnx"), Recipe.from_dict(values))


def test_counts_bytes_exactly(classifier: Path, training_data: Path) -> None:
    cost = estimate(job(classifier, training_data, finetune={"device": "cpu"}))
    memory = cost["memory_bytes"]
    parameters = 216 + 32 + 8 + 8 + 4
    assert memory["weights"] == memory["gradients"] == memory["optimizer"] == 4 * parameters
    assert memory["masks"] == 5 * 248
    assert memory["sample cache"] == 144 * 3 * 8 * 8 * 4
    assert memory["activations"] >= 32 * 8 * 8 * 8 * 4


def test_seconds_follow_the_plan(classifier: Path, training_data: Path) -> None:
    settings = {"device": "cpu", "epochs": 10, "evaluations": 0}
    cost = estimate(job(classifier, training_data, finetune=settings))
    assert cost["step_s"] > 0
    assert cost["train_s"] == pytest.approx(40 * cost["step_s"])
    assert cost["total_s"] > cost["train_s"]
    settings["evaluations"] = 5
    cost = estimate(job(classifier, training_data, finetune=settings))
    assert cost["train_s"] > 40 * cost["step_s"]


def test_adamw_keeps_two_moments(classifier: Path, training_data: Path) -> None:
    settings = {"device": "cpu", "optimizer": "adamw"}
    memory = estimate(job(classifier, training_data, finetune=settings))["memory_bytes"]
    assert memory["optimizer"] == 2 * memory["weights"]


def test_without_training_there_is_nothing_to_measure(classifier: Path) -> None:
    cost = estimate(job(classifier, None, finetune={"epochs": 0}))
    assert cost["train_s"] == cost["step_s"] == 0
    assert "activations" not in cost["memory_bytes"]


def test_the_model_is_left_alone(classifier: Path, training_data: Path) -> None:
    prepared = job(classifier, training_data, finetune={"device": "cpu"})
    before = prepared.source.proto.SerializeToString(deterministic=True)
    estimate(prepared)
    assert prepared.source.proto.SerializeToString(deterministic=True) == before


def test_a_graph_with_its_batch_size_baked_in(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[2,6] x) => (float[2,3] y)
    <int64[2] shape = {2, 6}> {
        r = Reshape(x, shape)
        y = MatMul(r, w)
    }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(6, 3, dtype=np.float32), "w"))
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    onnx.save(proto, model)
    np.savez(data, x=np.ones((9, 6), np.float32), label=np.arange(9) % 3)
    settings = {"device": "cpu", "batch_size": 5}
    cost = estimate(job(model, data, finetune=settings, sparsity={"target": 0.5}))
    assert cost["step_s"] > 0


def test_steps_are_measured_with_the_threads_of_the_run(
    classifier: Path, training_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    wanted = before + 1
    seen = set()

    def step(self: torch.optim.SGD, *arguments: object) -> None:
        seen.add(torch.get_num_threads())

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    estimate(job(classifier, training_data, finetune={"device": "cpu", "threads": wanted}))
    assert seen == {wanted}
    assert torch.get_num_threads() == before

"""Structural closure inside the main job: what leaves, and that the model computes the same."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from onnxprune.closing import ModelClosure
from onnxprune.finetune.step import Stepper
from onnxprune.importer import ImportedModel
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe

from .helpers import (
    Arrays,
    assert_pruned,
    log,
    mlp,
    normal,
    quick,
    save,
    text_model,
    weights,
)
from .test_resume import comparable, interrupt

pytestmark = pytest.mark.usefixtures("no_report")

NORM = ("scale", "shift", "mean", "var")
SPARSITY = 0.95
STEPS = 24


def network(**changes: np.ndarray) -> tuple[onnx.ModelProto, Arrays]:
    """Constants of its channels can go into a bias, a running mean and the bias of a Gemm."""
    graph = """g (float[N,2,6,6] x) => (float[N,3] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        n1 = BatchNormalization(c1, scale1, shift1, mean1, var1)
        r1 = Relu(n1)
        c2 = Conv(r1, w2, b2)
        r2 = HardSigmoid(c2)
        c3 = Conv(r2, w3)
        n3 = BatchNormalization(c3, scale3, shift3, mean3, var3)
        r3 = Relu(n3)
        p = GlobalAveragePool(r3)
        f = Flatten(p)
        y = Gemm(f, head, bias)
    }"""
    arrays = {
        **{"w1": normal(12, 2, 3, 3), "w2": normal(12, 12, 1, 1), "b2": normal(12)},
        **{"w3": normal(12, 12, 3, 3), "head": normal(12, 3), "bias": normal(3)},
    }
    for layer in "13":
        values = [normal(12, seed=int(layer) + n, scale=0.3) for n in range(4)]
        values[0], values[3] = values[0] + 1, np.ones(12, dtype=np.float32)
        arrays |= {f"{part}{layer}": value for part, value in zip(NORM, values, strict=True)}
    label = np.arange(64) % 3
    x = normal(64, 2, 6, 6, seed=5) + 2 * normal(3, 2, 6, 6, seed=6)[label]
    return text_model(graph, arrays | changes), {"x": x, "label": label}


def recipe(samples: Path, **tables: dict[str, Any]) -> Recipe:
    """24 steps, of which the first 20 see 8 events."""
    given = {
        "sparsity": {"method": "cascade-gmp", "target": SPARSITY},
        "schedule": {"begin": 0.0, "end": 0.85, "events": 8},
        "finetune": {"epochs": 3, "batch_size": 8, "lr": 0.05, "evaluations": 2},
        "cascade": {},
    }
    return quick(samples, samples, **{name: given[name] | tables.get(name, {}) for name in given})


@dataclass
class Watch:
    """What closures did to the models that they were called on.

    Attributes:
        changes: Largest change of an output by each closure, relative to the largest output.
        taken: Number of weights that each took.
        folded: How many biases and running means each changed, over all models.
        survivors: Weights that an earlier closure took and a later one found under the mask.
    """

    x: Tensor
    changes: list[float] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    survivors: int = 0
    gone: dict[str, Tensor] = field(default_factory=dict)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watches all closures of a test, on the samples of `network`."""
    seen = Watch(torch.from_numpy(network()[1]["x"]))
    original = ModelClosure.__call__

    def watched(self: ModelClosure, room: int) -> dict[str, Tensor]:
        modules = [m for m in (self._module, self.average) if m is not None]
        values = [{n: t.clone() for n, t in m.export_tensors().items()} for m in modules]
        before = [outputs(module, seen.x) for module in modules]
        masks = self._masks.masks
        seen.survivors += sum(int((masks[n] & gone).sum()) for n, gone in seen.gone.items())
        seen.gone = dead = original(self, room)
        for old, module in zip(before, modules, strict=True):
            change = (outputs(module, seen.x) - old).abs().max() / old.abs().max()
            seen.changes.append(float(change))
        seen.taken.append(sum(int(mask.sum()) for mask in dead.values()))
        assert seen.taken[-1] <= room
        seen.folded.append(
            sum(
                int(not torch.equal(old[name], tensor))
                for old, module in zip(values, modules, strict=True)
                for name, tensor in module.export_tensors().items()
                if name not in dead
            )
        )
        return dead

    monkeypatch.setattr(ModelClosure, "__call__", watched)
    return seen


def outputs(module: ImportedModel, x: Tensor) -> Tensor:
    training = module.training
    with torch.no_grad():
        y: Tensor = module.eval()(x)
    module.train(training)
    return y


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [entry for entry in log(run_dir) if entry["kind"] == "event"]


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"finetune": {"ema": 0.9}},
        {"sparsity": {"scope": "layerwise"}},
        {"cascade": {"tau": 0.3, "harvest_cost": 1.0}},
    ],
    ids=["plain", "moving average", "layer-wise", "harvest"],
)
def test_a_closure_changes_no_output(
    tmp_path: Path, watch: Watch, tables: dict[str, dict[str, Any]]
) -> None:
    """Of the model and of its average; what it took is gone, and the file is what was trained."""
    model, samples, output = save(tmp_path, *network())
    results = prune(model, output, recipe(samples, **tables))
    assert_pruned(model, output, SPARSITY)
    assert sum(watch.taken) >= 20
    assert sum(watch.folded) >= 1
    models = 2 if "ema" in tables.get("finetune", {}) else 1
    assert len(watch.changes) == models * len(watch.taken)
    assert max(watch.changes) < 1e-5
    assert watch.survivors == 0
    closed = [event["closed"] for event in events(output.with_suffix(".run"))]
    assert [count for count in closed if count] == [count for count in watch.taken if count]
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < 1e-5


@pytest.mark.parametrize("pattern", ["2:4", "block:2x1"])
def test_under_a_pattern_no_constant_is_folded(tmp_path: Path, watch: Watch, pattern: str) -> None:
    """The pattern decides what leaves, so a folded weight might stay and count twice."""
    model, samples, output = save(tmp_path, *network())
    target = 0.5 if pattern == "2:4" else SPARSITY
    tables = {"sparsity": {"pattern": pattern, "target": target, "exclude": ["w1", "head"]}}
    results = prune(model, output, recipe(samples, **tables))
    assert results["sparsity"] >= target
    assert max(watch.changes) == 0
    assert sum(watch.folded) == 0


def unread_units() -> tuple[onnx.ModelProto, Arrays]:
    """A perceptron whose head reads 8 of 16 hidden units, so that 64 large weights are dead."""
    proto, data = mlp()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    w1, w2 = 10 * arrays["w1"], arrays["w2"].copy()
    w2[:, 8:] = 0
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "w2"):
            tensor.CopyFrom(numpy_helper.from_array({"w1": w1, "w2": w2}[tensor.name], tensor.name))
    return proto, data


def test_of_more_dead_weights_than_may_go_some_do(tmp_path: Path) -> None:
    """They fill what is left below the target, and no other weight goes."""
    model, samples, output = save(tmp_path, *unread_units())
    tables = {"sparsity": {"target": 0.25}, "schedule": {"events": 10}}
    results = prune(model, output, recipe(samples, **tables))
    assert_pruned(model, output, 0.25)
    last = events(output.with_suffix(".run"))[-1]
    assert last["closed"] == last["pruned"] > 0
    assert results["dead_weights"] > 0
    dead = {tensor["name"]: tensor["dead"] for tensor in results["tensors"]}
    assert dead == {"w1": results["dead_weights"], "w2": 0}
    channels = {tensor["name"]: tensor["dead_channels"] for tensor in results["tensors"]}
    unread = int((~weights(output)["w2"].any(0)).sum())
    assert channels == {
        "w1": {"inputs": 0, "outputs": unread},
        "w2": {"inputs": unread, "outputs": 0},
    }
    assert results["dead_channels"] == {"inputs": unread, "outputs": unread}
    assert unread > 0


def test_an_interrupted_run_ends_with_the_same_file(tmp_path: Path, watch: Watch) -> None:
    """Folded constants are part of a checkpoint, of the model's and of its average."""
    model, samples, whole = save(tmp_path, *network())
    settings = recipe(samples, finetune={"ema": 0.9})
    prune(model, whole, settings)
    assert sum(watch.folded) >= 2
    parts = tmp_path / "parts.onnx"
    for number, step in enumerate((7, 14, 19)):
        interrupt(model, parts, settings, step, resume=number > 0)
    prune(model, parts, settings, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert comparable(parts.with_suffix(".run")) == comparable(whole.with_suffix(".run"))


def residual(scale: np.ndarray) -> tuple[onnx.ModelProto, Arrays]:
    """A residual branch that ends in a norm with the given scale."""
    graph = """g (float[N,2,6,6] x) => (float[N,3] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2)
        n2 = BatchNormalization(c2, scale, shift, mean, var)
        s = Add(r1, n2)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        y = MatMul(f, head)
    }"""
    arrays = {"w1": normal(8, 2, 3, 3), "w2": normal(8, 8, 3, 3), "head": normal(8, 3)}
    arrays |= {"scale": scale.astype(np.float32), "shift": normal(8, scale=0.1)}
    arrays |= {"mean": normal(8, scale=0.1), "var": np.ones(8, dtype=np.float32)}
    return text_model(graph, arrays), network()[1]


@pytest.mark.parametrize(("cut", "closed"), [(8, 0), (5, 5 * 72)])
def test_a_scale_that_is_zero_as_a_whole_is_an_initialisation(
    tmp_path: Path, cut: int, closed: int
) -> None:
    """Before the first step its branch looks dead, and would be lost for ever.

    Single zeros, as an earlier pruning of channels leaves them, do cut their channels.
    """
    scale = np.ones(8)
    scale[:cut] = 0
    model, samples, output = save(tmp_path, *residual(scale))
    tables = {"sparsity": {"target": 0.8}, "schedule": {"kind": "one-shot"}}
    results = prune(model, output, recipe(samples, **tables))
    assert_pruned(model, output, 0.8)
    (event,) = events(output.with_suffix(".run"))
    assert (event["step"], event["closed"]) == (0, closed)
    assert np.count_nonzero(weights(output)["w2"]) > 20
    assert any("pass for initial" in note for note in results["notes"]) == (cut == 8)


def test_a_diverged_run_rolls_back_masks_controller_and_constants(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate is lowered, the sparsity stays exact, and closures go on being exact."""
    model, samples, output = save(tmp_path, *network())
    original, steps = Stepper.step, []

    def diverging(self: Stepper, *arguments: Any) -> Tensor:
        loss = original(self, *arguments)
        steps.append(float(loss))
        return loss * float("nan") if len(steps) == 15 else loss

    monkeypatch.setattr(Stepper, "step", diverging)
    settings = recipe(samples, finetune={"checkpoint_seconds": 0.0})
    prune(model, output, settings)
    assert_pruned(model, output, SPARSITY)
    entries = log(output.with_suffix(".run"))
    (rollback,) = [entry for entry in entries if entry["kind"] == "rollback"]
    assert (rollback["failed_at"], rollback["step"]) == (15, 13)
    assert len(steps) == STEPS + 2
    assert max(watch.changes) < 1e-5
    assert sum(event["pruned"] for event in entries if event["kind"] == "event") == round(
        sum(array.size for array in weights(output).values()) * SPARSITY + 0.5
    )

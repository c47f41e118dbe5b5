"""The probe for cascade shedding on networks in which the answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from PIL import Image

from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.probe import prepare_probe, probe
from onnxprune.probe_results import probe_plan
from onnxprune.recipe import Recipe

Arrays = dict[str, np.ndarray]

DECAYING = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "clip_norm": 0.0,
    "warmup": 0.0,
    "lr_schedule": "constant",
    "batch_size": 8,
    "evaluations": 1,
    "device": "cpu",
    "threads": 1,
}


def two_layers(w1: np.ndarray, w2: np.ndarray, dropout: float = 0.0) -> onnx.ModelProto:
    """`x` -> w1 -> tanh -> dropout -> w2 -> `y`, with a bias at the end only."""
    arrays = {"w1": w1, "w2": w2, "b": np.zeros(w2.shape[1]), "ratio": np.array(dropout)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Dropout", ["t", "ratio"], ["d"]),
        helper.make_node("Gemm", ["d", "w2", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", w1.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", w2.shape[1]])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def run(
    folder: Path,
    proto: onnx.ModelProto,
    data: Arrays,
    prune: float,
    seeds: int = 2,
    main_epochs: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Result of a probe by magnitude, trained and judged on the same data.

    Called once more for a main job of another length, it takes the arms that are there.
    """
    onnx.save(proto, folder / "model.onnx")
    np.savez(folder / "data.npz", **data)
    spec = str(folder / "data.npz")
    cascade = {"prune": prune, "scores": ["magnitude"], "tau": settings.pop("tau", 0.01)}
    recipe = Recipe.from_dict(
        {
            "data": {"train": spec, "eval": spec},
            "finetune": DECAYING | settings,
            "sparsity": {"min_density": 0.0},
            "cascade": cascade,
            "distill": {"weight": 0.0},
        }
    )
    job = prepare_probe(folder / "model.onnx", recipe, run_dir=folder / "probe")
    longer = {"epochs": main_epochs or recipe.finetune.epochs}
    target = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=longer)})
    return probe(job, target, seeds)


def test_a_cascade_that_has_to_be_there_is_found(tmp_path: Path) -> None:
    """The 16 smallest weights are the only way out of the 128 before them.

    Once they are gone, weight decay takes all 128 by a factor of exp(-6). In the control arm both
    layers are needed and stay: labels follow from all inputs alike.
    """
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], 16)
    label = np.arange(40) % 2
    x = 0.25 * (2 * label[:, None] - 1) * signs + rng.normal(scale=0.05, size=(40, 16))
    w1 = signs[:, None] * rng.uniform(0.25, 0.35, (16, 8))
    w2 = np.tile([-1.0, 1.0], (8, 1)) * rng.uniform(0.1, 0.2, (8, 2))
    data = {"x": x.astype(np.float32), "label": label}
    settings = {"prune": 0.11, "lr": 1.0, "weight_decay": 0.05, "epochs": 24}
    result = run(tmp_path, two_layers(w1, w2), data, **settings)
    assert result["decay_horizon_reached"] > 1
    for seed, gain in zip(result["seeds"], result["gain"]["values"], strict=True):
        treated, control = (
            next(a for a in result["arms"] if (a["name"], a["seed"]) == (name, seed))
            for name in ("magnitude", "control")
        )
        assert treated["pruned"] == 16
        assert treated["shed"][-1]["tensors"] == {"w1": 128}
        assert control["elsewhere"]["magnitude"][-1]["shed"] == 0
        assert gain == 8.0
        assert control["metrics"]["top1"] == 1.0
        assert treated["metrics"]["top1"] == 0.5
    assert result["verdict"] == "present"
    assert result["gain"]["low"] == result["gain"]["high"] == 8.0
    assert result["tensors"]["magnitude"][0]["name"] == "w1"
    assert result["tensors"]["magnitude"][0]["net_shed"] == 128
    assert result["recommendation"]["method"] == "cascade-gmp"

    longer = run(tmp_path, two_layers(w1, w2), data, **settings, main_epochs=240)
    assert longer["arms"] == result["arms"]
    assert longer["steps"] == result["steps"] == result["arms"][0]["steps"]
    events = [r["recommendation"]["events"] for r in (result, longer)]
    assert 2 <= events[0] < events[1], "events are for the main job, which has ten times the steps"


def test_pruning_what_does_nothing_sheds_nothing_more_than_the_control(tmp_path: Path) -> None:
    """Two inputs are always 0, so their weights change nothing, and the arms train alike.

    Bit by bit: samples come in the same order, and dropout draws the same numbers.
    """
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(8, 16)), rng.normal(size=(16, 3))
    w1[6:] = 1e-4 * np.sign(w1[6:])
    x, label = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 3
    x[:, 6:] = 0
    result = run(
        tmp_path,
        two_layers(w1, w2, dropout=0.3),
        {"x": x, "label": label},
        prune=0.18,
        lr=0.5,
        weight_decay=0.05,
        epochs=8,
        tau=0.2,
    )
    assert result["gain"]["values"] == [0.0, 0.0]
    assert all(point["net_shed"] == 0 for point in result["curves"]["magnitude"])
    assert result["verdict"] == "absent"
    for treated, control in zip(result["arms"][::2], result["arms"][1::2], strict=True):
        assert treated["pruned"] == 32
        ours, theirs = treated["shed"], control["elsewhere"]["magnitude"]
        for key in ("step", "kept", "shed", "shed_relative", "tensors"):
            assert [point[key] for point in ours] == [point[key] for point in theirs], key
        assert treated["metrics"] == control["metrics"]
        assert ours[-1]["shed"] > 0


def test_the_largest_change_without_shed_weights_is_reported_whatever_its_sign(
    tmp_path: Path,
) -> None:
    """Zeroing weights that are not small, as with a large tau, may lower the loss as well."""
    rng = np.random.default_rng(1)
    w1, w2 = rng.normal(size=(8, 16)), rng.normal(size=(16, 3))
    x, label = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 3
    result = run(
        tmp_path,
        two_layers(w1, w2),
        {"x": x, "label": label},
        prune=0.2,
        lr=0.5,
        weight_decay=0.1,
        epochs=4,
        tau=0.5,
    )
    for key in ("loss_change", "output_change"):
        changes = [arm["without_shed"][key] for arm in result["arms"]]
        assert abs(result["without_shed"][key]) == max(map(abs, changes)) > 0
        assert result["without_shed"][key] in changes


def random_layers(folder: Path, *tables: dict[str, Any]) -> tuple[Path, Recipe]:
    """A model of 44 weights in a file, and a recipe with 40 samples for it."""
    rng = np.random.default_rng(1)
    onnx.save(two_layers(rng.normal(size=(8, 4)), rng.normal(size=(4, 3))), folder / "model.onnx")
    x, label = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 3
    np.savez(folder / "data.npz", x=x, label=label)
    spec = str(folder / "data.npz")
    given: dict[str, Any] = {"data": {"train": spec, "eval": spec}, "finetune": DECAYING}
    for table in tables:
        given = {**given, **{key: {**given.get(key, {}), **value} for key, value in table.items()}}
    return folder / "model.onnx", Recipe.from_dict(given)


@pytest.mark.parametrize("changed", [False, True])
def test_each_seed_draws_its_own_augmentation(tmp_path: Path, changed: bool) -> None:
    """With all samples in a step their order does not matter, so nothing else tells seeds apart."""
    rng = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,2] y) {
            f = Flatten(x)
            h = MatMul(f, w1)
            t = Tanh(h)
            y = MatMul(t, w2)
        }""")
    for name, shape in (("w1", (48, 8)), ("w2", (8, 2))):
        array = rng.normal(scale=0.2, size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    transforms = [{"name": "RandomHorizontalFlip"}] if changed else []
    recipe = Recipe.from_dict(
        {
            "data": dict.fromkeys(("train", "eval"), str(tmp_path / "pictures")),
            "augment": {"transforms": transforms},
            "finetune": DECAYING | {"batch_size": 12, "epochs": 4, "lr": 0.5},
            "cascade": {"prune": 0.2, "scores": ["magnitude"]},
            "distill": {"weight": 0.0},
        }
    )
    job = prepare_probe(tmp_path / "model.onnx", recipe, run_dir=tmp_path / "probe")
    arms = probe(job, recipe, 2)["arms"]
    losses = {(arm["name"], arm["seed"]): arm["metrics"]["loss"] for arm in arms}
    assert len(losses) == 4
    for name in ("magnitude", "control"):
        first, second = losses[name, 0], losses[name, 1]
        assert (abs(first - second) > 1e-3) is changed, losses


def test_the_pattern_of_the_main_job_does_not_matter(tmp_path: Path) -> None:
    tables = {"sparsity": {"pattern": "2:4", "target": 0.5, "pattern_choice": "after"}}
    model, recipe = random_layers(tmp_path, tables)
    plan = prepare_probe(model, recipe, run_dir=tmp_path / "probe").plan
    assert (plan.pattern, plan.zeros) == (None, 9)


def test_a_target_that_cannot_be_reached_is_refused_before_training(tmp_path: Path) -> None:
    """Kept sets are compared at the main job's sparsity, which floors of a half do not permit."""
    model, recipe = random_layers(tmp_path, {"sparsity": {"target": 0.8, "min_density": 0.5}})
    with pytest.raises(OnnxpruneError, match="cannot be reached"):
        prepare_probe(model, recipe, run_dir=tmp_path / "probe")


def test_a_launcher_of_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = random_layers(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        prepare_probe(model, recipe, run_dir=tmp_path / "probe")


def test_the_horizon_is_that_of_the_tensor_that_decays_most(tmp_path: Path) -> None:
    """ln(100) / (0.5 * 0.05) = 184.2 steps for `w2`; nothing else decays."""
    decays = {"lr": 0.5, "weight_decay": 0.0, "weight_decay_per_tensor": {"w2": 0.05}}
    model, recipe = random_layers(tmp_path, {"finetune": {**decays, "epochs": 40}})
    job = prepare_probe(model, recipe, run_dir=tmp_path / "probe")
    assert probe_plan(job, 1).horizon_steps == 185


@pytest.mark.parametrize(("epochs", "complete"), [(4, False), (40, True)])
def test_a_run_too_short_for_a_cascade_is_said_to_be(
    tmp_path: Path, epochs: int, complete: bool
) -> None:
    """ln(100) / (0.5 * 0.05) = 184.2 steps, of which 5 make an epoch."""
    rng = np.random.default_rng(1)
    x, label = rng.normal(size=(40, 8)).astype(np.float32), np.arange(40) % 3
    proto = two_layers(rng.normal(size=(8, 4)), rng.normal(size=(4, 3)))
    data = {"x": x, "label": label}
    result = run(tmp_path, proto, data, 0.2, seeds=1, lr=0.5, weight_decay=0.05, epochs=epochs)
    assert result["decay_horizon_steps"] == 185
    assert any("cannot show a complete cascade" in note for note in result["notes"]) != complete

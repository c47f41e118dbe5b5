from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

from .conftest import Command


def test_json(command: Command, classifier: Path, evaluation_data: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.onnx"
    command("prune", classifier, "-o", pruned, "--epochs", 0, "--set", "validate.latency=false")
    outcome = command("evaluate", classifier, pruned, "--data", evaluation_data, "--json").expect(0)
    result = outcome.json
    assert outcome.err == ""
    assert result["samples"] == 64
    assert [model["path"] for model in result["models"]] == [str(classifier), str(pruned)]
    first, second = (model["metrics"] for model in result["models"])
    assert 0 <= first["top1"] <= 1
    assert "agreement" not in first
    assert 0 <= second["agreement"] < 1
    again = command(
        "evaluate", classifier, pruned, "--data", evaluation_data, "--json", "--batch-size", 5
    )
    for old, new in zip(result["models"], again.expect(0).json["models"], strict=True):
        assert new["metrics"] == pytest.approx(old["metrics"], rel=1e-4, abs=1e-5)


def test_text(command: Command, classifier: Path, evaluation_data: Path) -> None:
    text = command("evaluate", classifier, "--data", evaluation_data).expect(0).out
    assert "64 samples" in text
    assert "top1" in text


def test_the_recipe_gives_data_preprocessing_and_classes(
    command: Command, classifier: Path, tmp_path: Path
) -> None:
    """A folder listing sorts 0, 180, 270, 90; the recipe says which output is which."""
    rng = np.random.default_rng(0)
    for name in ("0", "90", "180", "270"):
        folder = tmp_path / "pages" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    losses = []
    for classes in (["0", "90", "180", "270"], ["0", "180", "270", "90"]):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f'[data]\neval = "{(tmp_path / "pages").as_posix()}"\nclasses = {classes}\n'
            "[preprocess]\nresize = [8, 8]\n"
        )
        result = command("evaluate", classifier, "--recipe", recipe, "--json").expect(0).json
        assert result["samples"] == 16
        losses.append(result["models"][0]["metrics"]["loss"])
    assert losses[0] != losses[1]


def test_bad_input(
    command: Command, classifier: Path, evaluation_data: Path, tmp_path: Path
) -> None:
    assert "--data" in command("evaluate", classifier).expect(2).err
    command("evaluate", tmp_path / "no.onnx", "--data", evaluation_data).expect(3)
    command("evaluate", classifier, "--data", tmp_path / "no.npz").expect(4)
    outcome = command("evaluate", classifier, "--data", "python:os.path:join").expect(2)
    assert "--allow-python" in outcome.err
    provider = ["--provider", "QuantumExecutionProvider"]
    outcome = command("evaluate", classifier, "--data", evaluation_data, *provider).expect(2)
    assert "CPUExecutionProvider" in outcome.err


def test_task_metrics_and_differences(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recogniser whose scores are its inputs, and one that reads a class too high."""
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,T,4] x) => (float[N,T,4] y)'
    texts = {
        "right": f"{head} {{ y = Identity(x) }}",
        "wrong": f"{head} <int64[4] i = {{0, 3, 1, 2}}> {{ y = Gather<axis = 2>(x, i) }}",
    }
    paths = []
    for name, text in texts.items():
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(onnx.parser.parse_model(text), paths[-1])
    label = np.array([[1, 2], [2, 3], [3, 1]] * 4)
    steps = np.stack([label[:, 0], 0 * label[:, 0], label[:, 1]], axis=1)
    np.savez(tmp_path / "lines.npz", x=np.eye(4, dtype=np.float32)[steps], label=label)
    (tmp_path / "own_metric.py").write_text(
        "def steps(outputs, targets):\n    return [3] * len(targets)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # or else long paths wrap the cells
    options = ["--data", tmp_path / "lines.npz", "--metric", "cer"]
    own = ["--metric", "python:own_metric:steps"]
    result = command("evaluate", *paths, *options, *own, "--allow-python", "--json").expect(0).json
    first, second = result["models"]
    assert (first["metrics"]["cer"], second["metrics"]["cer"]) == (0, 1)
    assert first["metrics"]["steps"] == 3
    assert second["against_first"]["cer"]["low"] == 1
    text = command("evaluate", *paths, *options).expect(0).out
    assert "more than chance" in text
    assert "--allow-python" in command("evaluate", *paths, *options, *own).expect(2).err
    assert "cer, miou" in command("evaluate", *paths, *options, "--metric", "wer").expect(2).err


def test_average_precision_of_detectors(command: Command, tmp_path: Path) -> None:
    """pycocotools prints what it does; standard output is JSON alone all the same."""
    pytest.importorskip("pycocotools")
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2, 6] x) => (float[N, 2, 6] y)'
    weights = "<float[6] scale = {1, 1, 1, 1, SCORE, 1}>"
    for name, score in (("dense", "1"), ("pruned", "-1")):
        body = weights.replace("SCORE", score) + " { y = Mul (x, scale) }"
        onnx.save(onnx.parser.parse_model(text + body), tmp_path / f"{name}.onnx")
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (60, 2, 2))
    boxes = np.concatenate([corners, corners + 20], axis=2)
    found = np.concatenate([boxes, np.full((60, 2, 1), 0.5), np.zeros((60, 2, 1))], axis=2)
    label = np.concatenate([boxes, np.zeros((60, 2, 1))], axis=2)
    label[0, 1, 4] = -1
    data = tmp_path / "data.npz"
    np.savez(data, x=found.astype(np.float32), label=label.astype(np.float32))
    models = [tmp_path / "dense.onnx", tmp_path / "pruned.onnx"]
    result = command(
        "evaluate", *models, "--data", data, "--metric", "map50?layout=rows", "--json"
    ).expect(0)
    dense, pruned = result.json["models"]
    assert dense["metrics"]["map50"] == pytest.approx(1, abs=0.01)
    assert pruned["metrics"] == {"map50": 0, "agreement": 0}
    assert pruned["against_first"]["map50"]["high"] < -0.9
    policy = tmp_path / "policy.toml"
    policy.write_text('[accuracy]\nmetric = "map50?layout=rows"\nmax_drop = 0.05\nmin = 0.9\n')
    arguments = ("--policy", policy, "--baseline", models[0], "--data", data, "--json")
    for model, status in ((models[0], "pass"), (models[1], "fail")):
        outcome = command("check", model, *arguments).expect(0 if status == "pass" else 1)
        assert {check["status"] for check in outcome.json["checks"]} == {status}


def test_a_model_against_itself_has_two_labels(
    command: Command, classifier: Path, evaluation_data: Path
) -> None:
    text = command("evaluate", classifier, classifier, "--data", evaluation_data).expect(0).out
    assert "(1)" in text
    assert "(2)" in text

from pathlib import Path

import numpy as np
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

from pathlib import Path

from onnxprune.recipe import Recipe

from .conftest import Command


def test_the_recipe_is_valid_and_prunes(
    command: Command,
    classifier: Path,
    training_data: Path,
    evaluation_data: Path,
    quick: list[str],
    tmp_path: Path,
) -> None:
    recipe, output = tmp_path / "recipe.toml", tmp_path / "pruned.onnx"
    outcome = command("init", classifier, "-o", recipe).expect(0)
    assert outcome.out == ""
    text = recipe.read_text()
    assert "conv.weight" in text
    assert text.count("#") > 50
    assert Recipe.from_toml(recipe).sparsity.resolved_target == 0.8
    data = ["--data", training_data, "--eval-data", evaluation_data]
    command("prune", classifier, "-o", output, "--recipe", recipe, *data, *quick).expect(0)
    facts = command("inspect", output, "--json").expect(0).json
    assert facts["metadata_true"] is True
    assert facts["sparsity"] == 199 / 248


def test_standard_output(command: Command, classifier: Path, tmp_path: Path) -> None:
    text = command("init", classifier).expect(0).out
    file = tmp_path / "r.toml"
    file.write_text(text)
    Recipe.from_toml(file)
    assert command("init", classifier, "--json").expect(0).json == {"output": None, "recipe": text}


def test_nothing_is_replaced_unasked(command: Command, classifier: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("mine")
    outcome = command("init", classifier, "-o", recipe).expect(2)
    assert "--force" in outcome.err
    assert recipe.read_text() == "mine"
    facts = command("init", classifier, "-o", recipe, "--force", "--json").expect(0).json
    assert facts["output"] == str(recipe)
    assert recipe.read_text() == facts["recipe"] != "mine"


def test_bad_paths(command: Command, classifier: Path, tmp_path: Path) -> None:
    command("init", tmp_path / "no.onnx").expect(3)
    command("init", classifier, "-o", classifier / "r.toml").expect(2)
    command("init", classifier, "-o", tmp_path / "missing" / "r.toml").expect(0)
    assert "[sparsity]" in (tmp_path / "missing" / "r.toml").read_text()

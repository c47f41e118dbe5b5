"""The error tree, its exit codes and its texts."""

import inspect
import pickle
import re

import pytest

from onnxprune import errors
from onnxprune.errors import MissingDependencyError, OnnxpruneError, RecipeError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, OnnxpruneError)
}


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^ {4}([│├└─ ]*)(\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        drawn[match[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {name: cls.__base__.__name__ for name, cls in CLASSES.items()}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("OnnxpruneError", 1),
        ("UsageError", 2),
        ("RecipeError", 2),
        ("PolicyError", 2),
        ("TargetError", 2),
        ("OutputError", 2),
        ("CheckpointError", 2),
        ("MissingDependencyError", 2),
        ("MissingKernelsError", 2),
        ("TrainingError", 2),
        ("ModelError", 3),
        ("ModelFileError", 3),
        ("UnsupportedModelError", 3),
        ("DataError", 4),
        ("Interrupted", 5),
    ],
)
def test_exit_codes(name: str, code: int) -> None:
    assert CLASSES[name].exit_code == code


def test_every_class_has_an_exit_code_here() -> None:
    assert len(CLASSES) == 15


def test_the_text_has_one_line_for_each_part_that_is_given() -> None:
    error = OnnxpruneError("it broke", where="node 'a'", got=0, expected="more", remedy="try again")
    assert str(error) == (
        "it broke\n  where: node 'a'\n  got: 0\n  expected: more\n  remedy: try again"
    )
    assert str(OnnxpruneError("it broke")) == "it broke"
    assert (error.what, error.where, error.got) == ("it broke", "node 'a'", "0")
    assert OnnxpruneError("it broke").where is None


def test_a_recipe_error_lists_its_problems() -> None:
    error = RecipeError("bad", ["a: wrong", "b: wrong"], where="r.toml")
    assert error.problems == ["a: wrong", "b: wrong"]
    assert str(error).startswith("bad\n  - a: wrong\n  - b: wrong\n  where: r.toml\n")


def test_a_missing_package_comes_with_its_install_command() -> None:
    error = MissingDependencyError("torch", "train", "pruning")
    assert "pruning needs the package `torch`" in str(error)
    assert error.remedy == "pip install 'onnxprune[train]'"


@pytest.mark.parametrize(
    "error",
    [
        errors.DataError("what", where="here", got=1, expected=2, remedy="that"),
        RecipeError("what", ["one", "two"], where="recipe.toml"),
        MissingDependencyError("torch", "train", "training"),
    ],
)
def test_errors_reach_another_process_whole(error: OnnxpruneError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args

"""Recipes: validation as a whole, and TOML in and out."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import RecipeError, UsageError
from onnxprune.recipe import Preprocess, Recipe, pattern_sparsity
from onnxprune.toml import merged, toml_value

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIDE = st.integers(1, 16384)
SIZES = SIDE | st.tuples(SIDE, SIDE).map(list)
UNIT = st.floats(0, 1)
BELOW_1 = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(1e-12, 1e12)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table in which every key may be missing."""
    return st.fixed_dictionaries({}, optional=keys)


def between(first: float, second: float) -> dict[str, float]:
    return {"begin": min(first, second), "end": max(first, second)}


RECIPES = some(
    model=some(to_inference=st.booleans()),
    data=some(
        train=TEXT,
        eval=TEXT,
        classes=st.lists(TEXT, max_size=3),
        holdout=st.floats(0.01, 0.99),
        limit=st.integers(1, 2**40),
        max_corrupt=UNIT,
        padding=st.dictionaries(TEXT, FINITE, max_size=3),
        masks=st.dictionaries(TEXT, TEXT, max_size=3),
        lengths=st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    preprocess=some(
        input=TEXT,
        resize=SIZES,
        crop=SIZES,
        scale=POSITIVE,
        mean=st.lists(FINITE, min_size=3, max_size=3) | st.lists(FINITE, min_size=1, max_size=1),
        std=st.lists(POSITIVE, min_size=3, max_size=3),
        layout=st.sampled_from(["NCHW", "NHWC"]),
        color=st.sampled_from(["RGB", "BGR"]),
    ),
    augment=some(
        transforms=st.lists(
            st.fixed_dictionaries({"name": TEXT, "size": st.lists(SIDE, max_size=2), "p": FINITE}),
            max_size=2,
        )
    ),
    sparsity=some(
        target=st.floats(0.5, 0.99),
        method=st.sampled_from(["gmp", "random", "one-shot", "iterative"]),
        scope=st.sampled_from(["global", "layerwise"]),
        pattern=st.sampled_from(["unstructured", "2:4", "8:16"]),
        include=st.lists(TEXT, max_size=3),
        exclude=st.lists(TEXT, max_size=3),
        min_density=UNIT,
        min_density_per_tensor=st.dictionaries(TEXT, UNIT, max_size=3),
    ),
    schedule=st.builds(between, st.floats(0, 0.9), st.floats(0.91, 1)),
    finetune=some(
        epochs=st.floats(0, 1e6),
        lr=POSITIVE,
        weight_decay=st.floats(0, 10),
        clip_norm=st.floats(0, 10),
        loss=st.sampled_from(["auto", "cross-entropy", "bce", "mse", "ctc", "python:a.b:c"]),
        loss_output=TEXT,
        ctc_blank=st.integers(0, 2**31),
        precision=st.sampled_from(["fp32", "bf16", "fp16"]),
        weight_decay_per_tensor=st.dictionaries(TEXT, st.floats(0, 10), max_size=3),
        lr_schedule=st.sampled_from(["cosine", "constant", "linear", "step", "one-cycle"]),
        lr_milestones=st.lists(st.floats(0.01, 0.99), max_size=3).map(sorted),
        ema=BELOW_1,
        micro_batch=st.integers(1, 1000),
        channels_last=st.booleans(),
        track=st.lists(st.sampled_from(["tensorboard", "mlflow"]), max_size=2),
        threads=st.integers(1, 64),
        seed=st.integers(0, 2**31 - 1),
    ),
    distill=some(
        weight=UNIT,
        temperature=POSITIVE,
        loss=st.sampled_from(["auto", "kl", "mse", "kl+mse", "cosine"]),
        outputs=st.lists(TEXT, min_size=1, max_size=3),
        features=st.dictionaries(TEXT, POSITIVE, max_size=3),
        feature_loss=st.sampled_from(["mse", "mae", "cosine"]),
        teacher=st.sampled_from(["auto", "cached", "torch", "runtime"]),
        mask_input=TEXT,
    ),
    export=some(storage=st.sampled_from(["dense", "sparse"])),
    validate=some(
        provider=TEXT,
        shapes=st.dictionaries(TEXT, st.lists(st.integers(0, 999), max_size=4), max_size=3),
        latency=st.booleans(),
    ),
)


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    return caught.value.problems


@settings(max_examples=150, deadline=None)
@given(RECIPES)
def test_toml_round_trip_is_equal(values: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(values)
    again = Recipe.from_dict(tomllib.loads(recipe.to_toml()))
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()
    assert again.sha256() == recipe.sha256()
    assert again.preprocess.model_fields_set == recipe.preprocess.model_fields_set


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {toml_value(text)}") == {"key": text}


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[sparsity]\ntarget = 0.5\nscope = 'layerwise'\n", encoding="utf-8")
    recipe = Recipe.from_toml(path, {"sparsity": {"target": 0.9}, "finetune": {"lr": None}})
    assert recipe.sparsity.target == 0.9
    assert recipe.sparsity.scope == "layerwise"
    assert recipe.finetune.lr is None


def test_defaults_are_the_documented_ones() -> None:
    recipe = Recipe.from_dict({})
    assert recipe.sparsity.resolved_target == 0.8
    assert recipe.data.holdout == 0.1
    assert recipe == Recipe()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pattern": "2:4"}, 0.5),
        ({"pattern": "1:4"}, 0.75),
        ({"pattern": "2:4", "target": 0.7}, 0.7),
        ({"target": 0}, 0),
    ],
)
def test_the_target_follows_the_pattern(settings: dict[str, Any], expected: float) -> None:
    assert Recipe.from_dict({"sparsity": settings}).sparsity.resolved_target == expected


def test_sparsity_of_patterns() -> None:
    assert [pattern_sparsity(p) for p in ("unstructured", "2:4", "1:16")] == [0, 0.5, 15 / 16]
    assert pattern_sparsity("block:4x1") == 0
    assert Recipe.from_dict({"sparsity": {"pattern": "block:4x1"}}).sparsity.resolved_target == 0.8


@pytest.mark.parametrize("text", ["block:1x1", "block:65x1", "block:0x4", "block:4", "block:4x"])
def test_blocks_have_sides_up_to_64_and_more_than_one_weight(text: str) -> None:
    (problem,) = problems_of({"sparsity": {"pattern": text}})
    assert problem.startswith("sparsity.pattern: ")
    assert text in problem


def test_a_choice_of_moment_needs_a_pattern() -> None:
    (problem,) = problems_of({"sparsity": {"pattern_choice": "before"}})
    assert "pattern_choice 'before' needs a pattern" in problem
    tables = {"sparsity": {"pattern": "2:4", "pattern_choice": "before"}}
    assert Recipe.from_dict(tables).sparsity.pattern_choice == "before"


def test_every_problem_is_reported_at_once() -> None:
    problems = problems_of(
        {
            "sparsity": {"target": 1.5, "method": "magic", "pattern": "4:2"},
            "finetune": {"epochs": "many", "momentum": 1, "learning_rate": 0.1},
            "schedule": {"begin": 0.5, "end": 0.25},
            "preprocess": {"std": [0.0], "resize": 0},
            "sparsty": {},
        }
    )
    text = "\n".join(problems)
    keys = {problem.partition(":")[0] for problem in problems}
    assert keys == {
        *("sparsity.target", "sparsity.method", "sparsity.pattern"),
        *("finetune.epochs", "finetune.momentum", "finetune.learning_rate"),
        *("schedule", "preprocess.std", "preprocess.resize", "sparsty"),
    }
    assert len(problems) == 10
    assert "'gmp', 'random', 'one-shot' or 'iterative' (got 'magic')" in text
    assert "N:M needs 1 <= N < M <= 64 (got '4:2')" in text
    assert "begin (0.5) must be below end (0.25)" in text


def test_an_unknown_key_comes_with_the_keys_that_exist() -> None:
    (problem,) = problems_of({"validate": {"latncy": True}})
    known = "allowed here: batch_size, provider"
    assert problem.startswith(f"validate.latncy: unknown key; did you mean 'latency'? {known}")
    (problem,) = problems_of({"distil": {}})
    assert "did you mean 'distill'?" in problem
    (problem,) = problems_of({"weights": {}})
    assert problem.startswith("weights: unknown key; allowed here: model, data, preprocess")
    assert problem.endswith("validate")


def test_texts_of_a_form_come_with_the_forms_that_exist() -> None:
    (problem,) = problems_of({"finetune": {"loss": "crossentropy"}})
    assert problem == (
        "finetune.loss: must be auto, cross-entropy, bce, mse, ctc or "
        "python:package.module:function (got 'crossentropy')"
    )
    (problem,) = problems_of({"sparsity": {"pattern": "2x4"}})
    assert problem == ("sparsity.pattern: must be `unstructured`, `N:M` or `block:RxC` (got '2x4')")


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("finetune", "epochs", "4"),
        ("finetune", "batch_size", 32.0),
        ("finetune", "batch_size", True),
        ("finetune", "seed", -1),
        ("finetune", "seed", 2**31),
        ("finetune", "lr", 0),
        ("finetune", "clip_norm", -1.0),
        ("finetune", "lr", float("nan")),
        ("finetune", "lr", float("inf")),
        ("data", "train", 3),
        ("data", "classes", "cat"),
        ("data", "holdout", 1.0),
        ("data", "limit", 0),
        ("model", "to_inference", "yes"),
        ("sparsity", "target", 1.0),
        ("sparsity", "target", -0.1),
        ("sparsity", "min_density_per_tensor", {"a": 1.5}),
        ("sparsity", "min_density_per_tensor", [1]),
        ("sparsity", "pattern", "0:4"),
        ("sparsity", "pattern", "2:128"),
        ("sparsity", "pattern", "2:4\n"),
        ("sparsity", "include", "conv*"),
        ("preprocess", "mean", []),
        ("preprocess", "scale", 0),
        ("distill", "weight", 1.1),
        ("validate", "shapes", {"x": 3}),
    ],
)
def test_values_that_make_no_sense(table: str, key: str, value: object) -> None:
    problems = problems_of({table: {key: value}})
    assert all(problem.startswith(f"{table}.{key}") for problem in problems)


@pytest.mark.parametrize("value", ["224", [224], [1, 2, 3], [224, "224"], 0, [224, 20000], True])
def test_sizes_of_images(value: object) -> None:
    assert problems_of({"preprocess": {"resize": value}})
    assert problems_of({"preprocess": {"crop": value}})


def test_images_have_one_value_a_channel_or_one_for_all() -> None:
    assert "mean must have 1 or 3 values" in problems_of({"preprocess": {"mean": [1.0, 2.0]}})[0]
    grey = {"color": "L", "std": [1.0, 1.0, 1.0]}
    assert "std must have 1 value for" in problems_of({"preprocess": grey})[0]
    assert Preprocess(mean=[0.1, 0.2, 0.3]).std == [1.0]


def test_a_target_below_its_pattern_is_refused() -> None:
    (problem,) = problems_of({"sparsity": {"pattern": "2:4", "target": 0.4}})
    assert "target 0.4 is below the 0.5 that pattern 2:4 means" in problem


@pytest.mark.parametrize("values", [{"sparsity": 3}, {"sparsity": [1]}, {"data": "photos"}])
def test_a_table_that_is_none(values: dict[str, Any]) -> None:
    assert problems_of(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[sparsity", "not readable TOML"),
        (b"\xff\xfe", "not readable TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"sparsity = 3", "does not validate"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_toml(path)
    assert caught.value.where == str(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe file"):
        Recipe.from_toml(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        Recipe.from_toml(tmp_path)


def test_portable_holds_no_path_and_no_machine() -> None:
    machine = {"device": "cpu", "threads": 3, "workers": 2, "checkpoint_seconds": 1}
    here = Recipe.from_dict(
        {
            "data": {"train": "/home/me/train", "eval": "/home/me/eval", "limit": 7},
            "finetune": {**machine, "lr": 0.5},
            "validate": {"threads": 8, "latency": False},
        }
    )
    there = Recipe.from_dict({"data": {"limit": 7}, "finetune": {"lr": 0.5}})
    assert "/home" not in str(here.portable())
    assert here.portable() == there.portable()
    assert here.sha256() == there.sha256()
    assert here.portable()["data"] == {
        **{"holdout": 0.1, "limit": 7},
        **{"padding": {}, "masks": {}, "lengths": {}},
    }
    other = Recipe.from_dict({"data": {"limit": 8}, "finetune": {"lr": 0.5}})
    assert other.sha256() != here.sha256()


def test_overrides_replace_single_keys_and_none_replaces_nothing() -> None:
    values = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    assert merged(values, {"a": {"x": 9, "y": None}, "c": {"w": 4}, "d": {"v": None}}) == {
        "a": {"x": 9, "y": 2},
        "b": {"z": 3},
        "c": {"w": 4},
    }
    assert values == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}


def test_only_preprocessing_that_was_set_is_written_down() -> None:
    assert Recipe().to_dict()["preprocess"] == {}
    recipe = Recipe.from_dict({"preprocess": {"layout": "NCHW"}})
    assert recipe.to_dict()["preprocess"] == {"layout": "NCHW"}

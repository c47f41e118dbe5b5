"""What a recipe means for a model."""

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnxprune.errors import TargetError
from onnxprune.planning import PruningPlan, make_plan
from onnxprune.recipe import Recipe
from onnxprune.sparsity import NM, Axes, Block
from onnxprune.tensors import find_tensors

SHAPES = {"stem": (8, 3, 3, 3), "depth": (8, 1, 3, 3), "point": (16, 8, 1, 1), "fc": (16, 10)}


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    """Convolution, depthwise and pointwise convolution, embedding-free head: 216 + 128 + 160."""
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,10] y) { '
        "a = Conv<pads=[1,1,1,1]>(x, stem) b = Conv<group=8, pads=[1,1,1,1]>(a, depth) "
        "c = Conv(b, point) p = GlobalAveragePool(c) f = Flatten(p) m = MatMul(f, fc) "
        "y = Add(m, bias) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in {**SHAPES, "bias": (10,)}.items():
        array = rng.normal(size=shape).astype(np.float32)
        built.graph.initializer.append(numpy_helper.from_array(array, name))
    return built


def plan(proto: onnx.ModelProto, **tables: dict[str, Any]) -> PruningPlan:
    return make_plan(find_tensors(proto).values(), Recipe.from_dict(tables))


def test_by_default_all_but_depthwise_weights_are_in_scope(proto: onnx.ModelProto) -> None:
    made = plan(proto)
    assert list(made.tensors) == ["stem", "point", "fc"]
    assert made.size == 504
    assert made.zeros == 404
    assert list(made.skipped) == ["depth"]
    assert "depthwise" in made.skipped["depth"]
    assert made.axes == {"stem": Axes(1, 0), "point": Axes(1, 0), "fc": Axes(0, 1)}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"exclude": ["stem"]}, ["point", "fc"]),
        ({"include": ["p*", "f?"]}, ["point", "fc"]),
        ({"include": ["op:Conv"]}, ["stem", "point"]),
        ({"exclude": ["op:Conv"]}, ["fc"]),
        ({"include": ["*"], "exclude": ["*t*", "op:MatMul"]}, []),
        ({"include": ["*", "depth"]}, ["stem", "depth", "point", "fc"]),
        ({"include": ["depth"]}, ["depth"]),
        ({"include": ["dep*"]}, []),
    ],
)
def test_scope_by_name_and_operator(
    proto: onnx.ModelProto, settings: dict[str, Any], names: list[str]
) -> None:
    if not names:
        with pytest.raises(TargetError, match="no tensor is left to prune"):
            plan(proto, sparsity=settings)
        return
    made = plan(proto, sparsity=settings)
    assert list(made.tensors) == names
    assert not set(made.skipped) & set(names)
    assert set(made.skipped) | set(names) == set(SHAPES)


def test_names_with_brackets_match_themselves() -> None:
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) '
        "{ y = MatMul(x, w) }"
    )
    built.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "a[0].w"))
    built.graph.node[0].input[1] = "a[0].w"
    built.graph.node.append(helper.make_node("MatMul", ["x", "v"], ["z"]))
    built.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "v"))
    assert list(plan(built, sparsity={"exclude": ["a[0].w"]}).tensors) == ["v"]


def test_zeros_are_the_exact_ceiling(proto: onnx.ModelProto) -> None:
    for target, zeros in [(0.0, 0), (0.5, 252), (0.25, 126), (0.1, 51), (0.9, 454)]:
        assert plan(proto, sparsity={"target": target}).zeros == zeros


def test_floors_follow_the_last_matching_glob(proto: onnx.ModelProto) -> None:
    densities = {"*": 0.5, "fc": 0.1, "po*": 0.25}
    made = plan(proto, sparsity={"target": 0.5, "min_density_per_tensor": densities})
    assert made.floors == {"stem": 108, "point": 32, "fc": 16}
    assert plan(proto).floors == {"stem": 3, "point": 2, "fc": 2}


def test_a_target_beyond_the_floors_is_refused_with_the_limit(proto: onnx.ModelProto) -> None:
    with pytest.raises(TargetError, match=r"sparsity 0\.8 cannot be reached") as caught:
        plan(proto, sparsity={"min_density": 0.5})
    assert "at most 252 zeros (sparsity 0.5000)" in str(caught.value)


def test_a_pattern_leaves_out_what_it_does_not_fit(proto: onnx.ModelProto) -> None:
    made = plan(proto, sparsity={"pattern": "2:4"})
    assert made.pattern == NM(2, 4)
    assert list(made.tensors) == ["point", "fc"]
    assert made.zeros == 144
    assert "groups for the pattern 2:4" in made.skipped["stem"]
    with pytest.raises(TargetError, match="no prunable tensor can take the pattern 2:32"):
        plan(proto, sparsity={"pattern": "2:32"})


def test_blocks_leave_out_what_does_not_divide(proto: onnx.ModelProto) -> None:
    """The head has 10 outputs; floors of 2 weights become a block of 4."""
    made = plan(proto, sparsity={"pattern": "block:4x1"})
    assert made.pattern == Block(4, 1)
    assert made.axes == {"stem": Axes(1, 0), "point": Axes(1, 0)}
    assert list(made.tensors) == ["stem", "point"]
    assert "pattern block:4x1" in made.skipped["fc"]
    assert made.zeros == 276
    assert made.floors == {"stem": 4, "point": 4}
    assert made.to_json(10)["pattern"] == "block:4x1"
    with pytest.raises(TargetError, match="multiples of 64 along the output axis"):
        plan(proto, sparsity={"pattern": "block:64x1"})


@pytest.mark.parametrize(
    ("node", "shape", "pattern", "fits"),
    [
        ("Conv<group=2>", (8, 4, 1, 1), "block:4x1", True),
        ("Conv<group=4>", (8, 4, 1, 1), "block:4x1", False),
        ("Conv<group=4>", (8, 4, 1, 1), "block:1x4", True),
        ("ConvTranspose<group=4>", (8, 4, 1, 1), "block:4x1", True),
        ("ConvTranspose<group=4>", (8, 4, 1, 1), "block:1x4", False),
        ("ConvTranspose<group=4>", (8, 4, 1, 1), "2:4", False),
    ],
)
def test_patterns_do_not_reach_from_one_group_of_channels_into_the_next(
    node: str, shape: tuple[int, ...], pattern: str, fits: bool
) -> None:
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g (float[N,16,4,4] x) => (float[N,8,4,4] y) {{ y = {node}(x, w) }}"
    )
    built.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), "w"))
    if fits:
        assert list(plan(built, sparsity={"pattern": pattern}).tensors) == ["w"]
        return
    with pytest.raises(TargetError, match="no prunable tensor can take the pattern"):
        plan(built, sparsity={"pattern": pattern})


def test_a_floor_that_rules_out_the_pattern_is_refused(proto: onnx.ModelProto) -> None:
    def with_density(value: float) -> PruningPlan:
        densities = {"fc": value}
        return plan(proto, sparsity={"pattern": "1:4", "min_density_per_tensor": densities})

    assert with_density(0.25).floors["fc"] == 40
    with pytest.raises(TargetError, match="rules out the pattern 1:4"):
        with_density(0.26)


@pytest.mark.parametrize("total_steps", [0, 1, 7, 1000])
@pytest.mark.parametrize("kind", ["cubic", "linear", "one-shot"])
def test_events_end_at_exactly_the_target(
    proto: onnx.ModelProto, kind: str, total_steps: int
) -> None:
    made = plan(proto, schedule={"kind": kind, "events": 13})
    events = made.events(total_steps)
    assert list(events.values()) == sorted(events.values())
    assert events[max(events)] == made.zeros
    assert max(events) <= total_steps


def test_the_method_one_shot_prunes_at_once(proto: onnx.ModelProto) -> None:
    made = plan(proto, sparsity={"method": "one-shot"}, schedule={"kind": "cubic"})
    assert made.events(100) == {0: 404}


def test_the_plan_as_json(proto: onnx.ModelProto) -> None:
    found = json.loads(json.dumps(plan(proto, schedule={"events": 2}).to_json(100)))
    assert found["prunable_parameters"] == 504
    assert found["target_zeros"] == 404
    assert found["target_sparsity"] == pytest.approx(404 / 504)
    assert found["pattern"] == "unstructured"
    assert found["tensors"][2] == {
        **{"name": "fc", "op_type": "MatMul", "shape": [16, 10], "size": 160, "min_kept": 2},
    }
    assert [(e["step"], e["zeros"]) for e in found["schedule"]] == [(25, 353), (50, 404)]
    assert found["schedule"][-1]["sparsity"] == pytest.approx(404 / 504)

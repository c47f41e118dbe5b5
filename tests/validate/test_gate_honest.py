"""Honest artifacts pass, however they are built and stored."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.checking import check
from onnxprune.tensors import find_tensors
from onnxprune.validate.graph_identity import graph_differences
from onnxprune.validate.policy import Policy

from .artifacts import PRUNED, Pair, blocks_of_two_outputs, dense_model, make_pair, smallest
from .gating import FINITE, GRAPH, gate, not_passed, rules


def test_the_honest_artifact_passes(original: Pair) -> None:
    result = gate(original)
    assert not_passed(result) == {}
    assert [c.name for c in result.checks] == [name for name, _ in rules().demands()]
    assert (result.passed, result.exit_code) == (True, 0)


def constant_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its weights in `Constant` nodes."""
    stored = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for item in reversed(stored):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [item.name], value=item))
    return proto


def tied_weights() -> onnx.ModelProto:
    """Both convolutions' outputs come from one weight, which `Identity` gives a second name."""
    proto = dense_model()
    proto.graph.node.insert(3, helper.make_node("Conv", ["b", "tied"], ["t"], pads=[1] * 4))
    proto.graph.node.insert(0, helper.make_node("Identity", ["body.weight"], ["tied"]))
    pool = next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    pool.input[0] = "t"
    return proto


def masked_softmax() -> onnx.ModelProto:
    """Zero inputs give NaN, as an attention mask that leaves nothing does, and -inf is stored."""
    proto = dense_model()
    proto.graph.initializer.append(
        numpy_helper.from_array(np.array(-np.inf, np.float32), "minus.inf")
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    nodes = [
        helper.make_node("Equal", ["shift", "nothing"], ["is.padding"]),
        helper.make_node("Where", ["is.padding", "minus.inf", "g"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["scores"], axis=-1),
    ]
    proto.graph.node.pop()
    proto.graph.node.extend(nodes)
    return proto


NO_PATTERN = {"min": 0.3, "per_tensor_min": {"*": 0.3}}


HALF = {"min": 0.5, "per_tensor_min": {"*": 0.5}}


HONEST: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any] | None]]] = {
    "unstructured": (
        {"mask": smallest(0.3), "pattern": "unstructured"},
        {"sparsity": NO_PATTERN},
    ),
    "blocks": (
        {"mask": blocks_of_two_outputs, "pattern": "block:2x1"},
        {
            "sparsity": {"min": 0.25, "pattern": "block:2x1"},
            "accuracy": None,
            "agreement": {"min": 0.2},
        },
    ),
    "half precision": ({"dense": dense_model(data_type=TensorProto.FLOAT16)}, {}),
    "opset 18, IR version 9": ({"dense": dense_model(opset=18, ir_version=9)}, {}),
    "stored sparsely": (
        {"mask": smallest(0.75), "pattern": "unstructured", "sparse": True},
        {"sparsity": HALF, "accuracy": None, "agreement": None},
    ),
    "external data": ({"external": True}, {}),
    "opset 13, IR version 7": ({"dense": dense_model(opset=13, ir_version=7)}, {}),
    "opset 21": ({"dense": dense_model(opset=21)}, {}),
    "a fixed batch": ({"dense": dense_model(batch=4)}, {}),
    "weights in Constant nodes": ({"dense": constant_weights(dense_model())}, {}),
    "tied weights": ({"dense": tied_weights()}, {"agreement": {"min": 0.5}, "accuracy": None}),
    "NaN where the dense model has it": ({"dense": masked_softmax()}, {}),
    "one tensor left dense": (
        {"names": PRUNED[:2]},
        {
            "sparsity": {"min": 0.5, "pattern": "2:4", "exclude": ["op:Gemm"]},
            "metadata": {"required": True, "source_sha256": "baseline"},
        },
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_honest_artifacts_pass(tmp_path: Path, case: str) -> None:
    options, changes = HONEST[case]
    result = gate(make_pair(tmp_path, **options), rules(**changes))
    assert not_passed(result) == {}
    assert result.exit_code == 0
    if case.startswith("NaN"):
        (finite,) = [check for check in result.checks if check.name == FINITE]
        assert "as the dense model is, too" in finite.message
        assert "zero inputs" in finite.message


def test_without_the_dense_model_nan_is_no_excuse(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, masked_softmax())
    result = check(pair.pruned, Policy.from_dict({"outputs": {"finite": True}}))
    assert "on zero inputs" in not_passed(result)[FINITE]


def test_what_may_differ_in_the_same_graph(tmp_path: Path) -> None:
    """Trained values in every storage; a constant, also one in a branch, may not."""

    def branch(name: str, value: float) -> onnx.GraphProto:
        held = numpy_helper.from_array(np.array(value, np.float32), "")
        node = helper.make_node("Constant", [], [name], value=held)
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
        return helper.make_graph([node], name, [], [out])

    def model(scale: float, floats: float) -> onnx.ModelProto:
        proto = constant_weights(dense_model())
        proto.graph.node.pop()
        sub = {"then_branch": branch("t", scale), "else_branch": branch("e", 1.0)}
        proto.graph.node.extend(
            [
                helper.make_node("Constant", [], ["c"], value_floats=[floats] * 4),
                helper.make_node("ReduceMax", ["shift"], ["m"], keepdims=0),
                helper.make_node("Cast", ["m"], ["yes"], to=TensorProto.BOOL),
                helper.make_node("If", ["yes"], ["f"], **sub),
                helper.make_node("Mul", ["shift", "f"], ["h"]),
                helper.make_node("Max", ["h", "c"], ["k"]),
                helper.make_node("Add", ["g", "k"], ["scores"], "add"),
            ]
        )
        return proto

    pair = make_pair(tmp_path, model(2.0, 0.0), smallest(0.75), pattern="unstructured")
    policy = Policy.from_dict({"signature": {"same_graph": True}})

    def differences(proto: onnx.ModelProto) -> str:
        onnx.save(proto, tmp_path / "other.onnx")
        result = check(tmp_path / "other.onnx", policy, baseline=pair.dense)
        return not_passed(result).get(GRAPH, "")

    assert check(pair.pruned, policy, baseline=pair.dense).passed
    assert differences(model(2.0, 0.0)) == ""
    assert "FLOAT[] with digest" in differences(model(3.0, 0.0))
    assert "FLOAT[4] with digest" in differences(model(2.0, 1.0))
    longer = model(2.0, 0.0)
    longer.graph.node.append(helper.make_node("Relu", ["scores"], ["unused"]))
    assert "main graph: 19 nodes where the baseline has 18" in differences(longer)


def test_what_differs_in_a_node_is_said() -> None:
    """An attribute alone makes two nodes whose operator and names are the same."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { BODY }'

    def differences(body: str) -> list[str]:
        protos = [
            onnx.parser.parse_model(text.replace("BODY", own))
            for own in (body, "y = LeakyRelu <alpha = 0.25> (x)")
        ]
        return graph_differences(*protos, *map(find_tensors, protos))

    assert differences("y = LeakyRelu <alpha = 0.25> (x)") == []
    start = "main graph: node 0, LeakyRelu(x) -> y, has "
    end = " where the baseline has alpha = 0.25"
    assert differences("y = LeakyRelu <alpha = 0.5> (x)") == [f"{start}alpha = 0.5{end}"]
    assert differences("y = LeakyRelu (x)") == [f"{start}no such attribute{end}"]
    (other,) = differences("y = Relu (x)")
    assert other == "main graph: node 0 is Relu(x) -> y where the baseline has LeakyRelu(x) -> y"

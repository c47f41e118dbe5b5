"""Files made by somebody who wants a dense weight to pass, or zeros to count that do nothing."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.checking import check
from onnxprune.export import KEY
from onnxprune.tensors import find_tensors
from onnxprune.validate.policy import Policy

from .artifacts import PRUNED, Pair, dense_model, describe
from .gating import GRAPH, TRUE, not_passed
from .test_gate_tampering import set_values, tensor

Change = Callable[[onnx.ModelProto], object]
MIN = "sparsity.min"


def dense_values(name: str) -> np.ndarray:
    return np.array(numpy_helper.to_array(tensor(dense_model(), name)))


def store(proto: onnx.ModelProto, **arrays: np.ndarray) -> None:
    """Add initializers, or replace those of the same name (`__` stands for a point)."""
    for key, array in arrays.items():
        name = key.replace("__", ".")
        fresh = numpy_helper.from_array(np.asarray(array), name)
        known = [item for item in proto.graph.initializer if item.name == name]
        if known:
            known[0].CopyFrom(fresh)
        else:
            proto.graph.initializer.append(fresh)


def node(proto: onnx.ModelProto, name: str) -> NodeProto:
    (found,) = [item for item in proto.graph.node if item.name == name]
    return found


def described(proto: onnx.ModelProto) -> None:
    """Metadata of whoever changed the file: true of every prunable tensor that there is."""
    (entry,) = [item for item in proto.metadata_props if item.key == KEY]
    source = json.loads(entry.value)["source_sha256"]
    describe(proto, source, [n for n, t in find_tensors(proto).items() if t.prunable])


def computed_by(*nodes: NodeProto, **stored: np.ndarray) -> Change:
    """The body's weight becomes `w`, which these nodes make of stored values."""

    def apply(proto: onnx.ModelProto) -> None:
        store(proto, **stored)
        for index, item in enumerate(nodes):
            proto.graph.node.insert(index, item)
        node(proto, "body").input[1] = "w"
        described(proto)

    return apply


BODY = dense_values("body.weight")
SCALE = float(np.abs(BODY).max() / 127)
INT8 = np.where(np.round(BODY / SCALE) == 0, 1, np.round(BODY / SCALE)).astype(np.int8)
LARGE = np.concatenate([BODY, np.zeros((800, 8, 3, 3), np.float32)])
BOUNDS = {"begin": np.array([0]), "end": np.array([8]), "axis": np.array([0])}
SHAPE = np.array(BODY.shape)
make = helper.make_node


def dense_body(proto: onnx.ModelProto) -> None:
    store(proto, body__weight=BODY)


def zeros_in_a_branch(proto: onnx.ModelProto) -> None:
    """Of an If whose output nobody uses."""
    dense_body(proto)
    value = helper.make_tensor_value_info
    zeros = numpy_helper.from_array(np.zeros((8, 4000), np.float32), "branch.weight")
    product = make("MatMul", ["pooled", "branch.weight"], ["o"])
    then = helper.make_graph([product], "t", [], [value("o", TensorProto.FLOAT, None)], [zeros])
    other = make("Identity", ["pooled"], ["q"])
    branch = helper.make_graph([other], "e", [], [value("q", TensorProto.FLOAT, None)])
    store(proto, zero=np.array(0, np.float32))
    proto.graph.node.extend(
        [
            make("ReduceMax", ["shift"], ["m"], keepdims=0),
            make("Greater", ["m", "zero"], ["c"]),
            make("If", ["c"], ["unused"], "if", then_branch=then, else_branch=branch),
        ]
    )
    described(proto)


def zeros_in_a_function(proto: onnx.ModelProto) -> None:
    """Which hands its input on, and multiplies it with zeros beside."""
    dense_body(proto)
    zeros = numpy_helper.from_array(np.zeros((8, 4000), np.float32), "fz")
    body = [
        make("Constant", [], ["w"], value=zeros),
        make("MatMul", ["a", "w"], ["dead"]),
        make("Identity", ["a"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    node(proto, "fc").input[0] = "handed"
    proto.graph.node.insert(5, make("F", ["pooled"], ["handed"], domain="local"))
    described(proto)


def zeros_read_for_their_shape(proto: onnx.ModelProto) -> None:
    """A product that nobody uses, of a tensor whose shape an output needs."""
    dense_body(proto)
    store(proto, zeros__weight=np.zeros((8, 4000), np.float32), zero=np.array(0, np.float32))
    node(proto, "add").output[0] = "before"
    proto.graph.node.extend(
        [
            make("MatMul", ["pooled", "zeros.weight"], ["nowhere"]),
            make("Shape", ["zeros.weight"], ["sizes"]),
            make("Cast", ["sizes"], ["numbers"], to=TensorProto.FLOAT),
            make("ReduceSum", ["numbers"], ["number"], keepdims=0),
            make("Mul", ["number", "zero"], ["nothing"]),
            make("Add", ["before", "nothing"], ["scores"]),
        ]
    )
    described(proto)


def zeros_that_are_added(proto: onnx.ModelProto) -> None:
    """A product with zeros, whose sum is added to the scores."""
    dense_body(proto)
    store(proto, zeros__weight=np.zeros((8, 4000), np.float32), axis=np.array([1]))
    node(proto, "add").output[0] = "before"
    proto.graph.node.extend(
        [
            make("MatMul", ["pooled", "zeros.weight"], ["products"]),
            make("ReduceSum", ["products", "axis"], ["sum"]),
            make("Add", ["before", "sum"], ["scores"]),
        ]
    )
    described(proto)


HIDING: dict[str, Change] = {
    "multiplied with ones": computed_by(
        make("Mul", ["body.weight", "one"], ["w"]),
        body__weight=BODY,
        one=np.ones(1, np.float32),
    ),
    "added to zeros": computed_by(
        make("Add", ["nothing", "body.weight"], ["w"]),
        body__weight=BODY,
        nothing=np.zeros(BODY.shape, np.float32),
    ),
    "divided by one": computed_by(
        make("Div", ["body.weight", "one"], ["w"]), body__weight=BODY, one=np.ones(1, np.float32)
    ),
    "chosen by a condition": computed_by(
        make("Where", ["yes", "other.weight", "body.weight"], ["w"]),
        other__weight=BODY,
        yes=np.array(True),
    ),
    "in 8 bits": computed_by(
        make("DequantizeLinear", ["q", "qs"], ["w"]), q=INT8, qs=np.array(SCALE, np.float32)
    ),
    "in 8 bits, a scale a channel": computed_by(
        make("DequantizeLinear", ["q", "qs", "qz"], ["w"], axis=0),
        q=INT8,
        qs=np.full(8, SCALE, np.float32),
        qz=np.zeros(8, np.int8),
    ),
    "as integers, cast": computed_by(
        make("Cast", ["q"], ["w"], to=TensorProto.FLOAT), q=INT8.astype(np.int32)
    ),
    "cut from zeros": computed_by(
        make("Slice", ["body.weight", "begin", "end", "axis"], ["w"]), body__weight=LARGE, **BOUNDS
    ),
    "picked from zeros": computed_by(
        make("Gather", ["body.weight", "rows"], ["w"], axis=0),
        body__weight=LARGE,
        rows=np.arange(8),
    ),
    "split from zeros": computed_by(
        make("Split", ["body.weight", "sizes"], ["w", "rest"], axis=0),
        body__weight=LARGE,
        sizes=np.array([8, 800]),
    ),
    "scattered into zeros": computed_by(
        make("ScatterND", ["body.weight", "rows", "other.weight"], ["w"]),
        rows=np.arange(8)[:, None],
        other__weight=BODY,
    ),
    "drawn up by ConstantOfShape": computed_by(
        make("ConstantOfShape", ["sizes"], ["w"]), sizes=SHAPE
    ),
    "expanded": computed_by(
        make("Expand", ["small", "sizes"], ["flat"]),
        make("Add", ["flat", "body.weight"], ["w"]),
        small=np.ones(1, np.float32),
        sizes=SHAPE,
    ),
    "zeros in a branch": zeros_in_a_branch,
    "zeros in a function": zeros_in_a_function,
    "zeros read for their shape": zeros_read_for_their_shape,
}


@pytest.mark.parametrize("case", HIDING)
def test_hiding_is_found_without_the_dense_model(pair: Pair, case: str) -> None:
    pair.edit(HIDING[case])
    onnx.checker.check_model(str(pair.pruned))
    result = check(pair.pruned, Policy.from_dict({"sparsity": {"min": 0.45}}))
    assert MIN in not_passed(result), result.checks
    same_graph = Policy.from_dict({"signature": {"same_graph": True}})
    assert GRAPH in not_passed(check(pair.pruned, same_graph, baseline=pair.dense))


def test_added_zeros_are_found_with_the_dense_model(pair: Pair) -> None:
    pair.edit(zeros_that_are_added)
    policy = Policy.from_dict({"sparsity": {"min": 0.45}})
    assert check(pair.pruned, policy).passed, "nothing in the file tells them from others"
    text = not_passed(check(pair.pruned, policy, baseline=pair.dense))[MIN]
    assert "the baseline has 896 weights, so 32,000 were added" in text
    pair.edit(lambda proto: proto.opset_import.append(helper.make_opsetid("onnxprune", 1)))
    assert MIN in not_passed(check(pair.pruned, policy, baseline=pair.dense)), "not compiled"


def test_zeros_of_a_computed_weight_count_where_they_are_zero(pair: Pair) -> None:
    """A pruned model in 8 bits passes, and says what was counted; so does one with its gates cut
    and joined anew."""

    def quantise(proto: onnx.ModelProto) -> None:
        pruned = np.array(numpy_helper.to_array(tensor(proto, "body.weight")))
        q = np.round(pruned / SCALE).astype(np.int8)
        change = make("DequantizeLinear", ["q", "qs"], ["w"])
        computed_by(change, q=q, qs=np.array(SCALE, np.float32))(proto)
        proto.graph.initializer.remove(tensor(proto, "body.weight"))

    pair.edit(quantise)
    rules = {"min": 0.45, "per_tensor_min": {"*": 0.4}}
    result = check(pair.pruned, Policy.from_dict({"sparsity": rules}))
    assert not_passed(result) == {}
    assert "of 896 weights in 2 tensors and 1 computed weight are zero" in result.checks[0].message
    pattern = Policy.from_dict({"sparsity": {"pattern": "2:4"}})
    assert "its pattern is not known" in not_passed(check(pair.pruned, pattern))["sparsity.pattern"]
    excluding = Policy.from_dict({"sparsity": {"pattern": "2:4", "exclude": ["body"]}})
    assert check(pair.pruned, excluding).passed


def test_a_weight_that_is_cut_and_joined_counts_as_it_is(pair: Pair) -> None:
    halves = make("Split", ["body.weight"], ["upper", "lower"], axis=0)
    pair.edit(computed_by(halves, make("Concat", ["lower", "upper"], ["w"], axis=0)))
    policy = Policy.from_dict({"sparsity": {"min": 0.5, "pattern": "2:4"}})
    result = check(pair.pruned, policy)
    assert not_passed(result) == {}
    assert result.checks[0].measured == 0.5


def lists(change: Callable[[onnx.ModelProto], str], include: list[str]) -> Change:
    """Metadata that list a tensor more, as a recipe's scope would have it."""

    def apply(proto: onnx.ModelProto) -> None:
        (entry,) = [item for item in proto.metadata_props if item.key == KEY]
        source = json.loads(entry.value)["source_sha256"]
        describe(proto, source, [*PRUNED, change(proto)])
        (entry,) = [item for item in proto.metadata_props if item.key == KEY]
        claims = json.loads(entry.value)
        claims["recipe"]["sparsity"]["include"] = include
        entry.value = json.dumps(claims)

    return apply


def unused(proto: onnx.ModelProto) -> str:
    store(proto, unused=np.zeros((100, 100), np.float32))
    return "unused"


def unused_product(proto: onnx.ModelProto) -> str:
    unused(proto)
    store(proto, unused=np.zeros((8, 4000), np.float32))
    proto.graph.node.append(make("MatMul", ["pooled", "unused"], ["nowhere"]))
    return "unused"


def entry_elsewhere(holder: Callable[[onnx.ModelProto], object]) -> Change:
    def apply(proto: onnx.ModelProto) -> None:
        holder(proto).metadata_props.add(key=KEY, value="{}")  # type: ignore[attr-defined]

    return apply


def half_of_the_entries(proto: onnx.ModelProto) -> None:
    del tensor(proto, "fc.weight").metadata_props[:]


def two_own_entries(proto: onnx.ModelProto) -> None:
    stored = tensor(proto, "fc.weight")
    stored.metadata_props.add(key=KEY, value=stored.metadata_props[0].value)


def no_model_entry(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


UNTRUE: dict[str, Change] = {
    "lists a tensor that nobody reads": lists(unused, ["*", "unused"]),
    "lists a tensor of a product that nobody uses": lists(unused_product, ["*"]),
    "has an entry at the graph": entry_elsewhere(lambda p: p.graph),
    "has an entry at a node": entry_elsewhere(lambda p: p.graph.node[0]),
    "has an entry at an input": entry_elsewhere(lambda p: p.graph.input[0]),
    "has entries at some tensors": half_of_the_entries,
    "has two entries at a tensor": two_own_entries,
    "has entries at tensors alone": no_model_entry,
}


@pytest.mark.parametrize("case", UNTRUE)
def test_metadata_about_nothing_are_not_true(pair: Pair, case: str) -> None:
    pair.edit(UNTRUE[case])
    policy = Policy.from_dict({"metadata": {"true_to_file": True}})
    result = check(pair.pruned, policy)
    assert TRUE in not_passed(result)
    assert result.checks[0].message


def swap_outputs(proto: onnx.ModelProto) -> None:
    first, second = (item.name for item in proto.graph.output)
    proto.graph.output[0].name, proto.graph.output[1].name = second, first


def train(proto: onnx.ModelProto) -> None:
    hidden = numpy_helper.from_array(np.ones(9, np.float32), "hidden")
    proto.training_info.add().algorithm.initializer.append(hidden)


OTHER_GRAPHS: dict[str, Change] = {
    "outputs swapped": swap_outputs,
    "an output less": lambda p: p.graph.output.pop(),
    "another operator set": lambda p: setattr(p.opset_import[0], "version", 13),
    "an operator set more": lambda p: p.opset_import.append(helper.make_opsetid("other", 1)),
    "a graph for training": train,
    "a bias of another shape": lambda p: tensor(p, "fc.bias").dims.insert(0, 1),
}


@pytest.mark.parametrize("case", OTHER_GRAPHS)
def test_another_graph_is_noticed(pair: Pair, case: str) -> None:
    pair.edit(OTHER_GRAPHS[case])
    policy = Policy.from_dict({"signature": {"same_graph": True}})
    assert GRAPH in not_passed(check(pair.pruned, policy, baseline=pair.dense))


def test_nodes_of_one_name_do_not_hide_each_other(pair: Pair) -> None:
    """Sub-graphs are named by their nodes, and constants by their outputs."""

    def branching(first: float) -> Change:
        def apply(proto: onnx.ModelProto) -> None:
            def branch(value: float) -> onnx.GraphProto:
                held = numpy_helper.from_array(np.array(value, np.float32), "")
                inner = make("Constant", [], ["v"], value=held)
                out = helper.make_tensor_value_info("v", TensorProto.FLOAT, [])
                return helper.make_graph([inner], "b", [], [out])

            store(proto, yes=np.array(True))
            node(proto, "add").output[0] = "s0"
            for index, value in enumerate((first, 2.0)):
                branches = {key: branch(value) for key in ("then_branch", "else_branch")}
                out = "scores" if index else "s1"
                proto.graph.node.extend(
                    [
                        make("If", ["yes"], [f"i{index}"], "same", **branches),
                        make("Mul", [f"s{index}", f"i{index}"], [out]),
                    ]
                )

        return apply

    dense = onnx.load(pair.dense)
    branching(1.0)(dense)
    onnx.save(dense, pair.dense)
    policy = Policy.from_dict({"signature": {"same_graph": True}})
    pruned = pair.pruned.read_bytes()
    for value in (1.0, 3.0):
        pair.pruned.write_bytes(pruned)
        pair.edit(branching(value))
        assert check(pair.pruned, policy, baseline=pair.dense).passed == (value == 1.0)


def test_a_bias_that_is_not_a_number_is_found_with_metadata_that_are_true(pair: Pair) -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        set_values(proto, "fc.bias", lambda a: a.__setitem__(0, np.nan))
        described(proto)

    pair.edit(spoil)
    policy = Policy.from_dict({"outputs": {"finite": True}, "metadata": {"true_to_file": True}})
    assert not_passed(check(pair.pruned, policy)).keys() == {"outputs.finite"}
